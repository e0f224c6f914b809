"""No protection."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from udpbench.core.budget import Budget
from udpbench.interfaces import Owner, Protection, Run


class Nothing(Protection):
    """The pictures as they are."""

    protects = False
    couples_images = False

    def protect(self, owner: Owner, budget: Budget, surrogate: Any, run: Run) -> list[Tensor]:
        return list(owner.images)
