"""Diffusion models of pixels: any folder or hub repository shaped like a DDPM."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from udpbench.core.component import check_numbers
from udpbench.models.diffusion import Cond, Diffusion, Trainable
from udpbench.models.networks import dtype_of, initialised_by
from udpbench.models.pretrained import DTYPES


class PixelDiffusion(Diffusion):
    """A model that denoises pictures themselves, with nothing to tell it what to draw (Ho et al., NeurIPS 2020)."""

    shape = "DDPM-shaped"
    option = "pixel"
    pipelines = ("DDPMPipeline", "DDIMPipeline")
    parts = {"unet": ("diffusers.UNet2DModel",), **Diffusion.parts}
    capabilities = frozenset({"denoise", "pixel"})

    @classmethod
    def unsupported(cls, configs: Mapping[str, Any]) -> Iterator[str]:
        yield from super().unsupported(configs)
        takes, gives = configs["unet"].in_channels, configs["unet"].out_channels
        if takes != 3 or gives not in (3, 6):  # 6: it predicts the variance, too
            yield f"its UNet takes {takes} channels and gives {gives}; allowed are 3, and 3 or 6"

    @cached_property
    def pipe(self) -> Any:
        """A DDPMPipeline: frozen, in evaluation mode, on ``self.device``."""
        return self.load()

    def with_tuned(self, folder: Path) -> PixelDiffusion:
        """This model with the UNet that a training stage saved in ``folder``, in float32 (see ``LatentDiffusion``)."""
        from diffusers import UNet2DModel

        unet = UNet2DModel.from_pretrained(folder / "unet")
        return self.having(unet=unet.float().to(self.device).requires_grad_(False).eval())

    def trainable(self, rng: torch.Generator, init: str = "copy", *, gradient_checkpointing: bool = False) -> Trainable:
        """The model with a trainable UNet; saved as a whole pipeline, so that ``model=pixel`` takes it."""
        unet = self.fresh_unet(init, rng)
        if gradient_checkpointing:
            unet.enable_gradient_checkpointing()
        other = self.having(unet=unet)
        return Trainable(other, list(unet.parameters()), other.pipe.save_pretrained)

    @property
    def size(self) -> int:
        """Side in pixels of the pictures the model was made for."""
        return int(self.pipe.unet.config.sample_size)

    def encode(self, x: Tensor) -> Tensor:
        """Pictures ``x`` (NCHW [0,1]) in [-1,1]."""
        return x * 2 - 1

    @property
    def multiple(self) -> int:
        """What every level of the UNet can halve."""
        return 2 ** (len(self.pipe.unet.config.block_out_channels) - 1)

    def round_trip(self, x: Tensor) -> Tensor:
        """``x``: pixels lose nothing."""
        return x

    def decode(self, z: Tensor) -> Tensor:
        """Back to [0,1]."""
        return z / 2 + 0.5

    def embed(self, prompts: list[str]) -> Cond:
        """Nothing: the model takes no text."""
        return Cond(torch.zeros(len(prompts), 0, 0, device=self.device))

    def predict(self, noisy: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """As ``Diffusion.predict``, without the variance that some models predict, too.

        Sides that the UNet cannot halve are padded for it, and the prediction is cut to the pictures again.
        """
        unet = self.pipe.unet
        _, channels, height, width = noisy.shape
        return unet(self.padded(noisy).to(dtype_of(unet)), t).sample[:, :channels, :height, :width].float()


class FreshPixel(PixelDiffusion):
    """A pixel model by its shape alone: fresh weights, for training from scratch.

    Args:
        size: side of the pictures in pixels.
        widths: channels of the UNet's levels, multiples of ``groups``; each level halves the side.
        layers: residual blocks per level.
        attention: levels (0: full size) with self-attention, besides the middle.
        groups: of the group norms.
        dropout: in the residual blocks.
        seed: of the weights.
    """

    trained = False
    time_steps = 1000

    def __init__(
        self, name: str, size: int, widths: Sequence[int], layers: int = 2, attention: Sequence[int] = (1,),
        groups: int = 32, dropout: float = 0.0, seed: int = 0, dtype: str = "fp32",
    ) -> None:  # fmt: skip
        super().__init__("", name, dtype=dtype)
        check_numbers(f"model {name}", least=1, layers=layers, groups=groups)
        if not widths or any(w < 1 or w % groups for w in widths) or size % 2 ** (len(widths) - 1):
            wanted = f"multiples of groups ({groups}), and the size divisible by 2 for every level but one"
            raise ValueError(f"model {name}: widths must be {wanted}; given widths {list(widths)}, size {size}")
        if any(not 0 <= level < len(widths) for level in attention):
            raise ValueError(f"model {name}: attention names levels 0 to {len(widths) - 1}, given {list(attention)}")
        self.seed = seed
        blocks = ["Attn" * (level in attention) for level in range(len(widths))]
        self.unet_config = {
            "sample_size": size, "in_channels": 3, "out_channels": 3,
            "layers_per_block": layers, "block_out_channels": list(widths), "norm_num_groups": groups,
            "dropout": dropout,
            "attention_head_dim": None,  # one head, as in DDPM; diffusers' own default makes many of 8 channels
            "down_block_types": [f"{kind}DownBlock2D" for kind in blocks],
            "up_block_types": [f"{kind}UpBlock2D" for kind in reversed(blocks)],
        }  # fmt: skip

    def identity(self) -> dict[str, str]:
        """The shape and the seed are the weights."""
        return {"unet": json.dumps(self.unet_config, sort_keys=True), "seed": str(self.seed), "dtype": self.dtype}

    def looked_at(self) -> None:
        """Nothing lies in files."""

    def fetch(self) -> None:
        """Nothing lies in files."""

    @cached_property
    def pipe(self) -> Any:
        """The diffusers pipeline with DDPM's linear schedule of 1,000 steps, frozen, on ``self.device``."""
        from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

        with initialised_by(torch.Generator().manual_seed(self.seed)):
            unet = UNet2DModel(**self.unet_config)
        # torch's own: that of diffusers warns of modules to be kept in float32, of which there are none.
        nn.Module.to(unet, self.device, DTYPES[self.dtype]).requires_grad_(False).eval()
        pipe = DDPMPipeline(unet, DDPMScheduler(self.time_steps))
        pipe.set_progress_bar_config(disable=True)
        return pipe
