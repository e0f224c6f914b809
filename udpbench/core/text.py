"""Numbers as a person reads them."""

from __future__ import annotations


def clock_text(seconds: float) -> str:
    """0:20, 1:02:03."""
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}:{m:02d}:{s:02d}" if hours else f"{m}:{s:02d}"
