"""SimAC: ASPL at time steps chosen for each picture, and with features disturbed (Wang et al., CVPR 2024, arXiv
2312.07865)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from udpbench.core.budget import Budget
from udpbench.core.component import check_numbers
from udpbench.interfaces import Log, Owner, Run
from udpbench.models.attention import refuse_compiled
from udpbench.models.diffusion import Cond
from udpbench.models.latent import LatentDiffusion
from udpbench.optim.denoising import Objective, Times, denoising_loss
from udpbench.optim.pgd import Loss, chunks, first_length, pgd
from udpbench.protect.aspl import ASPL


@dataclass(kw_only=True)
class SimAC(ASPL):
    """ASPL whose time steps are drawn from those where the gradient is strong, found greedily for each picture before;
    the paper's loss also raises the distance between the features of the perturbed and the clean picture.

    In each round of the search, the pretrained model's loss is differentiated at ``candidates`` random steps of those
    that are left; the steps around the one with the weakest gradient (sum of absolute values) are dropped, and the
    picture moves one step up at that with the strongest. It is done when at most ``keep`` steps are left; what moved is
    forgotten, the steps that are left remain.

    Paper and released code differ: there the feature term is a number without a gradient, so the code as released is
    ``feature_weight`` 0 (protect=simac). The layers are the released code's: what the last three residual blocks of the
    decoder add. Our choices are: ``feature_weight`` 1, its value in that code, the clean picture (there: the perturbed
    one at the beginning of a round) under the same noise, and that a picture whose search ends early keeps all steps
    that are left.

    Args:
        search_rounds, candidates, window, keep: of the search; a window of w drops the 2 w steps around one.
        feature_weight: of the feature term; 0: none.
    """

    search_rounds: int
    candidates: int = 5
    window: int = 20
    keep: int = 100
    feature_weight: float = 0.0

    version = 2  # 2: what is drawn in the search does not depend on how many gradients are computed at once
    name: ClassVar[str] = "simac"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_numbers(self.name, least=0, search_rounds=self.search_rounds, feature_weight=self.feature_weight)
        check_numbers(self.name, least=1, candidates=self.candidates, window=self.window, keep=self.keep)
        if self.feature_weight and self.target is not None:
            raise ValueError(f"{self.name}: the feature term has no target; give target=null or feature_weight=0")

    def check_model(self, model: LatentDiffusion) -> None:
        super().check_model(model)
        if self.feature_weight:
            refuse_compiled(self.name, model)

    def times(self, model: LatentDiffusion, owner: Owner, budget: Budget, run: Run) -> Times:
        left = [self._search(i, model, owner, budget, run) for i in range(len(owner.images))]

        def drawn(index: list[int], rngs: Sequence[torch.Generator], n: int) -> Tensor:
            each = zip(index, rngs, strict=True)
            return torch.cat([left[i][torch.randint(len(left[i]), (n,), generator=rng)] for i, rng in each])

        return drawn

    def _search(self, i: int, model: LatentDiffusion, owner: Owner, budget: Budget, run: Run) -> Tensor:
        """The time steps that are left for picture ``i``, sorted."""
        rng, x = run.rng(self.name, "search", owner.names[i]), owner.images[i].to(run.device)
        cond = model.embed(owner.prompts[i : i + 1])
        # A picture alone, whatever wraps the ascent.
        steps = [first_length(self.step_size, budget.eps)]
        quiet = replace(run, log=Log(), loss_hook=None, gradient_hook=None)
        settings: dict[str, Any] = {"samples": 1, "sample_latents": self.sample_latents, "dtype": self.dtype}

        def at(t: Tensor) -> Loss:
            """The loss of the picture at each of the steps ``t``; its rows go by their numbers in ``t``."""
            # Rows are computed in chunks that fit into memory, and each has two draws if latents are drawn: from a
            # generator of its own, then, so that they do not depend on the chunks.
            seeds = torch.randint(2**62, (len(t),), generator=rng).tolist() if self.sample_latents else []
            rngs = [torch.Generator().manual_seed(seed) for seed in seeds] or [rng] * len(t)
            conds = cond.repeat(len(t))
            return denoising_loss(model, conds, rngs, run, **settings, times=lambda index, *_: t[index])

        def climb(t: Tensor) -> None:
            nonlocal x
            (x,) = pgd([x], owner.images[i : i + 1], at(t.view(1)), budget, quiet, steps=steps, most=None)

        def strengths(t: Tensor) -> Tensor:
            return _strengths(x, at(t), len(t), run)

        return self.search(len(model.alpha_bar), rng, strengths, climb)

    def search(
        self,
        steps: int,
        rng: torch.Generator,
        strengths: Callable[[Tensor], Tensor],
        climb: Callable[[Tensor], None],
    ) -> Tensor:
        """Those of ``steps`` time steps that are left, sorted, when ``strengths(t)`` says how strong the gradient at
        each of ``t`` is and ``climb(t)`` moves the picture at one of them."""
        left = torch.ones(steps, dtype=torch.bool)
        for _ in range(self.search_rounds):
            among = left.nonzero()[:, 0]
            if len(among) <= self.keep:
                break
            tried = among[torch.randint(len(among), (self.candidates,), generator=rng)]
            strength = strengths(tried)
            middle = int(tried[strength.argmin()].clamp(self.window, max(self.window, steps - self.window)))
            fewer = left.clone()
            fewer[middle - self.window : middle + self.window] = False
            if not fewer.any():
                break
            left = fewer
            climb(tried[strength.argmax()])
        return left.nonzero()[:, 0]

    def objective(self, model: LatentDiffusion, owner: Owner, run: Run) -> Objective | None:
        if not self.feature_weight:
            return super().objective(model, owner, run)
        clean = [model.encode(x[None].to(run.device))[0] for x in owner.images]

        def loss(z: Tensor, cond: Cond, t: Tensor, noise: Tensor, which: list[int]) -> Tensor:
            with features(model.pipe.unet) as of_perturbed:
                raised = model.loss(z, cond, t, noise)
            with torch.no_grad(), features(model.pipe.unet) as of_clean:
                noisy = model.noised(torch.stack([clean[i] for i in which]), t, noise)
                model.predict(noisy, t, cond)
            run.tally("unet_clean", len(z))
            apart = [(a - b).float().square().flatten(1).mean(1) for a, b in zip(of_perturbed, of_clean, strict=True)]
            return raised + self.feature_weight * torch.stack(apart).mean(0)

        return loss


@contextmanager
def features(unet: nn.Module) -> Iterator[list[Tensor]]:
    """What the residual blocks of the last decoder stage add in a pass within the block, (N, C, h, w) each."""
    seen: list[Tensor] = []
    blocks = unet.up_blocks[-1].resnets  # type: ignore[index,union-attr]
    hooks = [block.conv2.register_forward_hook(lambda module, given, out: seen.append(out)) for block in blocks]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def _strengths(x: Tensor, loss: Loss, n: int, run: Run) -> Tensor:
    """Sum of the absolute gradient of each of ``n`` losses at the picture ``x`` (CHW), (n,) on the CPU."""
    found = []
    for index in chunks([x] * n, run.grad_batch):
        many = x.repeat(len(index), 1, 1, 1).requires_grad_(True)
        (gradient,) = torch.autograd.grad(loss(many, index).sum(), many)
        found.append(gradient.abs().flatten(1).sum(1))
    return torch.cat(found).cpu()
