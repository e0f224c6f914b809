"""Memory is bounded by pixels: what a stage holds at once, and that it does not show in what is made."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import weakref
from pathlib import Path

import pytest
import torch
from shared import composed, make_owner

from udpbench.attack.jpeg import Jpeg
from udpbench.benchmark.store import Store
from udpbench.commands.machine import memory_error
from udpbench.commands.preparing import open_store
from udpbench.core import images, memory
from udpbench.core.budget import Linf
from udpbench.core.errors import ConfigError
from udpbench.interfaces import Log, Run
from udpbench.models import strips
from udpbench.models.diffusion import Trainable
from udpbench.optim import pgd
from udpbench.optim.pgd import chunks
from udpbench.optim.training_set import TrainingSet
from udpbench.protect import fsmg, udp
from udpbench.protect.aspl import ASPL
from udpbench.protect.noise import Noise


def photos(folder: Path, *sizes: tuple[int, int]) -> Path:
    folder.mkdir()
    for i, size in enumerate(sizes):
        images.write_png(folder / f"{i}.png", torch.rand(3, *size, generator=torch.Generator().manual_seed(i)))
    return folder


@pytest.fixture
def at_once(monkeypatch) -> list[int]:
    """How many pictures each call of the noise and of JPEG was given."""
    seen: list[int] = []
    protect, purify = Noise.protect, Jpeg.purify
    monkeypatch.setattr(
        Noise, "protect", lambda self, owner, *rest: seen.append(len(owner.images)) or protect(self, owner, *rest)
    )
    monkeypatch.setattr(
        Jpeg, "purify", lambda self, given, *rest: seen.append(len(given)) or purify(self, given, *rest)
    )
    return seen


@pytest.mark.slow
def test_stages_hold_as_many_pictures_as_make_a_batch(graph, tmp_path, monkeypatch, at_once):
    source = photos(tmp_path / "mine", *[(24, 24)] * 4, (16, 30), (30, 16))
    cell = graph(
        "data=folder", f"data.path={source}", "data.prompt='a {token} dog'", "data.size=null", "data.geometry=native",
        "protect=noise", "attack=jpeg", "arms=[protected,purified]", "~perturbation.bundle.perceptual",
    )  # fmt: skip
    stages = [cell.arms[name].pictures for name in ("protected", "purified")]
    made = {}
    for name, pixels, want in (
        ("all", 256 * 256, [1, 4, 1] * 2),
        ("few", 12 * 24, [1] * 12),
        ("two", 24 * 24, [1, 2, 2, 1] * 2),
    ):
        monkeypatch.setattr(images, "PIXELS", pixels)
        at_once.clear()
        folders = Store(tmp_path / name, grad_batch=4 if name == "all" else 2).do(*stages)
        assert at_once == want, name
        made[name] = [{p.name: p.read_bytes() for p in images.list_images(folder)} for folder in folders]
        assert all((folder / images.METADATA).read_text() for folder in folders)
    assert made["few"] == made["two"] == made["all"]
    assert len(made["all"][1]) == 6


def test_gradients_are_of_as_many_pictures_as_have_the_pixels_of_a_batch(monkeypatch):
    monkeypatch.setattr(images, "PIXELS", 16 * 16)
    pictures = [torch.zeros(3, 16, 16)] * 5 + [torch.zeros(3, 32, 16)] * 3
    assert list(chunks(pictures, 4)) == [[0, 1, 2, 3], [4], [5, 6], [7]]
    assert list(chunks(pictures, 1)) == [[i] for i in range(8)]
    assert list(chunks(pictures, None)) == [[0, 1, 2, 3, 4], [5, 6, 7]], "a product of gradients couples all of a size"


def test_a_training_set_encodes_a_batch_at_a_time(model, pictures, monkeypatch):
    trainable = Trainable(model, [], lambda folder: None)
    whole = TrainingSet(trainable, pictures, ["a"] * 4, Run()).latents[0][0]
    seen = []
    encode = type(model).encode
    monkeypatch.setattr(images, "PIXELS", 8 * 16)
    # Of the class: undone on the model itself, which other tests share, its own method would stay there.
    monkeypatch.setattr(type(model), "encode", lambda self, x: seen.append(len(x)) or encode(self, x))
    parts = TrainingSet(trainable, pictures, ["a"] * 4, Run(batch=6)).latents[0][0]
    assert seen == [3, 1]
    torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-5)


def test_a_training_step_keeps_the_layers_of_as_many_pictures_as_have_the_pixels_of_a_batch(
    model, pictures, monkeypatch
):
    trainable = model.trainable(torch.Generator().manual_seed(0))
    passes: list[int] = []
    trainable.model.pipe.unet.register_forward_pre_hook(lambda unet, given: passes.append(len(given[0])))

    def step(pixels: int) -> list[torch.Tensor]:
        passes.clear()
        monkeypatch.setattr(images, "PIXELS", pixels)
        pictured = TrainingSet(trainable, pictures, ["a"] * 4, Run(grad_batch=2))
        loss = pictured.loss(5, torch.Generator().manual_seed(1))
        return [loss.detach(), *torch.autograd.grad(loss, trainable.parameters)]

    whole = step(3 * 16 * 16)
    assert passes == [5]
    parts = step(16 * 16)
    assert passes == [2, 2, 1, 1, 2, 2], "each part once more, from the last on"
    torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_pictures_too_small_for_a_metric_are_told_before_any_work(graph, tmp_path):
    source = photos(tmp_path / "mine", (24, 24), (10, 40))
    words = ["data=folder", f"data.path={source}", "data.prompt='a {token} dog'", "data.size=null"]
    line = "metric ssim: needs pictures of at least 11 x 11 px, the smallest one of the data has a side of 10"
    with pytest.raises(ConfigError, match=line):
        graph(*words)
    assert graph(*words, "~perturbation.bundle.ssim")
    assert graph(*words, "data.size=16")


@pytest.mark.slow
def test_a_cell_cuts_training_and_reference_pictures_alike(graph, tmp_path):
    """A victim that drew its references again would be perfect: they are squares of the side that it draws."""
    source, more = photos(tmp_path / "mine", (24, 36)), photos(tmp_path / "more", (40, 20), (30, 30))
    cell = graph(
        "data=folder", f"data.path={source}", f"data.reference={more}", "data.prompt='a {token} dog'", "data.size=null",
        "protect=none",
    )  # fmt: skip
    (folder,) = Store(tmp_path / "store").do(cell.data)
    assert json.loads((folder / "data.json").read_text())["geometry"] == "square"
    sizes = {part: [x.shape[1:] for x in images.read_folder(folder / part).values()] for part in ("train", "reference")}
    assert sizes == {"train": [(24, 24)], "reference": [(20, 20), (30, 30)]}


class Seen(Log):
    """Which bars there were."""

    def __init__(self) -> None:
        self.bars: list[tuple[str, int]] = []

    def bar(self, title, total, unit="it"):
        self.bars.append((title, total))
        return super().bar(title, total, unit)


def test_an_image_step_over_several_chunks_says_how_far_it_is():
    x, log = [torch.rand(3, 8, 8) for _ in range(3)], Seen()
    for most in (2, 3):  # two chunks, then one
        pgd.pgd(x, x, lambda x, index: x.sum((1, 2, 3)), Linf(8), Run(log=log), steps=[1.0, 1.0], most=most)
    assert log.bars == [("one step", 3)] * 2


def test_a_large_folder_of_pairs_says_how_far_it_is(tmp_path):
    from udpbench.metrics.psnr import Psnr

    log, folder = Seen(), photos(tmp_path / "a", *[(8, 8)] * 3)
    Psnr()(folder, folder, Run(log=log))
    assert log.bars == [("pairs psnr", 3)]


@pytest.mark.parametrize(("name", "settings"), [("udp", {}), ("aspl", {"class_images": 0, "clean_steps": 1})])
def test_pictures_of_the_round_before_are_let_go(name, settings, model, pictures, monkeypatch):
    """A method that couples pictures keeps two of each: the owner's and the one that moves."""
    cls, where = (udp.UDP, udp) if name == "udp" else (ASPL, fsmg)
    before, kept = [], []

    def watched(images, clean, loss, *rest, **more):
        def seen(x, index):
            kept.append(sum(picture() is not None for picture in before))
            return loss(x, index)

        made = pgd.pgd(images, clean, seen, *rest, **more)
        before[:] = [weakref.ref(picture) for picture in made]
        return made

    monkeypatch.setattr(where, "pgd", watched)
    method = cls(rounds=2, model_steps=1, image_steps=2, lr=1e-4, batch=2, **settings)
    method.protect(make_owner(pictures), Linf(8), model, Run())
    assert kept == [0, 0, 0, 0]


def test_what_fits_into_a_card_is_what_was_measured_and_left_over():
    assert memory.pictures_that_fit(24, 9.4) == 2  # 4.3 + 2 x 9.4 = 23.1
    assert memory.pictures_that_fit(4, 3.3) == 0
    lines = memory.of_cards()
    assert list(lines) == ["12 GB", "24 GB", "48 GB", "80 GB"]
    assert (
        "encoder and decoder 0 (2); left by dreambooth, udp, fsmg none, aspl none, style_finetune none"
        in lines["12 GB"]
    )
    # 24 - 4.3 / 2 - 18 bytes x 0.983e9 = 4.2; with a copy in float32 0.2; without the text encoder 2.9
    assert lines["24 GB"].endswith("left by dreambooth, udp, fsmg 4 GB, aspl none, style_finetune 2 GB")


@pytest.mark.parametrize(
    ("error", "whose"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), "GPU"),
        (RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be reported later"), "GPU"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), "GPU"),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), "GPU"),
        (RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"), "GPU"),
        (MemoryError(), "machine"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"), "machine"),
        (RuntimeError("CUDA error: device-side assert triggered"), None),
        (RuntimeError("cuDNN error: CUDNN_STATUS_NOT_SUPPORTED"), None),
    ],
)
def test_which_errors_mean_a_full_memory_and_what_is_told_of_them(error, whose):
    assert memory.full_memory(error) == whose
    said = memory_error(error)
    assert (said is None) == (whose is None)
    assert not said or (whose in said and "take the same whatever the batch" in said)


def test_the_memory_of_large_models_is_as_documented():
    text = (Path(__file__).parent.parent / "docs" / "cluster.md").read_text(encoding="utf-8")
    assert f"beside the weights ({memory.WEIGHTS} GB)" in text
    assert all(f"| {plain} GB | {low} GB |" in text for plain, low in memory.GRADIENT.values())


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_what_was_freed_is_kept_until_it_is_given_back():
    """Four blocks of 64 MB, the last still in use: what lies below it stays with the process."""
    code = """
from udpbench.core.memory import give_freed_memory_back, keep_freed_memory
def held(): return int(open("/proc/self/statm").read().split()[1]) * 4096 // 2**20
keep_freed_memory()
blocks = [b"\\1" * 2**26 for _ in range(4)]
full = held()
del blocks[:3]
kept = held()
give_freed_memory_back()
print(full - kept, full - held())
"""
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    kept, given = map(int, shown.split())
    assert kept < 8
    assert given > 180


def test_whoever_opens_a_store_keeps_what_is_freed(tiny, monkeypatch):
    """A launcher's processes and Python's functions, too, which come by no command."""
    called = []
    monkeypatch.setattr(memory, "keep_freed_memory", lambda: called.append(True))
    open_store(composed(tiny))
    assert called == [True]


# -- large pictures ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("height", "width"), [(96, 40), (92, 36), (124, 20)])
def test_an_autoencoder_makes_the_same_of_strips_of_a_large_picture(model, monkeypatch, height, width):
    x = torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(0))
    seen: list[int] = []
    real = strips.strips
    monkeypatch.setattr(strips, "strips", lambda *how: seen.append(len(found := list(real(*how)))) or found)
    with torch.no_grad():
        whole = model.encode(x), model.round_trip(x)
        assert not seen
        monkeypatch.setattr(strips, "STRIP", 32 * width)
        parts = model.encode(x), model.round_trip(x)
    assert max(seen) > 3
    torch.testing.assert_close(parts, whole, rtol=1e-5, atol=1e-5)


def test_a_gradient_goes_through_the_layers_as_they_are(model, monkeypatch):
    x = torch.rand(1, 3, 48, 16, generator=torch.Generator().manual_seed(0)).requires_grad_()
    (whole,) = torch.autograd.grad(model.round_trip(x).sum(), x)
    monkeypatch.setattr(strips, "STRIP", 1)
    assert torch.equal(torch.autograd.grad(model.round_trip(x).sum(), x)[0], whole)


@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "height"), [(3, 2, 0, 101), (3, 1, 1, 50), (1, 1, 0, 51), (7, 2, 3, 64)]
)
def test_a_convolution_sees_strips_as_it_sees_the_whole(monkeypatch, kernel, stride, padding, height):
    conv = strips.StripConv(3, 4, kernel, stride, padding).requires_grad_(False)
    x = torch.rand(2, 3, height, 9, generator=torch.Generator().manual_seed(0))
    whole = conv(x)
    monkeypatch.setattr(strips, "STRIP", 16 * 9)
    with torch.no_grad():
        torch.testing.assert_close(conv(x), whole)
