"""What several test files use: the tiny random pipeline, pictures of its size, an owner of them."""

from __future__ import annotations

import os
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything reads it: no test may ask a server for weights

import pytest
import torch

from udpbench.data import renderer
from udpbench.images import as_saved
from udpbench.types import Owner

CONF = Path(__file__).parent.parent / "conf"


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    torch.set_num_threads(1)  # nothing here is large enough for two


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Path:
    """Folder of a Stable-Diffusion-shaped pipeline of 16 px pictures with random weights; do not write into it."""
    from udpbench.models.latent import _quiet
    from udpbench.models.tiny import save_tiny

    _quiet()
    return save_tiny(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def model(tiny):
    """The tiny pipeline, loaded once; nothing may change its weights."""
    from udpbench.models.latent import LatentDiffusion

    return LatentDiffusion(str(tiny), "tiny")


@pytest.fixture(scope="session")
def pictures() -> list[torch.Tensor]:
    """Four 8-bit pictures of subject 0, CHW [0,1], 16 px."""
    truth = renderer.draw(4, torch.Generator().manual_seed(0), renderer.subject(0))
    return [as_saved(x) for x in renderer.render(truth, 16)]


@pytest.fixture
def owner(pictures) -> Owner:
    """The owner of ``pictures``."""
    return make_owner(pictures)


def make_owner(images: list[torch.Tensor], names: list[str] | None = None) -> Owner:
    """An owner who writes the same prompt for all pictures."""
    names = names or [f"{i:04d}.png" for i in range(len(images))]
    return Owner(images=list(images), names=names, prompts=["a photo of a ring"] * len(images), class_prompt="a photo of a ring")
