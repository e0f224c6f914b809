"""What a tokenizer makes of prompts before a text encoder reads them: how long they are, and what is cut."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable
from functools import cache, cached_property
from pathlib import Path
from textwrap import shorten
from typing import Any


class Tokenizer:
    """A model's tokenizer; ``inner``: that of transformers; ``most``: the tokens that its text encoder takes, begin and
    end included."""

    def __init__(self, tokenizer: Any) -> None:
        self.inner, self.most = tokenizer, int(tokenizer.model_max_length)
        self.learned: list[int] = []  # tokens of the word that ``having`` added

    def ids(self, text: str) -> list[int]:
        """The tokens of a prompt, uncut; a word of several learned tokens is spelled out, as diffusers does.

        Raises ValueError for what is no text: bytes of a command line in another encoding than the terminal's.
        """
        if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
            raise ValueError(f"the prompt {text!r} holds bytes that are no text; give it in UTF-8")
        if self.learned:
            from diffusers.loaders import TextualInversionLoaderMixin

            text = TextualInversionLoaderMixin().maybe_convert_prompt(text, self.inner)
        return self._tokens(text)

    def _tokens(self, text: str) -> list[int]:
        return self.inner(text).input_ids

    def places(self, text: str, word: str) -> list[int]:
        """Where the tokens of ``word`` stand in a prompt, at its last mention (0: the token of the beginning).

        Raises ValueError if the prompt, as far as the text encoder reads it, does not hold the word.
        """
        ids, wanted = self.ids(text)[: self.most - 1], self.ids(word)[1:-1]  # without the tokens of begin and end
        n = len(wanted)
        found = [i for i in range(1, len(ids) - n + 1) if ids[i : i + n] == wanted] if n else []
        if not found:
            raise ValueError(f"the prompt {text!r} lacks the word {word!r}")
        return list(range(found[-1], found[-1] + n))

    def having(self, word: str, vectors: int) -> Tokenizer:
        """The same with one more word of so many tokens, under the names that diffusers' loader gives them.

        Raises ValueError if the tokenizer knows it already, or does not find it again in a prompt.
        """
        made = Tokenizer(copy.deepcopy(self.inner))
        tokens = [word, *(f"{word}_{i}" for i in range(1, vectors))]
        if made.inner.add_tokens(tokens) != vectors:
            raise ValueError(f"the tokenizer knows the word {word!r} already")
        made.learned = made.inner.convert_tokens_to_ids(tokens)
        if not made.holds(made.ids(f"a {word}, a")):
            todo = "take letters, digits, - and _"
            raise ValueError(f"the tokenizer does not find the word {word!r} in a prompt; {todo}")
        return made

    def holds(self, ids: list[int]) -> bool:
        """Whether all learned tokens are among ``ids``, side by side."""
        n = len(self.learned)
        return any(ids[i : i + n] == self.learned for i in range(len(ids) - n + 1))

    def check(self, captions: Iterable[str], prompts: Iterable[str]) -> int:
        """How many captions are longer than the text encoder takes, and will be cut.

        Raises ValueError if a prompt that is none of the captions is.
        """
        cut = {text for text in captions if len(self.ids(text)) > self.most}
        for text in prompts:
            if text not in cut and (n := len(self.ids(text))) > self.most:
                shown = shorten(text, 200, placeholder=" ...")
                raise ValueError(f"the prompt {shown!r} has {n} tokens, the text encoder takes {self.most}; shorten it")
        return len(cut)


class EmbeddedTokenizer(Tokenizer):
    """The tokenizer in a folder of an embedded model, read without transformers: importing that takes longer than all
    that a finished cell needs."""

    def __init__(self, folder: Path) -> None:
        import tokenizers

        self.folder, self.learned = folder, []
        self.most = int(json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))["model_max_length"])
        self._backend = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))

    @cached_property
    def inner(self) -> Any:  # type: ignore[override]  # for what needs more than tokens of texts
        return _clip_tokenizer(self.folder)

    def _tokens(self, text: str) -> list[int]:
        return self._backend.encode(text).ids


@cache
def read_tokenizer(folder: Path, embedded: bool = False) -> Tokenizer | None:
    """The tokenizer of a pipeline's folder; None if there is none to read."""
    if embedded:
        return EmbeddedTokenizer(folder / "tokenizer") if (folder / "tokenizer").is_dir() else None
    try:
        # Without its files the library makes an empty one.
        if not any((folder / "tokenizer" / name).is_file() for name in ("tokenizer.json", "vocab.json")):
            return None
        return Tokenizer(_clip_tokenizer(folder / "tokenizer"))
    except (OSError, ValueError, TypeError, KeyError):  # what is wrong with it is told when it is loaded
        return None


def _clip_tokenizer(folder: Path) -> Any:
    from transformers import CLIPTokenizer
    from transformers.utils import logging

    logging.set_verbosity_error()  # it warns of every prompt that is too long
    return CLIPTokenizer.from_pretrained(str(folder))
