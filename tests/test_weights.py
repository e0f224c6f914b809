"""Weights that are missing: the line says where they go and which setting of the cell takes another place."""

from __future__ import annotations

import pytest
import torch

from udpbench.benchmark.check import errors_of
from udpbench.commands import score
from udpbench.commands.preparing import composed, prepare
from udpbench.metrics.lpips import Lpips

pytestmark = pytest.mark.slow  # every test composes configurations

EDITS = ["task=img2img", "metrics=edits"]
PLACES = [
    (EDITS, "metrics.bundle.edit_lpips.of.weights"),
    (["+metric@metrics.extra.kid=kid", "task.pictures=64"], "metrics.extra.kid.features.weights"),
    (["+metric@perturbation.bundle.lpips=lpips_alex"], "perturbation.bundle.lpips.weights"),
    (["attack=impress_glaze"], "attack.weights"),
    (["attack=chain", "attack@attack.members.b=impress_glaze"], "attack.members.b.weights"),
    (["protect=glaze", "protect.perceptual=lpips_vgg"], "protect.weights"),
    (["protect=noise_rms", "protect@like=glaze_released"], "like.weights"),
    (["budget=perceptual", "budget.network=lpips_vgg"], "budget.weights"),
]


@pytest.fixture(autouse=True)
def _no_weights(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))


def lines(*words: str) -> list[str]:
    """Everything that is wrong with the cell of these words, or absent from it, about weights."""
    try:
        return [reason for reason in prepare(composed(list(words))).cell.absent.values() if "weights" in reason]
    except ValueError as error:
        return [line for line in str(error).splitlines() if "weights" in line]


@pytest.mark.parametrize(("words", "key"), PLACES, ids=[key for _, key in PLACES])
def test_the_setting_that_takes_the_file_is_named_and_does(words, key):
    (line,) = lines(*words)
    assert ": weights are missing; put https://" in line
    assert line.endswith(f", or say {key}=FILE")
    (line,) = lines(*words, f"{key}=/no/file")
    assert "there is no file /no/file; the weights are https://" in line


def test_where_no_cell_is_known_no_setting_is_made_up(folder):
    (line,) = errors_of(Lpips(net="alex").check)
    assert line.endswith(", or give its path as the setting `weights` of what needs it")
    found = score.scores(folder, folder, ["lpips_alex"])
    assert found["absent"]["lpips_alex"].endswith("alexnet-owt-7be5be79.pth"), "score takes no settings of metrics"
