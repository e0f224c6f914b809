"""DisDiff: erase the subject's word from the cross-attention (Liu et al., ACM MM 2024, arXiv 2405.20584)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from udpbench.core.component import check_numbers
from udpbench.interfaces import Owner, Run
from udpbench.models.attention import check_attention, mean_map, read_attention
from udpbench.models.diffusion import Cond
from udpbench.models.latent import LatentDiffusion
from udpbench.models.tokenizer import Tokenizer
from udpbench.optim.denoising import Objective, Times
from udpbench.optim.pgd import Scale
from udpbench.optim.samples import uniform_times
from udpbench.protect.simac import SimAC

SHARPNESS = 100  # of the softmax over a prompt's words, in the released code


@dataclass(kw_only=True)
class DisDiff(SimAC):
    """ASPL that raises ``L + attention_weight * (1 - s)^2``, where s is the subject's word's fraction of the energy of
    the cross-attention, in steps of 0.5 (cos(pi t / T) + 1) of their length: small where little of the picture is left
    in the noise.

    The maps are means over heads and layers of one resolution, a quarter of the latents' (16 of 64), sharpened by a
    softmax of 100 times the probability over the words of the prompt; s is a ratio of sums of squares over places. The
    paper's: the erasure and the schedule of steps; the released script also searches time steps as SimAC does
    (``search_rounds``), and makes no copy of the surrogate: what clean pictures teach it stays (``forgets`` false).
    There the word is the fourth token, whatever the prompt; here it is found. Our choices are: each picture's own map
    (there: a mean over all pictures of the batch), and with several samples, or views within ``eot``, the mean of their
    steps.

    Args: those of ``SimAC``, and
        attention_weight: of the erasure; 0: none.
        by_time: steps scaled by t as above; False: of one length.
        word: whose attention is erased; None: the data's rare word if the owner's prompt holds it, else the class noun
            (the last word of the class prompt).
    """

    attention_weight: float
    by_time: bool = True
    word: str | None = None

    version = 3  # 2: as SimAC; 3: steps of the mean length of all views
    name: ClassVar[str] = "disdiff"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_numbers(self.name, least=0, attention_weight=self.attention_weight)

    def check_model(self, model: LatentDiffusion) -> None:
        super().check_model(model)
        if self.attention_weight:
            check_attention(self.name, model)

    def identity(self) -> dict[str, Any]:
        """Beside SimAC's term the attention was once that of both pictures: such perturbations have another key now."""
        both = self.attention_weight and self.feature_weight
        return super().identity() | ({"attention": "of the perturbed picture"} if both else {})

    def objective(self, model: LatentDiffusion, owner: Owner, run: Run) -> Objective | None:
        plain = super().objective(model, owner, run)
        if not self.attention_weight:
            return plain
        tokenizer = Tokenizer(model.pipe.tokenizer)
        lengths = [len(tokenizer.ids(prompt)[: tokenizer.most]) - 1 for prompt in owner.prompts]  # without the end
        places = [self.word_places(tokenizer, owner, prompt) for prompt in owner.prompts]

        def loss(z: Tensor, cond: Cond, t: Tensor, noise: Tensor, which: list[int]) -> Tensor:
            with read_attention(model.pipe.unet) as read:
                raised = plain(z, cond, t, noise, which) if plain else model.loss(z, cond, t, noise)
            first = read[: len({layer.layer for layer in read})]  # SimAC's term runs the UNet on the clean picture, too
            maps = mean_map(first, z.shape[-2] * z.shape[-1] // 16)
            fractions = [
                energy_fraction(x[:, 1 : lengths[i]], [p - 1 for p in places[i]])
                for x, i in zip(maps, which, strict=True)
            ]
            return raised + self.attention_weight * (1 - torch.stack(fractions)).square()

        return loss

    def check_texts(self, tokenizer: Tokenizer, owner: Owner) -> None:
        for prompt in owner.prompts if self.attention_weight else ():
            self.word_places(tokenizer, owner, prompt)

    def word_places(self, tokenizer: Tokenizer, owner: Owner, prompt: str) -> list[int]:
        """Where the subject's word stands in a prompt; ValueError if it does not."""
        noun = (owner.class_prompt.split() or [""])[-1]
        word = self.word or (owner.token if owner.token in prompt.split() else noun)
        try:
            return tokenizer.places(prompt, word)
        except ValueError as error:
            raise ValueError(f"{self.name}: {error}; give protect.word, a word of the owner's prompt") from error

    def paced(self, times: Times | None, steps: int, n: int) -> tuple[Times | None, Scale | None]:
        """Samples of t that are remembered, for steps are scaled by their time steps."""
        if not self.by_time:
            return super().paced(times, steps, n)
        totals, calls = torch.zeros(n), torch.zeros(n)  # of each picture, since its length was last asked for

        def drawn(index: list[int], rngs: Sequence[torch.Generator], samples: int) -> Tensor:
            t = times(index, rngs, samples) if times else uniform_times(rngs, samples, steps)
            totals[index] += merit(t, steps).view(len(index), samples).mean(1)
            calls[index] += 1
            return t

        def scale(index: list[int]) -> Tensor:
            """The mean over all losses of the step: what wraps an ascent may ask for several views of a picture."""
            mean = totals[index] / calls[index]
            totals[index] = calls[index] = 0
            return mean

        return drawn, scale


def energy_fraction(attention: Tensor, places: list[int]) -> Tensor:
    """The fraction, in [0,1], of the words at ``places`` in the energy of sharpened ``attention`` (places, words)."""
    energy = (attention * SHARPNESS).softmax(-1).square()
    return energy[:, places].sum() / energy.sum()


def merit(t: Tensor, steps: int) -> Tensor:
    """Length of a step at ``t`` of ``steps`` time steps: 1 at the first, 0 at the last."""
    return 0.5 * ((torch.pi * t / (steps - 1)).cos() + 1)
