"""The embedded models are what the README says they are."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from shared import Losses

from experiments.embedded_models import build, measure
from udpbench.attack.diffpure import DiffPure
from udpbench.attack.impress import Impress
from udpbench.attack.impress_pp import ImpressPP
from udpbench.core import images
from udpbench.core.images import write_png
from udpbench.core.visibility import psnr
from udpbench.interfaces import Run
from udpbench.metrics.judge import JudgeMetric
from udpbench.metrics.precision_recall import precision_recall
from udpbench.models.features import EfficientNetLite0
from udpbench.models.latent import LatentDiffusion
from udpbench.models.micro.judge import load_judge
from udpbench.models.pixel import PixelDiffusion
from udpbench.models.sample import sample
from udpbench.world import renderer
from udpbench.world.renderer import SCENES

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def model() -> LatentDiffusion:
    return LatentDiffusion("pkg:micro", "micro")


@pytest.fixture(scope="module")
def judge():
    return load_judge("judge", torch.device("cpu"))


def test_weights_are_small():
    total = sum(p.stat().st_size for p in build.WEIGHTS.rglob("*") if p.is_file())
    assert total < 40e6


def test_the_recorded_measurements_hold_what_is_promised():
    found = json.loads((build.WEIGHTS / "measured.json").read_text())["micro"]
    assert found["autoencoder"]["psnr_subjects"] >= 28
    assert found["judge"]["acc_subject"] >= 0.98
    assert found["judge_after_round_trip"]["acc_subject"] >= 0.95
    assert found["prompts"]["acc_all"] >= 0.9  # class, colour, texture and scene at once
    pixel = json.loads((build.WEIGHTS / "measured.json").read_text())["micro_pixel"]
    assert pixel["psnr_world_100"] > pixel["psnr_world_100_noise_alone"] + 6
    x4 = json.loads((build.WEIGHTS / "measured.json").read_text())["micro_x4"]
    assert x4["psnr_world"] > x4["psnr_world_lanczos"] + 0.5 > x4["psnr_world_resize"] + 0.5
    assert x4["psnr_photographs"] < x4["psnr_photographs_resize"] - 1, "as its documentation says"


@pytest.mark.slow
def test_the_autoencoder_is_as_measured(model):
    assert_measured(model, "micro")


def assert_measured(model: LatentDiffusion, name: str) -> None:
    """Its autoencoder's PSNR on subjects is the one in ``measured.json``."""
    recorded = json.loads((build.WEIGHTS / "measured.json").read_text())[name]["autoencoder"]
    subjects = measure.held_out_subjects(torch.Generator().manual_seed(1))
    assert measure.round_trip(model.pipe.vae, subjects) == pytest.approx(recorded["psnr_subjects"], abs=0.05)


@pytest.mark.slow
def test_the_model_of_pixels_takes_noise_away():
    """DiffPure's way there and back, by the embedded model: nearer the picture than its noise by 6 dB and more."""
    pixels = PixelDiffusion("pkg:micro_pixel", "micro_pixel")
    x = renderer.render(renderer.draw(4, torch.Generator().manual_seed(5)))
    made = DiffPure(sampler="ddpm", t=100, steps=20).purify(list(x), list("abcd"), [""] * 4, pixels, Run())
    a = float(pixels.alpha_bar[99])
    alone = x + ((1 - a) / a) ** 0.5 / 2 * torch.randn(x.shape, generator=torch.Generator().manual_seed(6))
    assert float(psnr(torch.stack(made), x).mean()) > float(psnr(alone.clamp(0, 1), x).mean()) + 6


def test_the_grey_box_shares_all_but_the_unet(model):
    mine, other = model.identity(), LatentDiffusion("pkg:micro_b", "micro_b").identity()
    assert {part for part in mine if mine[part] == other.get(part)} >= {"vae", "text_encoder", "tokenizer"}
    assert mine["unet"] != other["unet"]


@pytest.mark.slow
def test_the_black_box_shares_no_weights(model):
    black = LatentDiffusion("pkg:micro_c", "micro_c")
    mine, other = model.identity(), black.identity()
    assert {part for part in ("vae", "unet", "text_encoder") if mine[part] == other[part]} == set()
    assert_measured(black, "micro_c")


def test_the_judge_is_unsure_of_garbage(judge):
    x = torch.rand(64, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    assert (judge.classify(x)["shape"] == -1).float().mean() > 0.9


@pytest.mark.slow
@pytest.mark.parametrize("subject", [0, 1])
def test_the_ceiling_is_reachable(model, subject):
    """Pictures after one round trip score precision and recall >= 0.6 in the scoring setting of conf/features/efflite0.yaml."""
    rng = torch.Generator().manual_seed(5)
    ref, held = (renderer.render(renderer.draw(200, rng, renderer.subject(subject))) for _ in range(2))
    setting = yaml.safe_load((ROOT / "conf" / "features" / "efflite0.yaml").read_text())
    extractor = EfficientNetLite0(setting["size"], setting["blur_sigma"])
    network = extractor.network(torch.device("cpu"))
    with torch.inference_mode():
        back = torch.cat([model.round_trip(x).clamp(0, 1) for x in held.split(50)])
        features = [torch.cat([network(extractor.prepared(x)) for x in pictures.split(50)]) for pictures in (back, ref)]
    assert min(precision_recall(*features)) >= 0.6


@pytest.mark.slow
def test_the_untuned_model_is_at_chance_on_a_subject(model, judge):
    """Prompts say the class and the scene; second colour, colour and texture must be guessed: 1 in 8 * 7 * 3 at best."""
    truth = renderer.subject(0)
    prompts = [renderer.caption(truth.noun, token="sks", scene=s) for s in renderer.SCENES] * 4
    made = torch.cat(list(sample(model, prompts, range(24), Run(0), steps=8, guidance=2.0)))
    told = judge.classify(made)
    right = [told[k] == getattr(truth, k) for k in ("shape", "color", "second", "texture")]
    assert torch.stack(right).all(0).float().mean() <= 0.1
    assert (told["shape"] == truth.shape).float().mean() >= 0.5  # it does follow the class noun


@pytest.mark.slow
@pytest.mark.parametrize(("option", "kind"), [("impress", Impress), ("impress_pp", ImpressPP)])
def test_the_rate_of_a_preset_is_one_at_which_the_loss_of_clean_pictures_falls(model, option, kind):
    """At six times its rate IMPRESS's rises to five times its start and stays there, and the pictures are ruined."""
    settings = yaml.safe_load((ROOT / "conf" / "attack" / f"{option}.yaml").read_text())
    del settings["_target_"]
    log, x = Losses(), renderer.render(renderer.draw(2, Run().rng("clean"), renderer.subject(110)), 64)
    kind(**settings | {"iterations": 10}).purify(list(x), ["a", "b"], ["", ""], model, Run(log=log))
    assert max(log.values) < 1.5 * log.values[0]
    assert log.values[-1] < 0.9 * log.values[0]


def test_subject_and_scene_are_counted_as_the_prompts_say(tmp_path, monkeypatch):
    told = {
        "shape": [0, 0, 0, -1],
        "color": [1, 1, 1, -1],
        "second": [2, 2, 2, -1],
        "texture": [3, 3, 0, -1],
        "scene": [0, 1, 0, -1],
    }

    class Fake:
        def classify(self, x):
            return {k: torch.tensor(v)[(x[:, 0, 0, 0] * 255).round().long()] for k, v in told.items()}

    monkeypatch.setattr("udpbench.models.micro.judge.load_judge", lambda name, device: Fake())
    for i in range(4):
        write_png(tmp_path / "got" / f"{i}.png", torch.full((3, 64, 64), i / 255))
    texts = [
        f"a photo of a ring {SCENES[0]}",
        f"a photo of a ring {SCENES[0]}",
        "a photo of a ring",
        f"a photo of a ring {SCENES[1]}",
    ]
    images.write_metadata(tmp_path / "got", {f"{i}.png": {"text": text} for i, text in enumerate(texts)})
    (tmp_path / "data.json").write_text(json.dumps({"truth": {"shape": 0, "color": 1, "second": 2, "texture": 3}}))
    found = JudgeMetric()(tmp_path / "got", tmp_path, Run(batch=2))
    assert found == {"subject_acc": 0.5, "scene_acc": pytest.approx(1 / 3)}
