"""Textual inversion: learn the embeddings of one new word, everything else frozen (Gal et al., ICLR 2023)."""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from udpbench.core.component import check_numbers
from udpbench.interfaces import Dataset, Run
from udpbench.models.diffusion import Trainable
from udpbench.models.latent import EMBEDDING, LatentDiffusion
from udpbench.models.networks import sharing_copy
from udpbench.models.tokenizer import Tokenizer
from udpbench.optim.tuning import Tuning


@dataclass(kw_only=True)
class TextualInversion(Tuning):
    """The word ``word`` of the data's captions and prompts becomes a new one, ``<word>``, whose embedding is learned.

    The new one is in small letters (``<mydog>`` for MyDog), which are all that tokenizers of this kind know.

    Saved as ``embedding/learned_embeds.safetensors`` ({new word: vectors}), the format of diffusers' loader.

    Args:
        word: the word that stands for the subject in captions and prompts.
        vectors: how many embeddings the new word has, each in the place of a token; the paper's method has one, more
            ("extended latent spaces" there, usual with AUTOMATIC1111) hold more of the subject.
        start: the word whose embedding the new ones start from; None: the mean of all embeddings.
    """

    word: str
    vectors: int = 1
    start: str | None = None

    name: ClassVar[str] = "textual_inversion"
    version: ClassVar[int] = 2  # 2: words with capitals have all their vectors in a prompt

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.word.strip():
            raise ValueError(f"textual_inversion: word must be a word, given {self.word!r}")
        check_numbers("textual_inversion", least=1, vectors=self.vectors)
        if self.prior_weight:
            raise ValueError(f"textual_inversion: has no class pictures (prior_weight 0), given {self.prior_weight}")

    def check_data(self, data: Dataset) -> None:
        """ValueError if the data's subject goes by another word."""
        if self.word != data.token:
            has = f"calls its subject {data.token!r}; give task.word={data.token}" if data.token else "has none"
            raise ValueError(f"textual_inversion: learns the word {self.word!r} for the subject, but the data {has}")

    def check_texts(self, tokenizer: Tokenizer, captions: Sequence[str], prompts: Sequence[str]) -> int:
        """As the interface says; ValueError, too, if the word is not in a caption or prompt, or would be cut off, if
        it has no room in any, or if ``start`` is no word."""
        check_numbers("textual_inversion", most=tokenizer.most - 2, vectors=self.vectors)  # beside begin and end
        if self.start is not None and not self._starts(tokenizer.inner):
            raise ValueError(f"textual_inversion: start must be one word of the tokenizer, given {self.start!r}")
        tokenizer = tokenizer.having(self.new_word, self.vectors)
        captions, prompts = ([self.caption(text) for text in texts] for texts in (captions, prompts))
        cut = tokenizer.check(captions, prompts)
        for text in captions:
            if not tokenizer.holds(tokenizer.ids(text)[: tokenizer.most - 1]):  # the last token is that of the end
                raise ValueError(f"the caption {text!r} is cut before its word, at {tokenizer.most} tokens; shorten it")
        return cut

    def caption(self, text: str) -> str:
        """``text`` with the new word in place of ``word``; ValueError if it is not there."""
        made, found = re.subn(rf"(?<!\w){re.escape(self.word)}(?!\w)", lambda _: self.new_word, text)
        if not found:
            raise ValueError(f"textual_inversion: the prompt {text!r} lacks the word {self.word!r} (task.word)")
        return made

    @property
    def new_word(self) -> str:
        """The word that is learned."""
        return f"<{self.word.lower().strip('<>')}>"

    def trainable(self, victim: LatentDiffusion, run: Run) -> Trainable:
        """The victim with one more word."""
        tokenizer = Tokenizer(victim.pipe.tokenizer).having(self.new_word, self.vectors)
        encoder = copy.deepcopy(victim.pipe.text_encoder)
        table = encoder.get_input_embeddings()
        first = table.weight.mean(0) if self.start is None else table.weight[self._starts(tokenizer.inner)[0]]
        learned = ExtendedEmbedding(table, tokenizer.learned[0], first.repeat(self.vectors, 1))
        encoder.set_input_embeddings(learned)

        def save(folder: Path) -> None:
            (folder / "embedding").mkdir()
            rows = learned.rows.detach().cpu().clone()
            save_file({self.new_word: rows if self.vectors > 1 else rows[0]}, folder / "embedding" / EMBEDDING)

        unet: Any = victim.pipe.unet
        if self.gradient_checkpointing:
            unet = sharing_copy(unet)  # the victim's own keeps its layers
            unet.enable_gradient_checkpointing()
        parts = {"text_encoder": encoder, "tokenizer": tokenizer.inner, "unet": unet}
        return Trainable(victim.having(**parts), [learned.rows], save, text=True)

    def _starts(self, tokenizer: Any) -> list[int]:
        """The token of ``start``; empty if that is not one word."""
        ids = tokenizer(self.start, add_special_tokens=False).input_ids
        return ids if len(ids) == 1 and ids[0] != tokenizer.unk_token_id else []


class ExtendedEmbedding(nn.Module):
    """A frozen table of embeddings and trained ``rows`` (n, width) after it, for the tokens from ``index`` on."""

    def __init__(self, table: nn.Embedding, index: int, rows: Tensor) -> None:
        super().__init__()
        self.table, self.index = table, index
        self.rows = nn.Parameter(rows.detach().float().clone())

    @property
    def weight(self) -> Tensor:
        """The frozen rows: where the encoder looks up its dtype and device."""
        return self.table.weight

    def forward(self, ids: Tensor) -> Tensor:
        """Token ids (N, tokens) to embeddings (N, tokens, width)."""
        new = ids >= self.index
        known = self.table(ids.masked_fill(new, 0))
        return torch.where(new[..., None], self.rows[(ids - self.index).clamp(min=0)].to(known.dtype), known)
