"""The owner who expects IMPRESS: a protection that also keeps the autoencoder consistent (Cao et al., NeurIPS 2023)."""

from __future__ import annotations

from dataclasses import asdict, dataclass, is_dataclass, replace
from typing import Any, cast

from torch import Tensor

from udpbench.core.budget import Budget
from udpbench.core.component import check_numbers
from udpbench.interfaces import Dataset, Owner, Protection, Run
from udpbench.models.latent import LatentDiffusion, inconsistency


@dataclass(kw_only=True)
class Consistent(Protection):
    """Ascend ``L(x) - beta * mean |x - D(E(x))|^2``, pixels in [-1,1], where ``L`` is what ``inner`` ascends.

    IMPRESS recognises protected pictures by their reconstruction error, which this protection keeps low. The paper's:
    the idea. The released code's: Glaze inside, the mean of squares, the posterior mean, the gradient through both
    sides, and ``beta`` 30 (beside a mean square of unscaled latents, with a note that it needs tuning; with scaled
    ones, as here, that is 30 times the square of the model's latent scale). Our choices: the term goes to any
    protection that heeds ``Run.penalty``, and ``beta`` is in the units of its ``L``.

    Args:
        inner: the protection.
        beta: weight of the consistency, at least 0.
    """

    inner: Protection
    beta: float

    places = ("inner",)  # ``identity`` says what it is, without *its* places

    def __post_init__(self) -> None:
        if not self.inner.heeds_penalty:
            why = f"{type(self.inner).__name__} optimises nothing that could heed the consistency"
            allowed = "whose class says heeds_penalty = True, e.g. udp, eudp, advdm, photoguard, glaze"
            raise ValueError(f"consistent: {why}; allowed are protections {allowed}")
        check_numbers("consistent", least=0, beta=self.beta)
        self.needs = self.inner.needs | {"latent"}  # type: ignore[misc]  # here it is the instance's
        self.class_images = self.inner.class_images
        self.couples_images = self.inner.couples_images

    @property
    def label(self) -> str:
        """Name with what is inside and the weight."""
        return f"consistent_{self.inner.label or type(self.inner).__name__.lower()}_{self.beta:g}"

    @property
    def starts_from_weights(self) -> bool:
        return self.inner.starts_from_weights

    @property
    def wants_extra_clean(self) -> bool:
        return self.inner.wants_extra_clean

    def check(self) -> None:
        self.inner.check()

    def check_data(self, data: Dataset) -> None:
        self.inner.check_data(data)

    def identity(self) -> dict[str, Any]:
        """Class, version and settings of ``inner``, and the digests of what it reads."""
        inner = self.inner
        # Constructors keep what they were given, so what an object holds are its settings.
        held = {k: v for k, v in vars(inner).items() if k not in inner.places}
        return {
            "inner": f"{type(inner).__module__}.{type(inner).__qualname__}",
            "version": inner.version,
            "settings": {k: asdict(cast(Any, v)) if is_dataclass(v) else v for k, v in held.items()},
            "identity": inner.identity(),
        }

    def protect(self, owner: Owner, budget: Budget, surrogate: LatentDiffusion, run: Run) -> list[Tensor]:
        heeded = False

        def penalty(x: Tensor) -> Tensor:
            nonlocal heeded
            heeded = True
            run.tally("vae_image", len(x))
            return self.beta * inconsistency(x, surrogate)

        made = self.inner.protect(owner, budget, surrogate, replace(run, penalty=penalty))
        if not heeded:
            raise ValueError(f"consistent: {type(self.inner).__name__} says that it heeds the consistency and does not")
        return made
