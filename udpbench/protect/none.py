"""No protection."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor

from udpbench.core.budget import Budget
from udpbench.interfaces import Owner, Run


class Nothing:
    """The pictures as they are."""

    version: ClassVar[int] = 1
    couples_images: ClassVar[bool] = False
    needs: ClassVar[frozenset[str]] = frozenset()

    def __call__(self, owner: Owner, budget: Budget, surrogates: Sequence, run: Run) -> list[Tensor]:
        """The owner's pictures, CHW [0,1]."""
        return list(owner.images)
