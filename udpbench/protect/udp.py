"""UDP and EUDP: unlearnable diffusion perturbations (Zhao et al., arXiv 2306.01902).

The published idea: one perturbation per picture, found as a max-min problem. The model is trained on the perturbed
pictures (min), the perturbation raises that trained model's loss (max), in turn. EUDP changes which time steps the
perturbation is trained on, using the noise scales of the forward process, because the perturbation fades along it.

This is a *reconstruction*: no code was published and the text that could be found does not give the formulas. The
paper's are: the max-min problem, sample-wise bounded noise, alternation, and that EUDP changes the sampling of time
steps by the noise schedule. Our choices are: the L-infinity (or RMS) budget, projected sign ascent, the numbers of
rounds and steps, the optimizer of the inner model, which sees the pictures as they are (a victim may train on mirrored
ones, too), and the distribution ``p(t)`` below.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from udpbench.core.budget import Budget
from udpbench.interfaces import Owner, Run
from udpbench.optim.fit import FitSettings, fit, load_state, save_state
from udpbench.optim.pgd import by_size, first_images, pgd

if TYPE_CHECKING:
    from udpbench.models.diffusion import Cond, Diffusion

STATE = "udp.ckpt"
TIMES = ("uniform", "sqrt_alpha_bar", "alpha_bar", "snr")


def time_distribution(alpha_bar: Tensor, kind: str) -> Tensor:
    """P(t) over the T steps of a forward process with ``alpha_bar`` (T,); float64, sums to 1.

    The perturbation d reaches step t as sqrt(alpha_bar_t) d. ``sqrt_alpha_bar`` weighs steps by that factor,
    ``alpha_bar`` by its square, ``snr`` by sqrt(alpha_bar_t / (1 - alpha_bar_t)), the ratio of what is left of d to
    the noise; ``uniform`` is UDP's.
    """
    a = alpha_bar.double()
    weights = {
        "uniform": torch.ones_like(a),
        "sqrt_alpha_bar": a.sqrt(),
        "alpha_bar": a,
        "snr": (a / (1 - a)).sqrt(),
    }
    if kind not in weights:
        raise ValueError(f"eudp: unknown time distribution {kind!r}; allowed are {', '.join(TIMES)}")
    return weights[kind] / weights[kind].sum()


class UDP:
    """Alternate ``model_steps`` of training a surrogate on the perturbed pictures and ``image_steps`` of raising it.

    What is raised is the surrogate's loss, by changing the pictures within the budget.

    Args:
        rounds, model_steps, image_steps: of the alternation.
        step_size: length of one image step in levels; None: an eighth of the budget.
        samples: (t, noise) samples per picture and image step, in one forward pass.
        outer: which loss the pictures raise. ``perturbed``: the surrogate's loss on the perturbed pictures
            (error-maximising); ``clean``: the loss that the surrogate would have on the *clean* pictures after one
            more gradient step on the perturbed ones (one unrolled step; differentiates through the gradient).
        surrogate_init: ``victim_task`` starts from the surrogate model's weights, as fine-tuning does; ``random``
            from fresh ones, as training from scratch does.
        lr, weight_decay, batch: of the surrogate's training (AdamW).
        random_start: start from uniform noise within the budget.
        dtype: of the surrogate's passes, in its training and under the pictures (fp32 | bf16).
        times: p(t) of the image steps (see ``time_distribution``); None: ``default_times``.
    """

    version: ClassVar[int] = 3
    couples_images: ClassVar[bool] = True  # through the surrogate
    heeds_penalty: ClassVar[bool] = True  # by way of pgd
    needs: ClassVar[frozenset[str]] = frozenset({"denoise"})
    default_times: ClassVar[str] = "uniform"

    def __init__(
        self,
        rounds: int,
        model_steps: int,
        image_steps: int,
        lr: float,
        batch: int,
        samples: int = 1,
        step_size: float | None = None,
        outer: str = "perturbed",
        surrogate_init: str = "victim_task",
        weight_decay: float = 1e-2,
        random_start: bool = False,
        dtype: str = "fp32",
        times: str | None = None,
    ) -> None:
        if times is not None and times not in TIMES:
            raise ValueError(f"eudp: unknown time distribution {times!r}; allowed are {', '.join(TIMES)}")
        if outer not in ("perturbed", "clean"):
            raise ValueError(f"udp: unknown outer {outer!r}; allowed are perturbed, clean")
        if surrogate_init not in ("victim_task", "random"):
            raise ValueError(f"udp: unknown surrogate_init {surrogate_init!r}; allowed are victim_task, random")
        if min(rounds, image_steps, samples, batch) < 1 or model_steps < 0:
            raise ValueError(
                "udp: rounds, image_steps, samples and batch must be >= 1 and model_steps >= 0, "
                f"given {rounds}, {image_steps}, {samples}, {batch}, {model_steps}"
            )
        self.rounds, self.image_steps, self.samples = rounds, image_steps, samples
        self.step_size, self.outer, self.surrogate_init = step_size, outer, surrogate_init
        self.random_start, self.batch, self.times = random_start, batch, times or self.default_times
        self.training = FitSettings(steps=model_steps, lr=lr, weight_decay=weight_decay, dtype=dtype)

    @property
    def label(self) -> str:
        """Name, and the variant if it is not the usual one."""
        variant = [self.times] if self.times != self.default_times else []
        variant += ["outer_clean"] if self.outer == "clean" else []
        variant += ["scratch"] if self.surrogate_init == "random" else []
        return "_".join([type(self).__name__.lower(), *variant])

    def __call__(self, owner: Owner, budget: Budget, surrogates: Sequence[Diffusion], run: Run) -> list[Tensor]:
        """Perturbed pictures, CHW [0,1] within ``budget`` of ``owner.images``."""
        model = surrogates[0]
        unet = model.fresh_unet("copy" if self.surrogate_init == "victim_task" else "random", run.rng("surrogate"))
        with torch.no_grad():
            cond = model.embed(owner.prompts)
        images = first_images(owner, budget, run, self.random_start)
        optimizer = self.training.optimizer(unet.parameters())
        start, images = self._resumed(unet, optimizer, images, run)
        with run.log.bar("perturb", self.rounds * self.image_steps, "step") as advance:
            advance(start * self.image_steps)
            for k in range(start, self.rounds):
                if self.training.steps:
                    unet.requires_grad_(True).train()
                    trained, before = self._training_loss(model, unet, cond, images, run, k), k * self.training.steps
                    weights = list(unet.parameters())
                    fit(weights, trained, self.training, run, title="surrogate", optimizer=optimizer, before=before)
                unet.requires_grad_(self.outer == "clean").eval()
                images = pgd(
                    images,
                    owner.images,
                    self._image_loss(model, unet, cond, owner, run, k),
                    budget,
                    run,
                    steps=[self.step_size or budget.eps / 8] * self.image_steps,
                    most=run.grad_batch // self.samples if self.outer == "perturbed" else len(images),
                    advance=advance,
                    before=k * self.image_steps,
                )
                self._keep(unet, optimizer, images, run, k + 1)
        return images

    def _keep(
        self, unet: nn.Module, optimizer: torch.optim.Optimizer, images: list[Tensor], run: Run, rounds: int
    ) -> None:
        """Keep what the next round goes on from."""
        if run.scratch is not None and rounds < self.rounds:
            state = {"unet": unet.state_dict(), "optimizer": optimizer.state_dict(), "images": images}
            save_state(run.scratch / STATE, state | {"rounds": rounds, "count": run.count})

    def _resumed(
        self, unet: nn.Module, optimizer: torch.optim.Optimizer, images: list[Tensor], run: Run
    ) -> tuple[int, list[Tensor]]:
        """Rounds that an interrupted attempt finished, and its pictures."""
        state = load_state(run.scratch / STATE if run.scratch is not None else None)
        if state is None:
            return 0, images
        unet.load_state_dict(state["unet"])
        optimizer.load_state_dict(state["optimizer"])
        run.count.update(state["count"])
        return state["rounds"], state["images"]

    def _image_loss(
        self, model: Diffusion, unet: nn.Module, cond: Cond, owner: Owner, run: Run, k: int
    ) -> Callable[[Tensor, list[int]], Tensor]:
        """What the pictures raise in round ``k``; each has samples of its own."""
        rngs = [run.rng("udp", k, name) for name in owner.names]
        if self.outer == "clean":
            return self._clean_loss(model, unet, cond, rngs, owner.images, run)
        return self._perturbed_loss(model, unet, cond, rngs, run)

    def _training_loss(
        self, model: Diffusion, unet: nn.Module, cond: Cond, images: list[Tensor], run: Run, k: int
    ) -> Callable[[int], Tensor]:
        """The victim's loss on the pictures as they are in round ``k``: latents computed once, t uniform as in any
        training. A batch holds pictures of one size; which, is drawn by how many pictures have it."""
        with torch.no_grad():
            stacks = [(group, torch.stack([images[i] for i in group])) for group in by_size(images)]
            groups = [
                (group, torch.cat([model.encode(x.to(run.device)) for x in stack.split(run.batch)]))
                for group, stack in stacks
            ]
        group_of = {i: k for k, (group, _) in enumerate(groups) for i in group}

        def loss(step: int) -> Tensor:
            rng = run.rng("surrogate", k, step)
            group, z = groups[group_of[int(torch.randint(len(images), (), generator=rng))]]
            pick = torch.randint(len(group), (self.batch,), generator=rng)
            t = torch.randint(len(model.alpha_bar), (self.batch,), generator=rng).to(run.device)
            noise = torch.randn((self.batch, *z.shape[1:]), generator=rng).to(run.device)
            run.tally("unet_train", self.batch)
            return model.loss(z[pick], cond.take(torch.tensor([group[i] for i in pick])), t, noise, unet).mean()

        return loss

    def _autocast(self, run: Run) -> torch.autocast:
        return torch.autocast(run.device.type, torch.bfloat16, enabled=self.training.dtype == "bf16")

    def _draw(self, model: Diffusion, z: Tensor, rngs: list[torch.Generator]) -> tuple[Tensor, Tensor]:
        """(t, noise) for every row of z and draw: t (N*samples,) from p(t), noise (N*samples, C, h, w).

        EUDP differs in p(t) alone.
        """
        cdf = time_distribution(model.alpha_bar, self.times).cumsum(0)
        u = torch.stack([torch.rand(self.samples, generator=g, dtype=torch.float64) for g in rngs])
        t = torch.searchsorted(cdf, u.flatten()).clamp(max=len(cdf) - 1)
        noise = torch.cat([torch.randn((self.samples, *z.shape[1:]), generator=g) for g in rngs])
        return t.to(z.device), noise.to(z.device)

    def _perturbed_loss(
        self, model: Diffusion, unet: nn.Module, cond: Cond, rngs: list[torch.Generator], run: Run
    ) -> Callable[[Tensor, list[int]], Tensor]:
        def loss(x: Tensor, index: list[int]) -> Tensor:
            z = model.encode(x)
            t, noise = self._draw(model, z, [rngs[i] for i in index])
            run.tally("unet_image", len(t))
            many = cond.take(torch.tensor(index)).repeat(self.samples)
            with self._autocast(run):
                each = model.loss(z.repeat_interleave(self.samples, 0), many, t, noise, unet)
            return each.view(len(x), self.samples).mean(1)

        return loss

    def _clean_loss(
        self,
        model: Diffusion,
        unet: nn.Module,
        cond: Cond,
        rngs: list[torch.Generator],
        clean: Sequence[Tensor],
        run: Run,
    ) -> Callable[[Tensor, list[int]], Tensor]:
        """First-order term of L_clean(theta - lr grad L_perturbed(theta)): minus the product of the two gradients.

        Both losses use the same (t, noise): their difference is the perturbation's doing. The pictures are coupled by
        the product.
        """
        weights = list(unet.parameters())

        def loss(x: Tensor, index: list[int]) -> Tensor:
            z = model.encode(x)
            with torch.no_grad():
                z_clean = model.encode(torch.stack([clean[i] for i in index]).to(x.device))
            t, noise = self._draw(model, z, [rngs[i] for i in index])
            run.tally("unet_image", 2 * len(t))
            many = cond.take(torch.tensor(index)).repeat(self.samples)

            def gradients(latents: Tensor, graph: bool) -> tuple[Tensor, ...]:
                each = model.loss(latents.repeat_interleave(self.samples, 0), many, t, noise, unet)
                return torch.autograd.grad(each.mean(), weights, create_graph=graph)

            # The one attention kernel with second derivatives.
            with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH), self._autocast(run):
                wanted = gradients(z_clean, False)
                taught = gradients(z, True)
            product = torch.stack([(a * b).sum() for a, b in zip(wanted, taught, strict=True)]).sum()
            return -product.view(1)

        return loss


class EUDP(UDP):
    """UDP with time steps drawn by how much of the perturbation the forward process leaves (see
    ``time_distribution``)."""

    version: ClassVar[int] = 3
    default_times: ClassVar[str] = "sqrt_alpha_bar"
