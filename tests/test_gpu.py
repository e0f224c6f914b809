"""What only a GPU can show: the same samples and nearly the same numbers as on the CPU, and bf16 with checkpointing at work."""

from __future__ import annotations

import pytest
import torch

from udpbench.core.budget import Linf
from udpbench.core.device import strict_float32
from udpbench.core.images import as_saved, write_metadata, write_png
from udpbench.interfaces import Owner, Run, Thief
from udpbench.models.latent import LatentDiffusion
from udpbench.protect.udp import EUDP
from udpbench.task.dreambooth import DreamBooth

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]
PROMPT = "a photo of a ball"


@pytest.fixture(autouse=True)
def strict():
    """As in every command."""
    strict_float32()


def pictures(n: int) -> list[torch.Tensor]:
    return [as_saved(x) for x in torch.rand(n, 3, 16, 16, generator=torch.Generator().manual_seed(0))]


def protect(tiny, device: str) -> torch.Tensor:
    model = LatentDiffusion(str(tiny), "tiny").to(device)
    owner = Owner(pictures(3), ["a", "b", "c"], [PROMPT] * 3)
    method = EUDP(rounds=1, model_steps=0, image_steps=1, lr=1e-4, batch=1, samples=2)
    return torch.stack([x.cpu() for x in method.protect(owner, Linf(8), model, Run(0, torch.device(device)))])


def test_the_first_step_is_that_of_the_cpu(tiny):
    """Signs of gradients near zero may differ by rounding; nearly all others must agree."""
    assert (protect(tiny, "cpu") == protect(tiny, "cuda")).float().mean() > 0.98


def test_dreambooth_trains_in_bf16_with_checkpointing(tiny, tmp_path):
    source = tmp_path / "train"
    source.mkdir()
    for i, x in enumerate(pictures(2)):
        write_png(source / f"{i}.png", x)
    write_metadata(source, {f"{i}.png": {"text": PROMPT} for i in range(2)})
    task = DreamBooth(
        steps=3,
        lr=1e-3,
        batch=2,
        pictures=2,
        sample_steps=2,
        guidance=2.0,
        dtype="bf16",
        gradient_checkpointing=True,
        train_text_encoder=True,
    )
    model, run = LatentDiffusion(str(tiny), "tiny", dtype="bf16"), Run(0, torch.device("cuda"))
    task.train(source, tmp_path / "out", model, run)
    task.generate(tmp_path / "out" / "step_3", tmp_path / "pictures", model, run, Thief(prompts=[PROMPT]))
    assert len(list((tmp_path / "pictures").glob("*.png"))) == 2
    assert torch.cuda.max_memory_allocated() > 0
