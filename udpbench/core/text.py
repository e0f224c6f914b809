"""Numbers as a person reads them, and JSON."""

from __future__ import annotations

import json
import re
from typing import Any


def clock_text(seconds: float) -> str:
    """0:20, 1:02:03."""
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}:{m:02d}:{s:02d}" if hours else f"{m}:{s:02d}"


CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")  # characters that tell a terminal what to do


def check_stands(who: str, text: str, *allowed: str) -> None:
    """ValueError if a ``{word}`` in ``text`` is none of ``allowed``: nothing would be put in its place, and a model
    would read the braces."""
    if odd := next((word for word in re.findall(r"\{(\w+)\}", text) if word not in allowed), ""):
        words = ", ".join(f"{{{word}}}" for word in allowed)
        raise ValueError(f"{who}: {{{odd}}} in {text!r} stands for nothing{words and f'; allowed is {words}'}")


def shown_name(name: str) -> str:
    """The name of a file for a person: bytes of it that are no text are replaced."""
    return name.encode(errors="surrogateescape").decode(errors="replace")


def json_text(value: Any, **how: Any) -> str:
    """``value`` as JSON for a person; what UTF-8 cannot hold, such as names of files that are no text, is escaped."""
    text = json.dumps(value, ensure_ascii=False, **how)
    try:
        text.encode()
    except UnicodeEncodeError:
        return json.dumps(value, **how)
    return text
