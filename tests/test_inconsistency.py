"""Reconstruction inconsistency: what it measures, and when it gives a change away."""

from __future__ import annotations

import pytest
import torch

from udpbench.core.images import write_png
from udpbench.interfaces import Run
from udpbench.metrics.inconsistency import Inconsistency, _auc
from udpbench.models.pixel import PixelDiffusion


class Blur:
    """An autoencoder that can be written down: it forgets all but the mean of each picture."""

    name, capabilities = "blur", frozenset({"latent"})

    def to(self, device):
        return self

    def identity(self):
        return {"vae": "a", "unet": "b", "dtype": "fp32"}

    def round_trip(self, x):
        return x.mean((1, 2, 3), keepdim=True).expand_as(x)


def folder(path, spreads):
    """Pictures of half black ``0.5 - s`` and half white ``0.5 + s``: their inconsistency is 255 s."""
    path.mkdir()
    for i, s in enumerate(spreads):
        x = torch.full((3, 8, 8), 0.5)
        x[:, :4] -= s / 255
        x[:, 4:] += s / 255
        write_png(path / f"{i}.png", x)
    return path


def test_both_scores_in_closed_form(tmp_path):
    # 127.5 is no 8-bit value: halves are saved as 127 or 128, and half a level is within the tolerance.
    metric = Inconsistency(model=Blur())
    got, ref = folder(tmp_path / "got", [30, 50, 10]), folder(tmp_path / "ref", [20, 20, 20])
    found = metric(got, ref, Run(batch=2))
    assert found["inconsistency"] == pytest.approx(30, abs=0.6)
    assert found["inconsistency_auc"] == pytest.approx(2 / 3)
    assert metric(ref, ref, Run(batch=2))["inconsistency_auc"] == 0.5
    assert set(metric.per_image(got, ref, Run(batch=2))["1.png"]) == {"inconsistency", "original"}


def test_against_noise_it_says_whether_being_protected_shows_or_being_changed(tmp_path):
    metric = Inconsistency(model=Blur())
    got, noise = folder(tmp_path / "got", [30, 50, 10]), folder(tmp_path / "noise", [40, 40, 10])
    wins = (1 + 3 + 0.5) / 9  # 30 beats the 10; 50 beats all; 10 ties with the 10
    assert metric.against_noise(got, noise, Run(batch=2)) == {"inconsistency_auc_vs_noise": pytest.approx(wins)}


def test_it_is_known_by_its_autoencoder_alone():
    assert Inconsistency(model=Blur()).identity() == {"vae": "a", "dtype": "fp32"}


def test_a_model_without_an_autoencoder_is_told(tmp_path):
    with pytest.raises(ValueError, match="inconsistency: model ddpm has no autoencoder"):
        Inconsistency(model=PixelDiffusion(str(tmp_path), "ddpm"))


def test_the_auc_counts_every_pair_and_ties_half():
    rng = torch.Generator().manual_seed(0)
    changed, original = (torch.randint(20, (n,), generator=rng).float() for n in (40, 30))
    pairs = [(a > b) + 0.5 * (a == b) for a in changed.tolist() for b in original.tolist()]
    assert _auc(changed, original) == pytest.approx(sum(pairs) / len(pairs), rel=1e-12)
