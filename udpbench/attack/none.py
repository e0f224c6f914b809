"""No attack."""

from __future__ import annotations

from udpbench.interfaces import Attack


class Nothing(Attack):
    """The thief uses the pictures as they are."""
