"""The model wrapper against plain diffusers; the tokenizer; generation; identity."""

from __future__ import annotations

import shutil
from types import SimpleNamespace

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler
from scipy.stats import chisquare
from tiny import save_tiny

from experiments.embedded_models import build
from udpbench.commands.searchpath import option_files
from udpbench.interfaces import Run
from udpbench.models import diffusion, pretrained
from udpbench.models.latent import LatentDiffusion
from udpbench.models.pixel import PixelDiffusion
from udpbench.models.sample import make_solver, sample
from udpbench.models.upscaler import Upscaler
from udpbench.world import renderer


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    return build.tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def velocity(tmp_path_factory) -> LatentDiffusion:
    return LatentDiffusion(str(save_tiny(tmp_path_factory.mktemp("v"), prediction_type="v_prediction")), "velocity")


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# -- memory ----------------------------------------------------------------------------------------------------------


def test_low_memory_keeps_less_and_changes_no_gradient(tiny):
    def gradient(low: bool) -> tuple[torch.Tensor, int]:
        model, sizes = LatentDiffusion(str(tiny), "tiny").on(Run(low_memory=low)), []
        x = torch.rand((1, 3, 64, 64), generator=torch.Generator().manual_seed(0)).requires_grad_(True)

        def kept(saved: torch.Tensor) -> torch.Tensor:
            sizes.append(saved.numel())
            return saved

        with torch.autograd.graph.saved_tensors_hooks(kept, lambda saved: saved):
            z = model.encode(x)
            loss = model.loss(z, model.embed(["a photo"]), torch.tensor([500]), normal(*z.shape))
        return torch.autograd.grad(loss.sum(), x)[0], sum(sizes)

    (one, much), (other, little) = gradient(low=False), gradient(low=True)
    torch.testing.assert_close(one, other)
    assert little < 0.6 * much


# -- tokenizer ---------------------------------------------------------------------------------------------------------


def test_every_word_of_the_world_is_one_token(words):
    names = (
        *renderer.SHAPES,
        *renderer.COLORS,
        *renderer.TEXTURES,
        *renderer.SCENES,
        *build.RARE_TOKENS,
        "a photo of a picture style",
    )
    for word in {w for name in names for w in name.split()}:
        assert words.tokenize(word) == [f"{word}</w>"]
    assert words.tokenize("a photo of a sks ring in the snow") == [
        f"{w}</w>" for w in ["a", "photo", "of", "a", "sks", "ring", "in", "the", "snow"]
    ]


def test_other_words_fall_apart_and_come_back(words):
    tokens = words.tokenize("a photo of a giraffe")
    assert len(tokens) > 5
    assert words.unk_token not in tokens
    ids = words("a photo of a giraffe (blue), 3x", add_special_tokens=False).input_ids
    assert words.decode(ids).replace(" ", "") == "aphotoofagiraffe(blue),3x"


def test_tokens_are_distinct_and_within_the_encoder_s_vocabulary(words):
    ids = [words(w, add_special_tokens=False).input_ids[0] for w in ("red", "ring", "sks", "sand", "sea")]
    assert len(set(ids)) == 5
    full = words(
        "a photo of a " + "red " * 50, padding="max_length", truncation=True, max_length=words.model_max_length
    ).input_ids
    assert len(full) == build.MAX_TOKENS
    assert max(full) < len(words)
    assert full[0] == words.bos_token_id
    assert full[-1] == words.eos_token_id


# -- loss --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_loss_is_that_of_plain_diffusers(model, velocity, kind):
    ours = model if kind == "epsilon" else velocity
    pipe = ours.pipe
    z, noise, t = normal(3, 4, 8, 8), normal(3, 4, 8, 8, seed=1), torch.tensor([0, 400, 999])
    cond = ours.embed(["a photo of a ring", "", "a photo of a red ball"])
    with torch.no_grad():
        told = pipe.unet(pipe.scheduler.add_noise(z, noise, t), t, encoder_hidden_states=cond.hidden).sample
        target = noise if kind == "epsilon" else pipe.scheduler.get_velocity(z, noise, t)
        want = torch.nn.functional.mse_loss(told, target, reduction="none").mean((1, 2, 3))
        got = ours.loss(z, cond, t, noise)
    assert ours.prediction == kind
    assert got.shape == (3,)
    torch.testing.assert_close(got, want)


def test_noised_is_add_noise(model):
    z, noise, t = normal(4, 4, 8, 8), normal(4, 4, 8, 8, seed=1), torch.tensor([0, 10, 500, 999])
    want = model.pipe.scheduler.add_noise(z, noise, t)
    torch.testing.assert_close(diffusion.noised(model.alpha_bar, z, t, noise), want)
    torch.testing.assert_close(model.noised(z, t, noise), want)


def test_loss_of_a_row_is_its_own(model):
    z, noise, t = normal(3, 4, 8, 8), normal(3, 4, 8, 8, seed=1), torch.tensor([5, 300, 900])
    cond = model.embed(["a photo of a ring", "on sand", ""])
    with torch.no_grad():
        whole = model.loss(z, cond, t, noise)
        alone = torch.cat(
            [model.loss(z[i : i + 1], cond.take(slice(i, i + 1)), t[i : i + 1], noise[i : i + 1]) for i in range(3)]
        )
    torch.testing.assert_close(whole, alone)


def test_a_model_with_another_unet_uses_that(model):
    z, noise, t, cond = normal(1, 4, 8, 8), normal(1, 4, 8, 8, seed=1), torch.tensor([5]), model.embed([""])
    copy, fresh = model.fresh_unet("copy", Run().rng("x")), model.fresh_unet("random", Run().rng("x"))
    with torch.no_grad():
        own = model.loss(z, cond, t, noise)
        assert torch.equal(own, model.having(unet=copy.eval()).loss(z, cond, t, noise))
        assert not torch.allclose(own, model.having(unet=fresh).loss(z, cond, t, noise))
    assert all(p.requires_grad for p in (*copy.parameters(), *fresh.parameters()))
    assert not any(p.requires_grad for p in model.pipe.unet.parameters())


def test_fresh_weights_come_from_their_generator_and_leave_the_global_one_alone(model):
    before = torch.get_rng_state()
    one, same, other = (model.fresh_unet("random", Run(seed=s).rng("surrogate")) for s in (0, 0, 1))
    assert torch.equal(before, torch.get_rng_state())
    weights = [m.conv_in.weight for m in (one, same, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


# -- pictures and latents ----------------------------------------------------------------------------------------------


def test_encode_is_the_scaled_posterior_mean_of_diffusers(model):
    x = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        posterior = model.pipe.vae.encode(x * 2 - 1).latent_dist
        mean, std = model.moments(x)
        scale = model.pipe.vae.config.scaling_factor
        torch.testing.assert_close(mean, posterior.mean * scale)
        torch.testing.assert_close(std, posterior.std * scale)
        torch.testing.assert_close(model.encode(x), mean)
        torch.testing.assert_close(model.decode(mean), model.pipe.vae.decode(posterior.mean).sample / 2 + 0.5)


@pytest.mark.parametrize("size", [(16, 16), (17, 16), (16, 30), (5, 23), (1, 1)])
def test_sizes_that_are_no_multiple_come_back_whole(model, size):
    x = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert model.round_trip(x).shape == x.shape
        z = model.encode(x)
        sides = [-(-side // model.multiple) * model.multiple for side in size]
        assert list(z.shape) == [1, 4, *(-(-side // 2) for side in size)], "a latent for two pixels, none for padding"
        padded = torch.nn.functional.pad(x, (0, sides[1] - size[1], 0, sides[0] - size[0]), mode="replicate")
        torch.testing.assert_close(z, model.encode(padded))
        loss = model.loss(z, model.embed([""]), torch.tensor([1]), torch.zeros_like(z))
    assert loss.isfinite().all()


def test_size_and_multiple(model):
    assert model.size == 16
    assert model.multiple == 2  # the autoencoder's; the UNet, which has two levels, takes latents of odd sizes


def test_the_loss_is_over_the_cells_that_hold_picture(model, monkeypatch):
    """Of a UNet that always says 0, the loss is the mean square of the noise over them, 9 x 13 of 17 x 26 pixels."""
    x = torch.rand(2, 3, 17, 26, generator=torch.Generator().manual_seed(0))
    z = model.encode(x).detach()
    noise = torch.randn(z.shape, generator=torch.Generator().manual_seed(1))
    assert noise.shape == (2, 4, 9, 13)

    class Zero(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def forward(self, noisy, t, hidden):
            assert noisy.shape == z.shape
            return SimpleNamespace(sample=torch.zeros_like(noisy))

    monkeypatch.setattr(model.pipe, "unet", Zero())
    found = model.loss(z, model.embed(["", ""]), torch.tensor([1, 900]), noise)
    torch.testing.assert_close(found, noise.square().mean((1, 2, 3)))


def test_embed_is_encode_prompt(model):
    prompts = ["a photo of a sks ring on sand", ""]
    with torch.no_grad():
        want, _ = model.pipe.encode_prompt(prompts, "cpu", 1, do_classifier_free_guidance=False)
        got = model.embed(prompts)
    torch.testing.assert_close(got.hidden, want)
    assert torch.equal(got.repeat(2).hidden[[0, 2]], got.hidden)
    assert torch.equal(got.take(torch.tensor([1, 0])).hidden, got.hidden.flip(0))


# -- identity and loading ----------------------------------------------------------------------------------------------


def test_identity_changes_when_a_weight_does_and_only_for_its_part(tiny, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "copy"
    shutil.copytree(tiny, folder)
    before = LatentDiffusion(str(folder), "copy").identity()
    assert before == LatentDiffusion(str(tiny), "tiny").identity()
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    state = load_file(file)
    state["conv_in.weight"][0, 0, 0, 0] += 1e-6
    save_file(state, file, metadata={"format": "pt"})
    after = LatentDiffusion(str(folder), "copy").identity()
    assert {k for k in before if before[k] != after[k]} == {"unet"}
    assert LatentDiffusion(str(tiny), "tiny", dtype="bf16").identity() != before


def test_a_hub_model_is_named_by_its_revision():
    commit = "0123456789abcdef0123456789abcdef01234567"
    assert LatentDiffusion("owner/name", "x", revision=commit).identity() == {
        "hub": "owner/name",
        "revision": commit,
        "dtype": "fp32",
    }


@pytest.mark.parametrize("path", ["owner/name", "/no/such/folder", "name"])
def test_a_model_without_folder_or_revision_is_told(path):
    with pytest.raises(ValueError, match=f"model x: no folder '{path}'; give .* revision") as error:
        LatentDiffusion(path, "x").identity()
    assert "\n" not in str(error.value)


def test_a_folder_that_is_no_pipeline_is_told(tmp_path):
    (tmp_path / "unet").mkdir()
    with pytest.raises(ValueError, match="it lacks model_index.json, vae, text_encoder, tokenizer, scheduler"):
        LatentDiffusion(str(tmp_path), "x").identity()


def test_a_hub_model_that_is_not_here_is_told_in_one_line():
    model = LatentDiffusion("owner/no-such-model", "sd", revision="0" * 40, mirrors=("other/no-such-model",))
    with pytest.raises(
        ValueError, match="model sd: cannot be loaded from owner/no-such-model, other/no-such-model .*hf download"
    ) as error:
        _ = model.pipe
    assert "\n" not in str(error.value)


def test_a_mirror_is_used_where_the_first_place_has_nothing(tiny):
    model = LatentDiffusion("owner/no-such-model", "sd", revision="0" * 40, mirrors=(str(tiny),))
    assert model.size == 16


def test_a_mirror_may_be_pinned_and_a_folder_may_have_an_at_in_its_name(tiny, tmp_path):
    assert pretrained._pinned("owner/name") == ("owner/name", None)
    assert pretrained._pinned("owner/name@abc") == ("owner/name", "abc")
    (folder := tmp_path / "a@b").symlink_to(tiny)
    assert pretrained._pinned(str(folder)) == (str(folder), None)


def test_unknown_dtype_is_told():
    with pytest.raises(ValueError, match="unknown dtype 'fp16'; allowed are fp32, bf16"):
        LatentDiffusion("a", "x", dtype="fp16")


def test_bf16_is_near_fp32_and_its_losses_are_float32(model, tiny):
    half = LatentDiffusion(str(tiny), "half", dtype="bf16")
    z, noise, t = normal(2, 4, 8, 8), normal(2, 4, 8, 8, seed=1), torch.tensor([5, 900])
    with torch.no_grad():
        want, got = (m.loss(z, m.embed(["a ring", ""]), t, noise) for m in (model, half))
    assert {p.dtype for p in half.pipe.unet.parameters()} == {torch.bfloat16}
    assert half.fresh_unet("copy", Run().rng("x")).dtype == torch.float32
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, want, rtol=0.02, atol=0)


def test_small_steps_of_a_fine_tuning_survive_bf16(tiny, tmp_path):
    """Weights that bfloat16 cannot tell from those they started from are sampled with as they were saved."""
    whole = LatentDiffusion(str(tiny), "tiny", dtype="bf16")
    tuned = whole.fresh_unet("copy", Run().rng("unet"))
    with torch.no_grad():
        for p in tuned.parameters():
            p.mul_(1 + 2.0**-12)  # less than half of bfloat16's 2^-8
    tuned.save_pretrained(tmp_path / "unet")
    model = whole.with_tuned(tmp_path)
    for name, p in model.pipe.unet.named_parameters():
        assert torch.equal(p, dict(tuned.named_parameters())[name]), name
    assert {x.dtype for part in (model.pipe.vae, model.pipe.text_encoder) for x in part.parameters()} == {torch.float32}
    assert whole.pipe.vae.dtype == torch.bfloat16
    (made,) = sample(model, ["a photo of a ring"], [0], Run(), steps=2, guidance=2.0)
    assert made.isfinite().all()


# -- generation --------------------------------------------------------------------------------------------------------

PROMPTS = ["a photo of a ring", "a photo of a red ball on sand", "", "a photo of a star"]


def made(model, prompts=PROMPTS, keys=range(4), seed=0, batch=32, steps=3, guidance=2.0, solver="dpmpp", **more):
    pictures = list(
        sample(
            model,
            prompts,
            list(keys),
            Run(seed=seed, batch=batch),
            steps=steps,
            guidance=guidance,
            solver=solver,
            **more,
        )
    )
    return torch.cat(pictures)


@pytest.mark.parametrize("solver", ["dpmpp", "ddim"])
def test_a_picture_is_the_same_alone_and_in_any_batch(model, solver):
    whole = made(model, solver=solver)
    assert whole.shape == (4, 3, 16, 16)
    assert whole.min() >= 0
    assert whole.max() <= 1
    for batch in (1, 3):
        torch.testing.assert_close(made(model, batch=batch, solver=solver), whole, atol=1e-4, rtol=0)
    torch.testing.assert_close(made(model, PROMPTS[2:3], [2], solver=solver), whole[2:3], atol=1e-4, rtol=0)


def test_key_seed_prompt_and_guidance_change_the_picture(model):
    whole = made(model)
    others = [
        made(model, keys=range(4, 8)),
        made(model, seed=1),
        made(model, PROMPTS[::-1]),
        made(model, guidance=9.0),
        made(model, steps=5),
        made(model, solver="ddim"),
    ]
    for i, other in enumerate(others):
        assert (other - whole).abs().max() > 1e-4, i
    assert (made(model, ["a ring"] * 2, [0, 1])[0] - made(model, ["a ring"] * 2, [0, 1])[1]).abs().max() > 1e-2


def test_ddim_without_guidance_is_the_closed_form(model):
    """One DDIM step (Song et al. 2021, eq. 12 with eta 0), written out."""
    steps = 2
    got = made(model, ["a ring"], ["k"], steps=steps, guidance=1.0, solver="ddim")
    scheduler = make_solver("ddim", model.pipe.scheduler.config)
    scheduler.set_timesteps(steps)
    z = torch.randn(4, 8, 8, generator=Run().rng("sample", "k"))[None]
    a = torch.cat([model.alpha_bar, model.alpha_bar[:1]])  # the step after the last ends at alpha_bar_0
    with torch.no_grad():
        for t in scheduler.timesteps:
            noise = model.pipe.unet(z, t, model.embed(["a ring"]).hidden).sample
            later = t - 1000 // steps if t >= 1000 // steps else -1
            clean = (z - (1 - a[t]).sqrt() * noise) / a[t].sqrt()
            z = a[later].sqrt() * clean + (1 - a[later]).sqrt() * noise
        want = model.decode(z).clamp(0, 1)
    torch.testing.assert_close(got, want, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    "own",
    [
        {"algorithm_type": "sde-dpmsolver++"},
        {"solver_order": 3},
        {"solver_type": "heun"},
        {"use_beta_sigmas": True},
        {"use_exponential_sigmas": True},
        {"use_lu_lambdas": True},
    ],
    ids=str,
)
@pytest.mark.parametrize("karras", [True, False])
def test_dpmpp_is_of_second_order_and_draws_nothing_whatever_the_folder_samples_with(own, karras):
    """A folder's scheduler gives the noise schedule, not the solver: the same steps from the same input."""
    schedule = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
    x, told, ends = normal(1, 4, 8, 8), normal(1, 4, 8, 8, seed=1), []
    for further in ({}, own):
        config = DPMSolverMultistepScheduler(**schedule, **further).config
        solver = make_solver("dpmpp", config, karras)
        solver.set_timesteps(6)
        z = x
        for t in solver.timesteps:
            z = solver.step(told, t, z).prev_sample
        ends.append(z)
    assert torch.equal(*ends)


def test_unknown_solver_is_told():
    with pytest.raises(ValueError, match="solver: unknown name 'euler'; allowed are ddpm, ddim, dpmpp"):
        make_solver("euler", {})


def test_sampling_leaves_the_model_s_own_scheduler_alone(model):
    before = dict(model.pipe.scheduler.config)
    made(model, solver="dpmpp")
    assert type(model.pipe.scheduler).__name__ == "DDIMScheduler"
    assert dict(model.pipe.scheduler.config) == before


def test_the_option_that_messages_send_a_folder_to_is_there():
    kinds = (LatentDiffusion, PixelDiffusion, Upscaler)
    assert {kind.option for kind in kinds} <= {path.stem for path in option_files("model")}


def test_a_training_draws_every_time_step_alike(model):
    t, noise = model.times_and_noise(torch.zeros(20_000, 1, 1, 1), Run().rng("t"))
    assert chisquare(torch.bincount(t, minlength=1000).view(20, -1).sum(1)).pvalue > 1e-3
    assert float(noise.std()) == pytest.approx(1, abs=0.03)


def test_dpmpp_is_of_second_order_and_ends_at_no_noise():
    from diffusers import DDIMScheduler

    config = DDIMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012).config
    made = make_solver("dpmpp", config).config
    assert (made.algorithm_type, made.solver_order, made.final_sigmas_type) == ("dpmsolver++", 2, "zero")
    assert (made.use_karras_sigmas, make_solver("dpmpp", config, karras=False).config.use_karras_sigmas) == (
        True,
        False,
    )
