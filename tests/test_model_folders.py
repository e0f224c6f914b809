"""Model folders as people have them: damaged, of another kind, in variants, shards and single files; nothing runs on random weights."""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from drawn import DAMAGE, draws, flipped, spoil
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from shared import composed
from tiny import TINY, save_original, save_tiny, save_tiny_pixel

from udpbench.benchmark.build import build
from udpbench.benchmark.check import check_alone
from udpbench.benchmark.run import models_in, models_of, run
from udpbench.benchmark.store import Store
from udpbench.core.errors import ConfigError
from udpbench.models import folder as looks
from udpbench.models import headers
from udpbench.models.latent import LatentDiffusion
from udpbench.models.pixel import PixelDiffusion
from udpbench.models.shaped import SD15, random_pipeline

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 492265168\n"
PROMPTS = ["a photo of a ball", "giraffe"]


@pytest.fixture
def copy(tiny, tmp_path) -> Path:
    """The tiny pipeline, to be spoilt."""
    return Path(shutil.copytree(tiny, tmp_path / "model"))


def refused(path: Path, kind=LatentDiffusion, **settings) -> str:
    """The one line with which a model is refused, before anything of it is loaded."""
    with pytest.raises(ValueError, match="model own: ") as error:
        kind(str(path), "own", **settings).identity()
    assert "\n" not in str(error.value)
    return str(error.value)


def edit(file: Path, **changes) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def weights(folder: Path, part: str) -> Path:
    (file,) = (folder / part).glob("*.safetensors")
    return file


def same(one: LatentDiffusion, other: LatentDiffusion) -> bool:
    """Whether two models hold the same weights and read prompts alike."""
    pipes = one.pipe, other.pipe
    texts = [pipe.tokenizer(PROMPTS, padding="max_length").input_ids for pipe in pipes]
    return texts[0] == texts[1] and all(
        torch.equal(value, theirs[name])
        for part in ("vae", "unet", "text_encoder")
        for theirs in [pipes[1].components[part].state_dict()]
        for name, value in pipes[0].components[part].state_dict().items()
    )


# -- damage ------------------------------------------------------------------------------------------------------------

HARM: dict[str, Callable[[bytes, float], bytes | None]] = {
    **DAMAGE,
    "pointer": lambda whole, at: POINTER,
    "longer": lambda whole, at: whole + b"\0",
    # In the header of a weight file: of its values any are possible.
    "flip": lambda whole, at: flipped(whole, int(at * (header(whole) if whole[8:9] == b"{" else len(whole)))),
}


def header(weights: bytes) -> int:
    return 8 + int.from_bytes(weights[:8], "little")


@pytest.mark.slow
@draws(150)
@given(data=st.data(), how=st.sampled_from(sorted(HARM)), at=st.floats(0, 1, exclude_max=True), old=st.booleans())
def test_a_damaged_folder_is_one_line_before_any_work_and_never_random_weights(
    tiny, model, tmp_path_factory, data, how, at, old
):
    folder = tmp_path_factory.mktemp("damaged") / "model"
    shutil.copytree(tiny, folder)
    if old:
        with_old_tokenizer(folder)
    file = data.draw(st.sampled_from(sorted(p for p in folder.rglob("*") if p.is_file())))
    spoil(file, HARM[how](file.read_bytes(), at))
    found, said = LatentDiffusion(str(folder), "own"), ""
    try:
        found.identity()
    except ValueError as error:
        said = str(error)
    if said:
        assert said.startswith("model own: ")
        assert "\n" not in said
        return
    # What is harmless (a blank more in a JSON file) loads as it was; a setting turned into another is its own model.
    assert how in ("flip", "longer", "truncate") or file.name in ("tokenizer_config.json", "special_tokens_map.json")
    if how != "flip" or file.suffix == ".safetensors":
        assert same(found, model)


def with_old_tokenizer(folder: Path) -> None:
    """The same tokenizer in the files of Stable Diffusion 1.5."""
    file = folder / "tokenizer" / "tokenizer.json"
    bpe = json.loads(file.read_text())["model"]
    file.with_name("vocab.json").write_text(json.dumps(bpe["vocab"]))
    merges = ["#version: 0.2", *(" ".join(pair) for pair in bpe["merges"])]
    file.with_name("merges.txt").write_text("\n".join(merges) + "\n")
    file.unlink()


def test_the_files_of_an_old_tokenizer_read_alike(copy, model):
    with_old_tokenizer(copy)
    assert same(LatentDiffusion(str(copy), "own"), model)


def test_what_is_damaged_is_named(copy):
    file = weights(copy, "vae")
    whole = file.read_bytes()
    for spoilt, words in ((whole[:-1], "cannot be read"), (b"", "is empty"), (POINTER, "git-lfs pointer")):
        file.write_bytes(spoilt)
        assert words in (said := refused(copy))
        assert str(file) in said
    file.unlink()
    assert f"{file.parent} lacks diffusion_pytorch_model.safetensors" in refused(copy)


@pytest.mark.parametrize("part", ["vae", "unet", "text_encoder"])
def test_weights_that_are_missing_are_counted(copy, part):
    file = weights(copy, part)
    state = load_file(file)
    lost = sorted(state)[:11]
    save_file({k: v for k, v in state.items() if k not in lost}, file, metadata={"format": "pt"})
    assert f"11 of the {len(state)} weights of the {part} are missing, e.g. {lost[0]}" in refused(copy)


def test_weights_of_another_shape_kind_or_number_are_told(copy):
    file = weights(copy, "unet")
    state = load_file(file)
    save_file(state | {"conv_in.weight": torch.zeros(8, 5, 3, 3)}, file)
    assert "conv_in.weight is [8, 5, 3, 3], by the configuration of the unet it is [8, 4, 3, 3]" in refused(copy)
    save_file(state | {"conv_in.weight": state["conv_in.weight"].int()}, file)
    assert "1 of the 208 weights of the unet are missing, e.g. conv_in.weight" in refused(copy)
    save_file(state | {"conv_in.lora": torch.zeros(2)}, file)
    assert "holds 1 weights that the unet has no place for, e.g. conv_in.lora" in refused(copy)


def test_a_tokenizer_that_lost_words_or_its_length_is_told(copy):
    with_old_tokenizer(copy)
    merges = copy / "tokenizer" / "merges.txt"
    merges.write_text("".join(f"{line}\n" for line in merges.read_text().splitlines()[:-10]))
    assert "knows 310 tokens, of which no merge forms 10" in refused(copy)
    shutil.rmtree(copy / "tokenizer")
    (copy / "tokenizer").mkdir()
    assert "knows 2 tokens; the text encoder has 310" in refused(copy)


def test_a_look_is_made_once_while_the_files_are_the_same(copy, monkeypatch):
    looked = []
    monkeypatch.setattr(looks, "compare", lambda place, found, wanted, part: looked.append(part))
    for _ in range(3):
        LatentDiffusion(str(copy), "own").identity()
    assert sorted(looked) == ["text_encoder", "unet", "vae"]
    file = weights(copy, "unet")
    save_file(load_file(file) | {"more": torch.zeros(1)}, file)
    LatentDiffusion(str(copy), "own").identity()
    assert len(looked) == 6


def test_a_folder_of_stable_diffusion_s_size_is_looked_at_in_seconds(tmp_path):
    """Sparse files: 4 GB by their headers, nothing on the disk."""
    with torch.device("meta"):
        parts = {"unet": looks_module("unet"), "vae": looks_module("vae"), "text_encoder": looks_module("text")}
    save_tiny(tmp_path)
    for part, module in parts.items():
        sparse(weights(tmp_path, part), module)
        module.config.save_pretrained(tmp_path / part) if part == "text_encoder" else module.save_config(
            tmp_path / part
        )
    edit(tmp_path / "text_encoder" / "config.json", vocab_size=310)
    assert sum(p.stat().st_size for p in tmp_path.rglob("*.safetensors")) > 4e9
    start = time.perf_counter()
    found = LatentDiffusion(str(tmp_path), "own").looked_at()
    seconds = time.perf_counter() - start
    print(f"looked at in {seconds:.2f} s")
    assert found == (tmp_path, None)
    assert seconds < 30


def looks_module(part: str):
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    if part == "text":
        return CLIPTextModel(CLIPTextConfig(**SD15["text"] | {"vocab_size": 310, "max_position_embeddings": 77}))
    return {"unet": UNet2DConditionModel, "vae": AutoencoderKL}[part](**SD15[part])


def sparse(file: Path, module: torch.nn.Module) -> None:
    """A safetensors file with the names and shapes of ``module`` (float32) and no values."""
    header, end = {}, 0
    for name, value in module.state_dict().items():
        header[name] = {"dtype": "F32", "shape": list(value.shape), "data_offsets": [end, end + 4 * value.numel()]}
        end += 4 * value.numel()
    text = json.dumps(header).encode()
    with file.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        stream.truncate(8 + len(text) + end)


# -- what is not supported ---------------------------------------------------------------------------------------------


def test_pipelines_and_parts_of_other_classes_are_refused(copy):
    index = copy / "model_index.json"
    kept = index.read_text()
    for changes, words in (
        (
            {"_class_name": "StableDiffusionXLPipeline"},
            "a pipeline 'StableDiffusionXLPipeline' is not supported; allowed",
        ),
        ({"_class_name": ["pipe", "Pipe"]}, "a pipeline ['pipe', 'Pipe'] is not supported"),
        ({"text_encoder_2": ["transformers", "CLIPTextModelWithProjection"]}, "has a part text_encoder_2"),
        ({"scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"]}, "scheduler is diffusers.FlowMatchEuler"),
        (
            {"vae": ["diffusers", "AutoencoderTiny"]},
            "vae is diffusers.AutoencoderTiny, not supported; allowed are diff",
        ),
        ({"unet": None}, "unet is None, not supported"),
    ):
        edit(index, **changes)
        assert words in refused(copy)
        index.write_text(kept)


@pytest.mark.parametrize(
    ("part", "changes", "words"),
    [
        ("unet", {"out_channels": 8}, "predicts 8 channels for 4 of the latents; a learned variance is not supported"),
        (
            "unet",
            {
                "addition_embed_type": "text_time",
                "addition_time_embed_dim": 8,
                "projection_class_embeddings_input_dim": 64,
            },
            "addition_embed_type 'text_time' (as SDXL has)",
        ),
        ("unet", {"class_embed_type": "timestep"}, "wants classes"),
        ("vae", {"shift_factor": 0.1}, "shifts its latents"),
        ("text", {"hidden_size": 8}, "reads texts of width 16, its text encoder writes 8"),
    ],
)
def test_what_a_configuration_says_is_refused(tmp_path, part, changes, words):
    random_pipeline(TINY | {part: TINY[part] | changes}).save_pretrained(tmp_path)
    assert words in refused(tmp_path)


@pytest.mark.parametrize(
    ("part", "changes", "words"),
    [
        ("vae", {"scaling_factor": None}, "scaling_factor must be a number above 0, it is None"),
        ("vae", {"scaling_factor": 0}, "scaling_factor must be a number above 0, it is 0"),
        ("vae", {"scaling_factor": float("nan")}, "scaling_factor must be a number above 0, it is nan"),
        ("scheduler", {"variance_type": "learned_range"}, "'learned_range'; a learned variance is not supported"),
        ("scheduler", {"beta_start": float("nan")}, "scheduler_config.json: the betas that it gives make no noise schedule"),
        ("scheduler", {"beta_end": 2.0}, "scheduler_config.json: the betas that it gives make no noise schedule"),
        ("scheduler", {"num_train_timesteps": 0}, "scheduler_config.json: the betas that it gives make no noise schedule"),
    ],
)  # fmt: skip
def test_numbers_that_no_model_has_are_refused_before_any_work(copy, part, changes, words):
    edit(copy / part / ("scheduler_config.json" if part == "scheduler" else "config.json"), **changes)
    assert words in refused(copy)


@pytest.mark.parametrize(
    "changes",
    [{"prediction_type": "sample"}, {"use_flow_sigmas": True}, {"_class_name": "FlowMatchEulerDiscreteScheduler"}],
)
def test_other_predictions_are_refused(copy, changes):
    edit(copy / "scheduler" / "scheduler_config.json", **changes)
    assert "allowed are epsilon, v_prediction" in refused(copy)


def test_pixel_models_are_looked_at_too(tmp_path, tiny):
    save_tiny_pixel(tmp_path)
    PixelDiffusion(str(tmp_path), "own").identity()
    assert "a pipeline 'StableDiffusionPipeline' is not supported" in refused(tiny, PixelDiffusion)
    file = weights(tmp_path, "unet")
    file.write_bytes(file.read_bytes()[:1000])
    assert "cannot be read" in refused(tmp_path, PixelDiffusion)


def test_no_python_of_a_folder_is_executed(copy, tmp_path):
    """Neither by a look nor, with the look left out, by diffusers: older versions execute it."""
    from diffusers import StableDiffusionPipeline

    witness = tmp_path / "executed"
    code = f"open({str(witness)!r}, 'w')\nfrom diffusers import UNet2DConditionModel\nclass Own(UNet2DConditionModel): pass\n"
    for place in (copy / "unet" / "own.py", copy / "own.py"):
        place.write_text(code)
    edit(copy / "model_index.json", unet=["own", "Own"])
    edit(copy / "unet" / "config.json", _class_name="Own")
    assert "unet is own.Own, not supported" in refused(copy)
    with pytest.raises(Exception, match=r"trust_remote_code|own"):
        StableDiffusionPipeline.from_pretrained(copy, safety_checker=None)
    edit(copy / "model_index.json", unet=["diffusers", "UNet2DConditionModel"], safety_checker=["own", "Own"])
    assert "has a part safety_checker (own.Own)" in refused(copy)
    assert not witness.exists()
    assert not [name for name in sys.modules if name.endswith(".own") and not name.startswith("cv2.")]


# -- variants, shards, pickles, single files ---------------------------------------------------------------------------


@pytest.mark.parametrize("kept_plain", [(), ("vae",)])
def test_files_of_a_variant_load(copy, model, kept_plain):
    for part in {"vae", "unet", "text_encoder"} - set(kept_plain):
        file = weights(copy, part)
        file.rename(file.with_name(f"{file.stem}.fp16.safetensors"))
    found = LatentDiffusion(str(copy), "own")
    assert found.looked_at() == (copy, "fp16")
    assert same(found, model)


def test_plain_files_come_before_a_variant_and_a_variant_must_be_whole(copy, model):
    file = weights(copy, "unet")
    other = file.with_name(f"{file.stem}.fp16.safetensors")
    other.write_bytes(b"")
    assert same(LatentDiffusion(str(copy), "own"), model)
    file.unlink()
    assert f"{other} is empty" in refused(copy)


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_shards_load_and_each_is_looked_at(tiny, model, tmp_path, variant):
    model.pipe.save_pretrained(tmp_path, max_shard_size="100KB", variant=variant)
    shards = sorted((tmp_path / "unet").glob("*-of-*.safetensors"))
    assert len(shards) > 1
    assert same(LatentDiffusion(str(tmp_path), "own"), model)
    whole = shards[1].read_bytes()
    shards[1].write_bytes(whole[:-5])
    assert f"{shards[1]} cannot be read" in refused(tmp_path)
    shards[1].unlink()
    assert f"lacks {shards[1].name}" in refused(tmp_path)


def test_pickles_are_read_as_tensors_only(copy, model, tmp_path):
    for part in ("vae", "unet", "text_encoder"):
        file = weights(copy, part)
        name = "pytorch_model.bin" if part == "text_encoder" else "diffusion_pytorch_model.bin"
        torch.save(load_file(file), file.with_name(name))
        file.unlink()
    assert same(LatentDiffusion(str(copy), "own"), model)
    witness = tmp_path / "executed"

    class Payload:
        def __reduce__(self):
            return open, (str(witness), "w")

    torch.save({"conv_in.weight": Payload()}, copy / "unet" / "diffusion_pytorch_model.bin")
    assert "holds more than tensors, which is never loaded" in refused(copy)
    assert not witness.exists()


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["safetensors", "ckpt"])
def test_a_single_file_in_the_original_layout_loads(tiny, model, tmp_path, suffix):
    file = save_original(tiny, tmp_path / f"anything.{suffix}")
    config = shutil.copytree(tiny, tmp_path / "config", ignore=shutil.ignore_patterns("*.safetensors"))
    found = LatentDiffusion(str(file), "own", config=str(config))
    assert found.capabilities == frozenset({"denoise", "inpaint", "latent", "text"})
    assert same(found, model)
    before = found.identity()
    edit(config / "scheduler" / "scheduler_config.json", beta_end=0.013)
    after = LatentDiffusion(str(file), "own", config=str(config)).identity()
    assert {part for part in before if before[part] != after[part]} == {"scheduler"}


def test_a_single_file_that_is_another_or_damaged_is_refused(tiny, tmp_path):
    file = save_original(tiny, tmp_path / "anything.safetensors")
    state = load_file(file)
    assert "config" in (said := refused(file))
    assert "stable-diffusion-v1-5/stable-diffusion-v1-5" in said
    assert "give a folder with these files" in said
    save_file({k: v for k, v in state.items() if "input_blocks.1." not in k}, file)
    assert "weights of the unet are missing, e.g. down_blocks.0.resnets.0" in refused(file, config=str(tiny))
    save_file({k: v for k, v in state.items() if not k.startswith("first_stage")}, file)
    assert "no first_stage_model.* (vae)" in refused(file, config=str(tiny))
    file.write_bytes(file.read_bytes()[:-1])
    assert "cannot be read" in refused(file, config=str(tiny))
    assert "give the file itself, e.g. anything.safetensors" in refused(tmp_path)


# -- the hub -----------------------------------------------------------------------------------------------------------


COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cached(tiny, tmp_path, monkeypatch) -> Path:
    """A snapshot of ``owner/name`` at revision ``COMMIT`` in the hub's cache."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    snapshot = tmp_path / "hub" / "models--owner--name" / "snapshots" / COMMIT
    return Path(shutil.copytree(tiny, snapshot))


def test_a_snapshot_of_the_hub_is_looked_at_once_it_is_here(cached, model):
    hub = {"path": "owner/name", "name": "own", "revision": COMMIT}
    assert LatentDiffusion(**hub).identity() == {"hub": "owner/name", "revision": COMMIT, "dtype": "fp32"}
    assert same(LatentDiffusion(**hub), model)
    weights(cached, "vae").unlink()
    with pytest.raises(ValueError, match="model own: .* lacks diffusion_pytorch_model.safetensors"):
        LatentDiffusion(**hub).identity()
    assert LatentDiffusion("owner/other", "own", revision=COMMIT).looked_at() is None


def test_a_branch_is_refused_for_it_may_come_to_mean_other_weights(cached):
    (refs := cached.parent.parent / "refs").mkdir()
    (refs / "main").write_text(COMMIT)
    with pytest.raises(ValueError, match=f"model own: revision 'main' .* on this machine it is {COMMIT}$"):
        LatentDiffusion("owner/name", "own", revision="main").identity()
    with pytest.raises(ValueError, match="model own: revision 'main' .* 40 hex digits$"):
        LatentDiffusion("owner/other", "own", revision="main").identity()


def test_a_model_of_the_hub_is_known_to_be_the_one_in_a_folder_once_it_is_here(cached, tiny):
    by_id = LatentDiffusion("owner/name", "own", revision=COMMIT)
    assert by_id.contents() == LatentDiffusion(str(tiny), "own").contents()
    elsewhere = LatentDiffusion("owner/other", "own", revision=COMMIT)
    assert elsewhere.contents() == elsewhere.identity()


@pytest.mark.slow
def test_weights_that_cannot_be_had_are_told_before_the_first_stage(graph, tmp_path):
    small = graph("model.path=owner/name", f"model.revision={COMMIT}", "protect=noise")
    with pytest.raises(ConfigError, match="model local: cannot be loaded from owner/name .*hf download") as error:
        run(small, Store(tmp_path / "store"))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "store").exists()


HELD = {
    "ensemble": ["protect=ensemble", "protect.further.other.path=owner/name", "protect.further.other.revision=COMMIT"],
    "attack": ["attack=pdm_pure", "+model@attack.upscaler=sd_x4", "attack.upscaler.path=owner/name", "attack.upscaler.revision=COMMIT"],
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ensemble", "attack"])
def test_weights_that_a_method_holds_and_that_cannot_be_had_are_told_before_the_first_stage(graph, tmp_path, kind):
    small = graph(*(word.replace("COMMIT", COMMIT) for word in HELD[kind]))
    with pytest.raises(ConfigError, match="cannot be loaded from owner/name .*hf download") as error:
        run(small, Store(tmp_path / "store"))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "store").exists()


@pytest.mark.slow
def test_a_model_is_asked_for_once_though_roles_and_metrics_have_it(graph):
    words = [f"+metric@perturbation.bundle.{name}={name}" for name in ("denoising", "inconsistency")]
    small = graph("model.path=owner/name", f"model.revision={COMMIT}", "protect=photoguard", *words)
    cell = small.cell
    (model,) = models_of(cell, small.stages)
    assert model is cell.surrogate.component
    held = [cell.perturbation_metrics[name].component for name in ("denoising", "inconsistency")]
    assert [*models_in(held)] == [metric.model for metric in held]
    assert models_of(cell, [small.data]) == []
    key = cell.perturbation_metrics["denoising"].key
    scores = [stage for stage in small.stages if key.items() <= stage.settings.items()]
    assert models_of(cell, scores) == [held[0].model]


# -- who is asked ------------------------------------------------------------------------------------------------------


def alone(tiny: Path, method: str, *overrides: str) -> None:
    """Build and check what ``protect`` or ``purify`` would use of a cell."""
    cfg = composed(tiny, *overrides)
    check_alone(build(cfg, cfg.hydra.runtime.choices, alone=method), method)


@pytest.mark.slow
def test_protect_asks_of_a_model_only_what_it_uses(graph, tiny, tmp_path):
    random_pipeline(TINY | {"unet": TINY["unet"] | {"in_channels": 9}}).save_pretrained(tmp_path / "inpaint")
    inpainting, broken = f"model.path={tmp_path / 'inpaint'}", f"model.path={tmp_path / 'no'}"
    alone(tiny, "protect", "protect=photoguard", inpainting)
    with pytest.raises(ConfigError, match="dreambooth: needs a UNet that takes nothing beside"):
        graph("protect=photoguard", inpainting)
    for protect in ("advdm", "noise_rms protect@like=advdm"):
        with pytest.raises(ConfigError, match="^advdm: needs a UNet that takes nothing beside"):
            alone(tiny, "protect", *f"protect={protect}".split(), inpainting)
    alone(tiny, "protect", "protect=noise", broken)
    alone(tiny, "attack", "attack=jpeg", broken)
    alone(tiny, "protect", "protect=photoguard", "model@purifier=local", f"purifier.path={tmp_path / 'no'}")
    for protect in ("photoguard", "noise_rms protect@like=photoguard"):
        with pytest.raises(ConfigError, match="^model local: no folder '.*/no'"):
            alone(tiny, "protect", *f"protect={protect}".split(), broken)


def test_a_full_memory_is_not_told_as_a_damaged_file(tmp_path):
    def raises(error: Exception):
        def do() -> None:
            raise error

        return do

    with pytest.raises(ValueError, match="cannot be read: it is damaged"):
        headers.by_library(tmp_path, raises(KeyError("no such weight")))
    with pytest.raises(MemoryError):
        headers.by_library(tmp_path, raises(MemoryError()))
