"""A bridge from protected to clean pictures: its marginals, and what it learns from pairs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from udpbench.attack import bridge as bridge_module
from udpbench.attack.bridge import Bridge, between
from udpbench.benchmark.store import Store
from udpbench.core.images import as_saved, write_png
from udpbench.data.folder import Folder
from udpbench.interfaces import Run
from udpbench.world import renderer

SETTINGS = {
    "widths": [8, 16], "steps": 60, "batch": 8, "crop": 16, "noise": 0.5, "sample_steps": 4, "lr": 3e-3, "ema": 0.9,
    "weight_decay": 0.0, "decay": "cosine",
}  # fmt: skip


def pattern(x: torch.Tensor) -> torch.Tensor:
    """A protection that adds the same checks of 16 levels to every picture."""
    checks = (torch.arange(x.shape[-2])[:, None] + torch.arange(x.shape[-1])) % 2
    return as_saved((0.1 + 0.8 * x + 16 / 255 * (2 * checks - 1)).clamp(0, 1))


@pytest.fixture(scope="module")
def leak(tmp_path_factory) -> tuple[Path, Path]:
    """Clean and protected pictures, of two sizes."""
    folders = tmp_path_factory.mktemp("clean"), tmp_path_factory.mktemp("protected")
    for i, x in enumerate(renderer.render(renderer.draw(8, torch.Generator().manual_seed(0)), 32)):
        clean = as_saved(0.1 + 0.8 * x)[:, : 32 - i % 2]
        write_png(folders[0] / f"{i}.png", clean)
        write_png(folders[1] / f"{i}.png", pattern(x)[:, : 32 - i % 2])
    return folders


def test_steps_of_the_bridge_have_its_marginals():
    """Walked from T with the true x_0, x_s is normal of mean (s/T)^2 x_T + (1 - (s/T)^2) x_0 and variance
    s^2 (1 - (s/T)^2)."""
    rng, big, x0, end = torch.Generator().manual_seed(0), 2.0, -0.3, 0.9
    x = torch.full((200_000,), end)
    for t, s in ((1.0, 0.8), (0.8, 0.5), (0.5, 0.3)):
        noise = torch.randn(x.shape, generator=rng)
        x = between(torch.full_like(x, x0), x, (s / t) ** 2, big * t, noise)
        r = s**2
        assert float(x.mean()) == pytest.approx(r * end + (1 - r) * x0, abs=0.01)
        assert float(x.var()) == pytest.approx((big * s) ** 2 * (1 - r), rel=0.02)


def test_a_walk_with_the_truth_ends_there(leak):
    attack = Bridge(clean=leak[0], protected=leak[1], **SETTINGS)
    x0, end = torch.rand(1, 3, 9, 11), torch.rand(1, 3, 9, 11)
    torch.testing.assert_close(attack.walk(end, lambda x, time, end: x0, [Run().rng(0)]), x0)


@pytest.mark.slow
def test_it_learns_the_inverse_from_pairs_and_purifies_other_pictures(leak):
    others = renderer.render(renderer.draw(2, torch.Generator().manual_seed(9)), 32)
    clean, protected = [as_saved(0.1 + 0.8 * x) for x in others], [pattern(x) for x in others]
    odd = [protected[0], protected[1][:, :30, :27]]
    made = Bridge(clean=leak[0], protected=leak[1], **SETTINGS).purify(odd, ["a", "b"], ["", ""], None, Run())
    for got, x, y in zip(made, odd, [clean[0], clean[1][:, :30, :27]], strict=True):
        assert got.shape == x.shape
        assert (got - y).square().mean() < 0.5 * (x - y).square().mean()


def test_an_interrupted_training_ends_in_the_same_pictures(leak, tmp_path, pictures):
    few = SETTINGS | {"steps": 4, "save_every": 1}

    def made(steps: int, scratch: Path | None) -> torch.Tensor:
        attack = Bridge(clean=leak[0], protected=leak[1], **few | {"steps": steps, "decay": "constant"})
        return attack.purify(pictures[:1], ["a"], [""], None, Run(scratch=scratch))[0]

    made(3, tmp_path)  # leaves the checkpoint of two steps
    assert torch.equal(made(4, tmp_path), made(4, None))


def test_the_key_is_of_the_pairs_wherever_they_lie(leak, tmp_path):
    one = Bridge(clean=leak[0], protected=leak[1], **SETTINGS)
    turned = Bridge(clean=leak[1], protected=leak[0], **SETTINGS)
    assert one.identity() != turned.identity()
    (tmp_path / "clean").symlink_to(leak[0])
    assert Bridge(clean=tmp_path / "clean", protected=leak[1], **SETTINGS).identity() == one.identity()
    assert {"clean", "protected"} <= set(Bridge.places)


def test_a_leak_that_holds_a_picture_to_purify_is_refused(leak, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "my.png").write_bytes((leak[0] / "3.png").read_bytes())
    data = Folder(path=tmp_path / "mine", prompt="a {token} ring")
    with pytest.raises(ValueError, match=r"attack bridge: .*3.png of the pairs is .*my.png, which is to be purified"):
        Bridge(clean=leak[0], protected=leak[1], **SETTINGS).check_data(data)
    write_png(tmp_path / "mine" / "my.png", torch.rand(3, 16, 16))
    Bridge(clean=leak[0], protected=leak[1], **SETTINGS).check_data(data)


def test_pairs_without_a_twin_are_told(leak, tmp_path):
    write_png(tmp_path / "0.png", torch.rand(3, 32, 32))
    with pytest.raises(ValueError, match=r"1\.png"):
        Bridge(clean=leak[0], protected=tmp_path, **SETTINGS).pairs()


@pytest.mark.slow
def test_one_network_is_trained_for_all_pictures_and_an_interrupted_stage_goes_on(leak, graph, tmp_path, monkeypatch):
    """Whatever the number of pictures that fit into memory."""
    trained, real = [], bridge_module.fit

    def counted(*args, **kwargs):
        trained.append(kwargs["checkpoint"])
        return real(*args, **kwargs)

    monkeypatch.setattr(bridge_module, "fit", counted)
    few = [f"attack.{k}={str(v).replace(' ', '')}" for k, v in SETTINGS.items()]
    words = ["attack=bridge", f"attack.clean={leak[0]}", f"attack.protected={leak[1]}", *few, "attack.steps=2"]
    made = graph("protect=noise", *words, "data.train=3", "arms=[clean,purified]")
    store = Store(tmp_path / "store", Run().device, grad_batch=1)
    (stage,) = [stage for stage in made.stages if stage.name == "attack"]
    store.do(stage)
    assert len(trained) == 1
    assert trained[0] is not None, "its checkpoint lies in the stage"
    assert stage.resumable
