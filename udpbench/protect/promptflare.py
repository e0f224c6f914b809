"""PromptFlare: let no prompt be heard by cross-attention (Na et al., ACM MM 2025, arXiv 2508.16217)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from udpbench.interfaces import Run
from udpbench.models.attention import check_attention, read_attention
from udpbench.models.diffusion import Cond
from udpbench.models.latent import LatentDiffusion
from udpbench.optim.chains import Inpainting
from udpbench.optim.masked import MaskedAscent


@dataclass(kw_only=True)
class PromptFlare(MaskedAscent):
    """Descend ``sum over layers |m * (attn(prompt) - attn(BOS))|_2``: the gap, where the picture is painted anew
    (``m``), between what cross-attention puts out under a prompt of quality tags and under its first token alone.

    The first token (BOS) is the same for every prompt, so what is said in any has no say. The gap is taken in the first
    step, in the layers below the full resolution of the latents; no gradient goes through the second term.

    The paper's and the released code's: all of this, one noise an iteration, the first of four steps. Our choices: the
    posterior mean; a random start, of the kept part, in the preset ``matched``; for a UNet that takes latents alone see
    ``Inpainting``.

    Args: those of ``MaskedAscent``, and
        prompt: the quality tags.
    """

    prompt: str

    name = "promptflare"
    wrappable = False  # other terms would move what is painted anew, too

    def check_model(self, model: LatentDiffusion) -> None:
        super().check_model(model)
        check_attention(self.name, model)

    def model_prompts(self, prompts: Sequence[str]) -> list[str]:
        return [self.prompt]

    def raised(self, seen: Inpainting, cond: Cond, noise: Tensor, run: Run) -> Tensor:
        n, first = len(noise), Cond(cond.hidden[:, :1])
        with torch.no_grad():
            wanted = self.heard(seen, first.repeat(n), noise)
        run.tally("unet_forward", n)
        gaps = zip(self.heard(seen, cond.repeat(n), noise), wanted, strict=True)
        return -torch.stack([(a - b).flatten(1).norm(dim=1) for a, b in gaps]).sum(0)

    def heard(self, seen: Inpainting, cond: Cond, noise: Tensor) -> list[Tensor]:
        """Outputs of the layers of cross-attention below the full resolution, zero where the picture is kept,
        (N, channels, height, width) each."""
        with read_attention(seen.model.pipe.unet, "cross") as layers:
            seen.first_prediction(cond, noise, self.sample_steps)
        found, side = [], seen.latents.shape[-2:]
        for output in (layer.output for layer in layers):
            height, width = size = _resolution(side, output.shape[1])
            if size != tuple(side):
                at = output.transpose(1, 2).unflatten(2, (height, width))
                found.append(at * F.interpolate(seen.anew, size))
        return found


def _resolution(side: Sequence[int], places: int) -> tuple[int, int]:
    """The (height, width) of ``places`` places that halving ``side``, rounded up, comes to."""
    height, width = side
    while height * width > places:
        height, width = -(-height // 2), -(-width // 2)
    return height, width
