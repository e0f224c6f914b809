"""What a tracker is shown of a finished cell."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from udpbench.benchmark.arms import ARMS
from udpbench.core.folders import pictures_in
from udpbench.core.images import list_images
from udpbench.results.record import long_rows, metrics_of
from udpbench.results.schema import Record
from udpbench.results.stats import derived, differences
from udpbench.tracking.track import Tracker

SHOWN = 4  # pictures of an arm


def mirror(record: Record, sheet: Path, tracker: Tracker) -> None:
    """The contact sheet and some pictures of every arm, every score, a chart of the arms per primary score, scores
    along the training (beside the losses), and the numbers by which runs are compared; these as a row of a table, too,
    which a tracker may put together with those of other cells."""
    tracker.attempt(partial(_mirror, record, sheet, tracker))


def _mirror(record: Record, sheet: Path, tracker: Tracker) -> None:
    tracker.images("contact sheet", [sheet])
    for name, paths in pictures(record):
        tracker.images(name, paths)
    tracker.table("scores", long_rows([record]))
    tracker.table("cells", [cell_row(record)])
    for metric, about in metrics_of([record]).items():
        if about["primary"]:
            tracker.bars(f"{metric} by arm", by_arm(record, metric))
    for name, value, step in along_training(record):
        tracker.scalar(name, value, step)
    tracker.summary(summary(record))


def pictures(record: Record) -> Iterator[tuple[str, list[Path]]]:
    """(panel, files): of each arm some pictures that it was given and some that were made."""
    for arm, part in record["arms"].items():
        for kind, folder in (("given", part.get("pictures")), ("made", part["images"])):
            if folder and Path(folder).is_dir():
                yield f"pictures {kind}/{arm}", list_images(pictures_in(Path(folder)))[:SHOWN]


def cell_row(record: Record) -> dict[str, Any]:
    """The cell's names and, on its primary scores, effect and residual."""
    primary = [metric for metric, about in metrics_of([record]).items() if about["primary"]]
    found = summary(record)
    derived_names = [f"{name}/{metric}" for name in derived(record) for metric in primary]
    return {**record["cell"], "label": record["label"]} | {name: found.get(name) for name in derived_names}


def by_arm(record: Record, metric: str) -> dict[str, float]:
    """Arm -> value of ``metric``, in the order of tables."""
    arms = [(arm, record["arms"][arm]["metrics"]) for arm in ARMS if arm in record["arms"]]
    return {arm: found[metric]["value"] for arm, found in arms if metric in found}


def along_training(record: Record) -> Iterator[tuple[str, float, int]]:
    """(name, value, training steps) of every score at every point of the curve.

    The names are not those of ``summary``: wandb keeps the last value of a curve as the run's number of that name. Of a
    task without a setting ``steps``: percent of the training.
    """
    steps = record["config"]["task"].get("steps", 100)
    for arm, part in record["arms"].items():
        for multiplier in sorted(part["curve"], key=float):
            step = round(float(multiplier) * steps)
            for metric, value in part["curve"][multiplier].items():
                yield f"curve/{arm}/{metric}", value, step


def summary(record: Record) -> dict[str, float]:
    """ARM/METRIC, effect/METRIC and residual/METRIC -> number."""
    found = {f"{arm}/{m}": value for m in metrics_of([record]) for arm, value in by_arm(record, m).items()}
    for name, (arm, base) in derived(record).items():
        for metric in metrics_of([record]):
            found |= {f"{name}/{metric}": d for d in differences([record], arm, base, metric).values()}
    return found
