"""Data folders: pictures, captions and data.json."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from torch import Tensor

from udpbench.core import images
from udpbench.core.atomic import atomic_write


def write_pictures(
    folder: Path, pictures: Iterable[tuple[str, Tensor]], advance: Callable[[int], None] = lambda n: None
) -> list[str]:
    """Write (stem, CHW in [0,1]) as PNGs, one at a time; returns the file names."""
    folder.mkdir(parents=True, exist_ok=True)
    names = []
    for stem, picture in pictures:
        names.append(f"{stem}.png")
        images.write_png(folder / names[-1], picture)
        advance(1)
    return names


def numbered(pictures: Iterable[Tensor]) -> Iterator[tuple[str, Tensor]]:
    """(stem, picture) for ``write_pictures``: 0000, 0001, ..."""
    return ((f"{i:04d}", picture) for i, picture in enumerate(pictures))


def _filled(prompts: Sequence[str], instance: str) -> list[str]:
    return [p.replace("{instance}", instance) for p in prompts]


def write_facts(out: Path, name: str, instance: str, class_prompt: str, prompts: Sequence[str], sets: bool) -> None:
    """Write data.json of pictures whose truth is not known.

    ``{instance}`` in the prompts becomes the instance prompt.
    """
    facts = {
        "name": name,
        "instance_prompt": instance,
        "class_prompt": class_prompt,
        "prompts": _filled(prompts, instance),
        "truth": None,
        "sets": sets,
    }
    with atomic_write(out / "data.json") as beside:
        beside.write_text(json.dumps(facts, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
