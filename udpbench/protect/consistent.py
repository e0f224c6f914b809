"""The owner who expects IMPRESS: a protection that also keeps the autoencoder consistent (Cao et al., NeurIPS 2023)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, is_dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, cast

from torch import Tensor

from udpbench.core.budget import Budget
from udpbench.interfaces import Owner, Run
from udpbench.models.latent import inconsistency

if TYPE_CHECKING:
    from udpbench.models.latent import LatentDiffusion


class Consistent:
    """Ascend ``L(x) - beta * mean |x - D(E(x))|^2``, pixels in [-1,1], where ``L`` is what ``inner`` ascends.

    IMPRESS finds protected pictures by their reconstruction, so this protection leaves it nothing to find. The
    paper's: the idea. The released code's: Glaze inside, the mean of squares, the posterior mean, the gradient through
    both sides, and ``beta`` 30 (beside a mean square of unscaled latents, with a note that it wants tuning; with
    scaled ones, as here, that is 30 times the square of the model's latent scale). Our choices: the term goes to any
    protection that heeds ``Run.penalty``, and ``beta`` is in the units of its ``L``.

    Args:
        inner: the protection.
        beta: weight of the consistency, at least 0.
    """

    version: ClassVar[int] = 1
    places: ClassVar[tuple[str, ...]] = ("inner",)  # ``identity`` says what it is, without *its* places

    def __init__(self, inner: Any, beta: float) -> None:
        if not getattr(inner, "heeds_penalty", False):
            raise ValueError(
                f"consistent: {type(inner).__name__} optimises nothing that could heed the consistency; allowed are "
                "protections whose class says heeds_penalty = True, e.g. udp, eudp, advdm, photoguard, glaze"
            )
        if isinstance(beta, bool) or not isinstance(beta, int | float) or not beta >= 0:
            raise ValueError(f"consistent: beta must be a number >= 0, given {beta!r}")
        self.inner, self.beta = inner, beta
        self.needs: frozenset[str] = inner.needs | {"latent"}
        self.couples_images: bool = inner.couples_images

    @property
    def label(self) -> str:
        """Name with what is inside and the weight."""
        return f"consistent_{getattr(self.inner, 'label', type(self.inner).__name__.lower())}_{self.beta:g}"

    def check(self) -> None:
        """ValueError saying what ``inner`` lacks on this machine."""
        if hasattr(self.inner, "check"):
            self.inner.check()

    def identity(self) -> dict[str, Any]:
        """What names ``inner`` in a key: its class, version and settings, and the digests of what it reads."""
        inner, places = self.inner, getattr(self.inner, "places", ())
        # Constructors keep what they were given, so what an object holds are its settings.
        held = {k: v for k, v in vars(inner).items() if k not in places}
        return {
            "inner": f"{type(inner).__module__}.{type(inner).__qualname__}",
            "version": inner.version,
            "settings": {k: asdict(cast(Any, v)) if is_dataclass(v) else v for k, v in held.items()},
            "identity": inner.identity() if hasattr(inner, "identity") else {},
        }

    def __call__(self, owner: Owner, budget: Budget, surrogates: Sequence[LatentDiffusion], run: Run) -> list[Tensor]:
        """Perturbed pictures, CHW [0,1] within ``budget`` of ``owner.images``."""
        heeded = False

        def penalty(x: Tensor) -> Tensor:
            nonlocal heeded
            heeded = True
            run.tally("vae_image", len(x))
            return self.beta * inconsistency(x, surrogates[0])

        made = self.inner(owner, budget, surrogates, replace(run, penalty=penalty))
        if not heeded:
            raise ValueError(f"consistent: {type(self.inner).__name__} says that it heeds the consistency and does not")
        return made
