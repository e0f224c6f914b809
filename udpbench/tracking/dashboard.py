"""What a tracker is shown of a finished cell."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from udpbench.benchmark.arms import ARMS
from udpbench.results.record import long_rows, metrics_of
from udpbench.results.schema import Record
from udpbench.results.stats import derived, differences
from udpbench.tracking.track import Tracker


def mirror(record: Record, sheet: Path, tracker: Tracker) -> None:
    """The contact sheet, every score, a chart of the arms per primary score, scores along the training (beside the
    losses), and the numbers by which runs are compared."""
    tracker.image("contact sheet", sheet)
    tracker.table("scores", long_rows([record]))
    for metric, about in metrics_of([record]).items():
        if about["primary"]:
            tracker.bars(f"{metric} by arm", by_arm(record, metric))
    for name, value, step in along_training(record):
        tracker.scalar(name, value, step)
    tracker.summary(summary(record))


def by_arm(record: Record, metric: str) -> dict[str, float]:
    """Arm -> value of ``metric``, in the order of tables."""
    arms = [(arm, record["arms"][arm]["metrics"]) for arm in ARMS if arm in record["arms"]]
    return {arm: found[metric]["value"] for arm, found in arms if metric in found}


def along_training(record: Record) -> Iterator[tuple[str, float, int]]:
    """(name, value, training steps) of every score at every point of the curve.

    The names are not those of ``summary``: wandb keeps the last value of a curve as the run's number of that name.
    """
    for arm, part in record["arms"].items():
        for multiplier in sorted(part["curve"], key=float):
            step = round(float(multiplier) * record["config"]["task"]["steps"])
            for metric, value in part["curve"][multiplier].items():
                yield f"curve/{arm}/{metric}", value, step


def summary(record: Record) -> dict[str, float]:
    """ARM/METRIC, effect/METRIC and residual/METRIC -> number."""
    found = {f"{arm}/{m}": value for m in metrics_of([record]) for arm, value in by_arm(record, m).items()}
    for name, (arm, base) in derived(record).items():
        for metric in metrics_of([record]):
            found |= {f"{name}/{metric}": d for d in differences([record], arm, base, metric).values()}
    return found
