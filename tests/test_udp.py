"""UDP and EUDP against closed forms, plain references and their own arithmetic."""

from __future__ import annotations

import pytest
import torch
from scipy.stats import chisquare
from shared import Watching, make_owner

from udpbench.core.budget import RMS, Linf, measure
from udpbench.core.images import as_saved
from udpbench.interfaces import Log, Owner, Run
from udpbench.optim.pgd import by_size, chunks, first_length, pgd, random_start, shrinking
from udpbench.optim.samples import TIMES, normal, time_distribution, times_from
from udpbench.optim.training_set import TrainingSet
from udpbench.protect import udp as udp_module
from udpbench.protect.noise import Noise
from udpbench.protect.udp import EUDP, UDP
from udpbench.world import renderer

SMALL = {"rounds": 2, "model_steps": 2, "image_steps": 3, "lr": 1e-3, "batch": 2}


@pytest.fixture
def owner(pictures) -> Owner:
    """Two pictures are enough here."""
    return make_owner(pictures[:2])


@pytest.fixture(scope="module")
def plain(model, pictures) -> torch.Tensor:
    """What the small settings make of the owner's pictures."""
    return torch.stack(udp().protect(make_owner(pictures[:2]), Linf(8), model, Run()))


def udp(kind=UDP, **settings):
    return kind(**{**SMALL, **settings})


def attack_only(kind=UDP, **settings):
    """The surrogate stays the model's UNet as it is."""
    return udp(kind, **{"rounds": 1, "model_steps": 0, **settings})


# -- p(t) --------------------------------------------------------------------------------------------------------------


def alpha_bar(schedule: str) -> torch.Tensor:
    """Of Stable Diffusion (scaled linear) or DDPM (linear), in float64 from their papers' constants."""
    if schedule == "sd":
        betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    else:
        betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    return (1 - betas).cumprod(0)


# mean t, P(t < 250), P(t < 500), computed independently of this code
TABLE = [
    ("ddpm", "uniform", 500, 0.25, 0.50),
    ("ddpm", "sqrt_alpha_bar", 249, 0.58, 0.89),
    ("ddpm", "alpha_bar", 176, 0.74, 0.98),
    ("ddpm", "snr", 98, 0.87, 0.97),
    ("sd", "uniform", 500, 0.25, 0.50),
    ("sd", "sqrt_alpha_bar", 334, 0.44, 0.76),
    ("sd", "alpha_bar", 250, 0.57, 0.89),
    ("sd", "snr", 194, 0.70, 0.89),
]


@pytest.mark.parametrize(("schedule", "kind", "mean", "quarter", "half"), TABLE)
def test_time_distribution_has_the_masses_of_its_formula(schedule, kind, mean, quarter, half):
    p = time_distribution(alpha_bar(schedule), kind)
    assert p.dtype == torch.float64
    assert float(p.sum()) == pytest.approx(1, abs=1e-12)
    assert float((p * torch.arange(1000)).sum()) == pytest.approx(mean, abs=1)
    assert float(p[:250].sum()) == pytest.approx(quarter, abs=0.006)
    assert float(p[:500].sum()) == pytest.approx(half, abs=0.006)


@pytest.mark.parametrize("kind", TIMES)
def test_time_distribution_in_closed_form(kind):
    a = torch.tensor([0.81, 0.36, 0.01], dtype=torch.float64)
    weights = {
        "uniform": [1, 1, 1],
        "sqrt_alpha_bar": [0.9, 0.6, 0.1],
        "alpha_bar": [0.81, 0.36, 0.01],
        "snr": [(81 / 19) ** 0.5, (36 / 64) ** 0.5, (1 / 99) ** 0.5],
    }[kind]
    want = torch.tensor(weights, dtype=torch.float64)
    torch.testing.assert_close(time_distribution(a, kind), want / want.sum())


def test_the_embedded_schedule_is_stable_diffusion_s(model):
    torch.testing.assert_close(model.alpha_bar.double(), alpha_bar("sd"), atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", TIMES)
def test_drawn_time_steps_follow_the_distribution(kind):
    """Chi-square over 20 bins of about equal mass; the samples are independent of the noise's shape."""
    p = time_distribution(alpha_bar("sd"), kind)
    rngs, n = [Run().rng("t")], 20_000
    t, noise = times_from(p, rngs, n), normal(rngs, n, torch.zeros(1, 1, 1, 1))
    edges = torch.searchsorted(p.cumsum(0), torch.linspace(0.05, 0.95, 19, dtype=torch.float64))
    bins = torch.bucketize(torch.arange(1000), edges)
    expected = torch.zeros(20, dtype=torch.float64).index_add(0, bins, p) * n
    observed = torch.bincount(bins[t], minlength=20)
    assert chisquare(observed.numpy(), expected.numpy()).pvalue > 1e-3
    other = time_distribution(alpha_bar("sd"), "alpha_bar" if kind == "uniform" else "uniform")
    expected = torch.zeros(20, dtype=torch.float64).index_add(0, bins, other) * n
    assert chisquare(observed.numpy(), expected.numpy()).pvalue < 1e-9
    assert noise.shape == (n, 1, 1, 1)
    assert abs(float(noise.mean())) < 0.03
    assert float(noise.std()) == pytest.approx(1, abs=0.03)


def test_unknown_time_distribution_is_told():
    with pytest.raises(ValueError, match="unknown time distribution 'cosine'; allowed are uniform"):
        udp(EUDP, times="cosine")
    with pytest.raises(ValueError, match="unknown time distribution 'cosine'"):
        time_distribution(alpha_bar("sd"), "cosine")


# -- the method --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_eudp_with_uniform_times_is_udp(model, owner):
    one, two = (
        m.protect(owner, Linf(8), model, Run()) for m in (udp(samples=2), udp(EUDP, samples=2, times="uniform"))
    )
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    three = udp(EUDP, samples=2).protect(owner, Linf(8), model, Run())
    assert not torch.equal(torch.stack(one), torch.stack(three))


@pytest.mark.parametrize("samples", [1, 3])
def test_first_gradient_of_a_picture_is_the_same_alone_and_in_a_batch(model, pictures, samples):
    method = attack_only(image_steps=1, samples=samples)
    together = Watching(8)
    method.protect(make_owner(pictures), together, model, Run())
    for i, x in enumerate(pictures):
        alone = Watching(8)
        method.protect(make_owner([x], [f"{i:04d}.png"]), alone, model, Run(batch=1, grad_batch=1))
        torch.testing.assert_close(
            alone.gradients[0][0],
            together.gradients[0][i],
            rtol=1e-3,
            atol=1e-3 * float(alone.gradients[0].abs().max()),
        )


def test_batch_size_changes_nothing_but_rounding(model, owner):
    few, many = (torch.stack(attack_only(samples=2).protect(owner, Linf(8), model, Run(batch=b))) for b in (2, 32))
    assert ((few - many).abs() < 1e-5).float().mean() > 0.99


def test_first_gradient_is_that_of_the_loss_written_out(model, pictures):
    """Mean over samples of |unet(z_t, t, c) - noise|^2, z the posterior mean, draws from the picture's own generator: rand, then noise."""
    budget, samples = Watching(8), 2
    owner = make_owner(pictures[:1])
    attack_only(image_steps=1, samples=samples).protect(owner, budget, model, Run(seed=4))
    rng = Run(seed=4).rng("udp", 0, owner.names[0])
    t = (torch.rand(samples, generator=rng, dtype=torch.float64) * 1000).long()
    noise = torch.randn(samples, 4, 8, 8, generator=rng)
    x = pictures[0][None].clone().requires_grad_(True)
    pipe = model.pipe
    z = pipe.vae.encode(2 * x - 1).latent_dist.mean * pipe.vae.config.scaling_factor
    told = pipe.unet(
        pipe.scheduler.add_noise(z.expand(samples, -1, -1, -1), noise, t),
        t,
        model.embed(owner.prompts).hidden.expand(samples, -1, -1),
    ).sample
    (want,) = torch.autograd.grad((told - noise).square().mean(), x)
    torch.testing.assert_close(budget.gradients[0], want, rtol=1e-3, atol=1e-4 * float(want.abs().max()))


@pytest.mark.slow
def test_perturbation_raises_the_loss_more_than_noise_does(model):
    """Float32 pictures; loss of the surrogate on fresh samples that all three share."""
    truth = renderer.draw(4, torch.Generator().manual_seed(1), renderer.subject(1))
    clean = [as_saved(x) for x in renderer.render(truth, 16)]
    owner, budget = make_owner(clean), Linf(8)
    protected = attack_only(image_steps=60, samples=32).protect(owner, budget, model, Run())
    noisy = [Noise().protect(owner, budget, None, Run(seed)) for seed in range(6)]
    rng, k = (
        torch.Generator().manual_seed(5),
        500,
    )  # samples a picture: the random model's gain is small beside their spread
    t = torch.randint(1000, (4 * k,), generator=rng)
    noise = torch.randn(4 * k, 4, 8, 8, generator=rng)

    def loss(images):
        with torch.no_grad():
            z = model.encode(torch.stack(images)).repeat_interleave(k, 0)
            return float(model.loss(z, model.embed(owner.prompts).repeat(k), t, noise).mean())

    base = loss(clean)
    assert loss(protected) - base > max(abs(loss(x) - base) for x in noisy)


def test_the_surrogate_is_trained_on_the_perturbed_pictures(model, owner, monkeypatch):
    """The latents that training sees in round k are those of the pictures after round k - 1; its weights start at the model's."""
    seen, real = [], type(model).encode

    def encode(self, x):
        if not torch.is_grad_enabled():
            seen.append(x.clone())
        return real(self, x)

    monkeypatch.setattr(type(model), "encode", encode)
    made = udp(rounds=3).protect(owner, Linf(8), model, Run())
    monkeypatch.setattr(type(model), "encode", real)
    assert torch.equal(seen[0], torch.stack(owner.images))
    after_two = udp(rounds=2).protect(owner, Linf(8), model, Run())
    assert torch.equal(seen[2], torch.stack(after_two))
    assert not torch.equal(seen[2], torch.stack(made))


@pytest.mark.slow
def test_the_model_is_left_as_it_was(model, owner):
    before = [p.clone() for p in model.pipe.unet.parameters()]
    udp().protect(owner, Linf(8), model, Run())
    udp(outer="clean").protect(owner, Linf(8), model, Run())
    assert all(torch.equal(a, b) for a, b in zip(before, model.pipe.unet.parameters(), strict=True))
    assert not any(p.requires_grad for p in model.pipe.unet.parameters())


def trainings(method, owner, model, monkeypatch, scratch=None) -> list[tuple[torch.Tensor, torch.Tensor, int]]:
    """Of each training of the surrogate: one of its weights before it, the pictures, the optimizer's steps so far."""
    seen, real = [], udp_module.fit

    def fit(parameters, loss, settings, run, *, optimizer, **rest):
        steps = next((int(state["step"]) for state in optimizer.state.values()), 0)
        seen.append((parameters[0].detach().clone(), pictures[-1], steps))
        return real(parameters, loss, settings, run, optimizer=optimizer, **rest)

    pictures = []

    def training_set(trainable, images, *rest, **named):
        pictures.append(torch.stack(list(images)))
        return TrainingSet(trainable, images, *rest, **named)

    monkeypatch.setattr(udp_module, "fit", fit)
    monkeypatch.setattr(udp_module, "TrainingSet", training_set)
    method.protect(owner, Linf(8), model, Run(scratch=scratch))
    return seen


def test_a_surrogate_that_begins_anew_is_as_it_was_after_clean_training(model, owner, monkeypatch):
    method = udp(rounds=4, start_steps=3, restart_every=2, random_start=True)
    clean, *rounds = trainings(method, owner, model, monkeypatch)
    assert torch.equal(clean[1], torch.stack(owner.images))
    assert not torch.equal(rounds[0][1], clean[1]), "a random start is trained on from the first round"
    weights = [weight for weight, _, _ in rounds]
    assert torch.equal(weights[0], weights[2])
    assert not any(
        torch.equal(a, b) for a, b in [(clean[0], weights[0]), (weights[0], weights[1]), (weights[1], weights[3])]
    )
    assert [steps for _, _, steps in [clean, *rounds]] == [0, 3, 5, 0, 2]
    assert not torch.equal(rounds[0][1], rounds[2][1]), "the perturbation goes on"


def test_mirrored_pictures_reach_the_surrogate_s_training_alone(model, owner, monkeypatch):
    seen, real = [], type(model).encode

    def encode(self, x):
        seen.append((torch.is_grad_enabled(), x.detach().clone()))
        return real(self, x)

    monkeypatch.setattr(type(model), "encode", encode)
    udp(rounds=1, model_steps=8, image_steps=1, flip=True).protect(owner, Linf(8), model, Run())
    trained = torch.cat([x for grad, x in seen if not grad])
    whole = torch.stack(owner.images)
    kinds = [
        next(name for name, ref in (("as is", whole), ("mirrored", whole.flip(-1))) if (ref == x).all((1, 2, 3)).any())
        for x in trained
    ]
    assert len(kinds) == 16
    assert 2 < kinds.count("mirrored") < 14
    assert torch.equal(next(x for grad, x in seen if grad), whole)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "value"), [("model_steps", 5), ("start_steps", 2), ("restart_every", 1), ("flip", True), ("lr", 1e-2), ("surrogate_init", "random"), ("samples", 2), ("random_start", True),
                                             ("step_size", 2.0), ("outer", "clean"), ("rounds", 3), ("batch", 4), ("dtype", "bf16"),
                                             ("weight_decay", 500.0), ("image_steps", 4)])  # fmt: skip
def test_every_setting_matters(model, owner, plain, name, value):
    other = udp(**{name: value}).protect(owner, Linf(8), model, Run())
    assert not torch.equal(plain, torch.stack(other))


# -- the unrolled step -------------------------------------------------------------------------------------------------


def test_outer_clean_is_the_gradient_of_an_unrolled_step(model, pictures):
    """d/dx of L_clean(theta - lr grad L_perturbed(theta, x)), by autograd through the step at a small lr, over lr.

    Everything the reference does is written out in float64.
    """
    moved = [
        as_saved((x + 0.05 * torch.randn(x.shape, generator=torch.Generator().manual_seed(i))).clamp(0, 1))
        for i, x in enumerate(pictures[:2])
    ]
    owner, method = make_owner(pictures[:2]), attack_only(image_steps=1, outer="clean", samples=2)
    budget, run = Watching(128), Run(seed=2)
    cond = model.embed(owner.prompts)
    loss = method._image_loss(model.trainable(run.rng("x")), cond, owner, run, 0)
    pgd(moved, owner.images, loss, budget, run, steps=[1.0], most=2)

    rngs = [Run(seed=2).rng("udp", 0, n) for n in owner.names]
    t = torch.cat([(torch.rand(2, generator=g, dtype=torch.float64) * 1000).long() for g in rngs])
    noise = torch.cat([torch.randn(2, 4, 8, 8, generator=g) for g in rngs]).double()
    vae, net = (m.double() for m in (_copy(model.pipe.vae), _copy(model.pipe.unet)))
    weights = {k: v.detach().clone().requires_grad_(True) for k, v in net.named_parameters()}
    a, lr = model.alpha_bar.double()[t].view(-1, 1, 1, 1), 1e-7

    def denoising(x, theta):
        z = (vae.encode(2 * x - 1).latent_dist.mean * vae.config.scaling_factor).repeat_interleave(2, 0)
        told = torch.func.functional_call(
            net, theta, (a.sqrt() * z + (1 - a).sqrt() * noise, t, cond.repeat(2).hidden.double())
        ).sample
        return (told - noise).square().mean()

    x = torch.stack(moved).double().requires_grad_(True)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        step = torch.autograd.grad(denoising(x, weights), list(weights.values()), create_graph=True)
        taught = {k: w - lr * g for (k, w), g in zip(weights.items(), step, strict=True)}
        (want,) = torch.autograd.grad(denoising(torch.stack(owner.images).double(), taught), x)
    want = want / lr
    got = budget.gradients[0].double()
    assert float(torch.nn.functional.cosine_similarity(got.flatten(), want.flatten(), 0)) > 0.9999
    torch.testing.assert_close(got, want, rtol=1e-2, atol=1e-3 * float(want.abs().max()))


def _copy(module):
    import copy

    return copy.deepcopy(module)


# -- arithmetic, budgets, sizes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("outer", "passes"), [("perturbed", 1), ("clean", 2)])
def test_counts_are_the_arithmetic(model, owner, outer, passes):
    run = Run()
    udp(outer=outer, samples=2).protect(owner, Linf(8), model, run)
    rounds, image_steps, samples, n = 2, 3, 2, 2
    assert run.count == {"unet_image": passes * rounds * image_steps * samples * n, "unet_train": 2 * 2 * 2}


def test_variants_have_names_of_their_own():
    kinds = [udp(), udp(EUDP), udp(EUDP, times="sqrt_alpha_bar"), udp(outer="clean"), udp(times="sqrt_alpha_bar")]
    assert [m.label for m in kinds] == ["udp", "eudp", "eudp_sqrt_alpha_bar", "udp_outer_clean", "udp_sqrt_alpha_bar"]
    assert udp(start_steps=1, restart_every=2, flip=True).label == "udp_clean_start_restarts_flip"


def test_shipped_settings_take_a_hundred_evaluations_a_picture():
    from omegaconf import OmegaConf
    from shared import CONF

    settings = OmegaConf.load(CONF / "protect" / "udp.yaml")
    assert settings.rounds * settings.image_steps * settings.samples == 100


@pytest.mark.parametrize("budget", [Linf(8), Linf(2.7), RMS(4)], ids=lambda b: b.name)
def test_budgets_hold_on_the_saved_picture_and_are_used(model, owner, budget):
    made = udp(image_steps=8).protect(owner, budget, model, Run())
    for clean, x in zip(owner.images, made, strict=True):
        measured = measure(clean, as_saved(x))
        assert measured[budget.kind] <= budget.eps * (1 + 1e-9)
        assert measured["rms"] >= 0.25 * budget.eps
        assert x.min() >= 0
        assert x.max() <= 1


@pytest.mark.slow
def test_every_picture_is_trained_on_as_often_whatever_its_size(model, pictures, monkeypatch):
    wide = torch.cat([pictures[1], pictures[2]], 2)[:, :, :27]
    owner, drawn, real = make_owner([*pictures[:3], wide]), [], type(model).loss

    def loss(self, z, cond, t, noise):
        drawn.extend([z.shape[-1]] * len(z))
        return real(self, z, cond, t, noise)

    trainable = model.trainable(Run().rng("surrogate"))
    trained = TrainingSet(trainable, owner.images, owner.prompts, Run(), mixed_sizes=True)
    monkeypatch.setattr(type(model), "loss", loss)
    with torch.no_grad():
        for step in range(200):
            trained.loss(2, Run().rng("surrogate", 0, step))
    fraction = sum(width == max(drawn) for width in drawn) / len(drawn)
    assert fraction == pytest.approx(1 / 4, abs=0.1)  # one picture of four; half, if sizes were drawn


@pytest.mark.slow
def test_pictures_of_two_sizes(model, pictures):
    wide = torch.cat([pictures[1], pictures[2]], 2)[:, :, :27]
    images = [pictures[0], wide, pictures[3]]
    for outer in ("perturbed", "clean"):
        run = Run()
        made = udp(outer=outer).protect(make_owner(images), Linf(8), model, run)
        assert [x.shape for x in made] == [x.shape for x in images]
        assert all(not torch.equal(a, b) for a, b in zip(made, images, strict=True))


@pytest.mark.parametrize(
    "wrong",
    [
        {"outer": "both"},
        {"surrogate_init": "zeros"},
        {"rounds": 0},
        {"samples": 0},
        {"batch": 0},
        {"image_steps": 0},
        {"model_steps": -1},
        {"start_steps": -1},
        {"restart_every": -1},
        {"lr": -1.0},
    ],
)
def test_wrong_settings_are_told_in_one_line(wrong):
    with pytest.raises(ValueError, match=str(next(iter(wrong.values())))) as error:
        udp(**wrong)
    assert "\n" not in str(error.value)


# -- pgd ---------------------------------------------------------------------------------------------------------------


def test_pgd_on_a_linear_loss_is_the_closed_form():
    """The gradient is constant, so k steps move every pixel by k steps along its sign, up to the budget."""
    rng = torch.Generator().manual_seed(0)
    clean = [0.5 + 0.1 * torch.rand(3, 4, 4, generator=rng) for _ in range(3)]
    slope = torch.randn(3, 4, 4, generator=rng)

    def loss(x, index):
        return (x * slope).flatten(1).sum(1)

    for steps, levels in ((3, 6.0), (5, 8.0)):
        made = pgd(clean, clean, loss, Linf(8), Run(), steps=[2.0] * steps, most=2)
        for x, c in zip(made, clean, strict=True):
            torch.testing.assert_close(x, c + levels / 255 * slope.sign(), atol=1e-6, rtol=0)


def test_pgd_goes_on_from_its_start_within_the_budget_of_the_clean_picture():
    clean = [torch.full((3, 2, 2), 0.5)]
    start = [clean[0] + 7 / 255]
    (x,) = pgd(start, clean, lambda x, index: x.flatten(1).sum(1), Linf(8), Run(), steps=[2.0] * 3, most=1)
    torch.testing.assert_close(x, clean[0] + 8 / 255)
    assert torch.equal(start[0], clean[0] + 7 / 255)


@pytest.mark.parametrize("most", [1, 2, 100, 0])
def test_chunks_hold_every_picture_once_and_one_size_each(most):
    images = [torch.zeros(3, 4 + i % 2, 4) for i in range(7)]
    found = list(chunks(images, most))
    assert sorted(i for part in found for i in part) == list(range(7))
    assert all(len(part) <= max(1, most) for part in found)
    assert all(len({images[i].shape for i in part}) == 1 for part in found)
    assert by_size(images) == [[0, 2, 4, 6], [1, 3, 5]]


@pytest.mark.parametrize("budget", [Linf(8), RMS(3)], ids=lambda b: b.name)
def test_random_start_belongs_to_the_name_and_keeps_the_budget(pictures, budget):
    names = ["a", "b", "c", "d"]
    made = random_start(pictures, names, budget, Run())
    assert all(
        torch.equal(x, random_start([p], [n], budget, Run())[0]) for x, p, n in zip(made, pictures, names, strict=True)
    )
    for x, clean in zip(made, pictures, strict=True):
        assert measure(clean, as_saved(x))[budget.kind] <= budget.eps * (1 + 1e-9)
        assert measure(clean, as_saved(x))["rms"] > 0.25 * budget.eps
    assert not torch.equal(made[0], random_start(pictures, names, budget, Run(seed=1))[0])


# -- interrupted -------------------------------------------------------------------------------------------------------


def test_the_first_step_is_as_long_as_is_said_and_none_is_a_part_of_the_bound():
    assert [first_length(None, 8.0), first_length(None, 9.0, parts=3), first_length(0.5, 8.0)] == [1.0, 3.0, 0.5]
    assert shrinking(2.0, 4) == pytest.approx([2.0, 1.505, 1.01, 0.515])


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings", [{}, {"outer": "clean"}, {"random_start": True}, {"start_steps": 2, "restart_every": 2}]
)
def test_interrupted_and_resumed_equals_uninterrupted(model, owner, tmp_path, monkeypatch, settings):
    """The first attempt dies in its third round; the second takes the finished two from there."""
    monkeypatch.setattr("udpbench.optim.rounds.SAVE_EVERY", 0)

    class Steps(Log):
        """Keeps the first step of each curve; dies at one of the surrogate's."""

        def __init__(self, dies_at: int = -1) -> None:
            self.dies_at, self.first = dies_at, {}

        def scalar(self, name, value, step):
            if name == "surrogate/loss" and step == self.dies_at:
                raise KeyboardInterrupt
            self.first.setdefault(name, step)

    method = udp(EUDP, **{**settings, "rounds": 3})
    whole = Run()
    expected = method.protect(owner, Linf(8), model, whole)
    with pytest.raises(KeyboardInterrupt):
        method.protect(owner, Linf(8), model, Run(log=Steps(dies_at=2 * SMALL["model_steps"]), scratch=tmp_path))
    again = Run(log=Steps(), scratch=tmp_path)
    got = method.protect(owner, Linf(8), model, again)
    torch.testing.assert_close(torch.stack(got), torch.stack(expected), rtol=0, atol=0)
    rounds = {"surrogate/loss": 2 * SMALL["model_steps"], "perturb/loss": 2 * SMALL["image_steps"]}
    assert again.log.first == rounds, "finished rounds are not computed again"
    assert again.count == whole.count


@pytest.mark.parametrize("checkpointing", [{"gradient_checkpointing": True}, {}], ids=["surrogate", "runtime"])
def test_the_outer_loss_of_clean_pictures_is_the_same_where_layers_are_computed_twice(model, owner, checkpointing):
    settings = {"rounds": 1, "model_steps": 0, "image_steps": 1, "outer": "clean"}
    whole = udp(**settings).protect(owner, Linf(8), model, Run())
    lean = udp(**settings, **checkpointing).protect(owner, Linf(8), model, Run(low_memory=not checkpointing))
    assert all(map(torch.equal, whole, lean))
