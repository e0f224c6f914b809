"""What the pictures of a board look like: those that were trained on or edited, and what was made of them, arm by arm;
small, from a store of finished stages, into the page itself."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from udpbench.benchmark.arms import ARMS
from udpbench.core.folders import edits_of, pictures_in
from udpbench.core.images import list_images, read, to_pil
from udpbench.results.record import grouped
from udpbench.results.report.arms import arm_name
from udpbench.results.report.standings import Standings
from udpbench.results.schema import Record
from udpbench.results.stats import victim

SIDE = 160  # px of the longest side
GIVEN, MADE = 3, 5  # pictures in a row: of those given, of those made
BYTES = 3_000_000  # of all pictures of a page, as they stand in it


_STAGE = re.compile(r"([a-z_]+)[/\\\\]([0-9a-f]{16})$")  # kind and key, where a path ends


@dataclass(frozen=True)
class Strip:
    """A row of pictures as data URIs: what the arm ``name`` was ``given`` and what was ``made`` of it."""

    name: str
    given: Sequence[str]
    made: Sequence[str]


@dataclass(frozen=True)
class Shown:
    """The pictures of one victim, ``left_out`` rows for want of room."""

    victim: str
    strips: Sequence[Strip]
    left_out: int

    @property
    def any_given(self) -> bool:
        """Whether it is known what anything was made of; older records do not say."""
        return any(strip.given for strip in self.strips)


def pictures(found: Standings, store: Path, room: int) -> Shown | None:
    """The pictures of the victim with most records, at most ``room`` bytes; None where ``store`` has none of them.

    Room goes first to what all protections share, then to each protection by rank, then to what the attack leaves that
    leaves least, then to the other attacks.
    """
    (subject, seed), records = max(grouped(found.board.records, victim).items(), key=lambda item: len(item[1]))
    arms: dict[str, tuple[str, Record]] = {}
    for record in records:
        for arm in record["arms"]:
            arms.setdefault(arm_name(arm, **record["cell"]), (arm, record))
    rank = {row.name: place for place, row in enumerate(found.rows)}
    best = {row.name: max(t, key=lambda a: t[a]) for row in found.rows for t in list(row.taken.values())[:1]}

    def wanted(item: tuple[str, tuple[str, Record]]) -> tuple[int, int]:
        arm, record = item[1]
        cell, depends = record["cell"], ARMS[arm].depends
        others = "attack" in depends and best.get(cell["protect"]) != cell["attack"]
        return len(depends) + others, rank.get(cell["protect"], 0)

    strips, left_out = [], 0
    for name, (arm, record) in sorted(arms.items(), key=wanted):
        made = None if room <= 0 else _strip(name, arm, record, store)
        room -= sum(map(len, (*made.given, *made.made))) if made else 0
        if made and room >= 0:
            strips.append(((_place(arm, record, rank), name), made))
        left_out += room < 0
    shown = [strip for _, strip in sorted(strips, key=lambda item: item[0])]
    return Shown(f"{subject}, seed {seed}", shown, left_out) if shown else None


def _place(arm: str, record: Record, rank: Mapping[str, int]) -> tuple[int, int]:
    """Where a row stands: what all share, protection by protection, attacks on clean pictures."""
    depends = ARMS[arm].depends
    group = 1 if "protect" in depends else 2 if depends else 0
    return group, rank.get(record["cell"]["protect"], 0) if group == 1 else list(ARMS).index(arm)


def _strip(name: str, arm: str, record: Record, store: Path) -> Strip | None:
    part = record["arms"][arm]
    given, made = _listed(store, part.get("pictures", "")), _listed(store, part["images"])
    if given and made and record["facts"]["edits"]:  # edits stand under the pictures they were made of
        found = edits_of(made[0].parent)
        chosen = [of[k % len(of)] for k, path in enumerate(given[:GIVEN]) if (of := found.get(path.name))]
    else:
        chosen = [made[k * len(made) // MADE] for k in range(min(MADE, len(made)))]
    return Strip(name, _uris(given[:GIVEN]), _uris(chosen)) if made else None


def _listed(store: Path, text: str) -> list[Path]:
    """The pictures in a folder that a record names. Only the kind and the key of the stage are taken from it, so that
    no record makes a page show what is not in the store."""
    found = _STAGE.search(text)
    with suppress(ValueError):  # there is none, or none any more
        return list_images(pictures_in(store / found[1] / found[2])) if found else []
    return []


def _uris(paths: Sequence[Path]) -> list[str]:
    """Small WebPs, small pictures with few losses: a perturbation shall be seen. Without what cannot be read."""
    found = []
    for path in paths:
        with suppress(ValueError):
            picture = to_pil(read(path))
            picture.thumbnail((SIDE, SIDE))
            out = io.BytesIO()
            picture.save(out, format="WEBP", quality=92 if max(picture.size) <= 96 else 80)
            found.append(f"data:image/webp;base64,{base64.b64encode(out.getvalue()).decode()}")
    return found
