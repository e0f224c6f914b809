"""Run one cell: do its stages, gather its record, draw its contact sheet."""

from __future__ import annotations

import json
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from udpbench.benchmark.arms import Arm, arms, perturbation_scores, scores, validation_scores
from udpbench.benchmark.stages import Cell, data_stage
from udpbench.benchmark.store import Stage, Store, hash_of
from udpbench.core.images import fit_square, list_images, read
from udpbench.core.provenance import provenance
from udpbench.results import flags, record, sheet

SHOWN = 8  # pictures per row of the contact sheet


def wanted(cell: Cell) -> list[Stage]:
    """Every stage the cell's record is made of; in the order in which their work is best done (arm by arm)."""
    found: list[Stage] = []
    for arm in arms(cell).values():
        found += [*perturbation_scores(cell, arm), *arm.generated.values(), *scores(cell, arm).values()]
        found += validation_scores(cell, arm).values()
    return found


def cell_key(cell: Cell) -> str:
    """The cell's own key: of all it is made of."""
    return hash_of([stage.key for stage in wanted(cell)])


def run_cell(cell: Cell, store: Store, config: Mapping[str, Any]) -> record.Record:
    """Do whatever is missing and return the record."""
    done_before = set(store.computed)
    stages = wanted(cell)
    store.do(*stages)
    computed = set(store.computed) - done_before
    made = arms(cell)
    found = empty_record(cell, store, config)
    found["arms"] = {name: _arm(cell, store, arm) for name, arm in made.items()}
    found["perturbation"] = {
        name: {k: v for stage in perturbation_scores(cell, arm) for k, v in _read_scores(store, stage).items()}
        for name, arm in made.items()
        if arm.pictures is not None and arm.pictures.name != "data"
    }
    found["stages"] = [
        _cost(store, stage, stage.key in computed) for stage in with_ancestors(stages) if store.finished(stage)
    ]
    found["counts"] = _counts(cell, store)
    found["flags"] = flags.of_record(found)
    return found


def empty_record(cell: Cell, store: Store, config: Mapping[str, Any]) -> record.Record:
    """The parts of a record that are known before anything is measured."""
    return {
        "schema": record.SCHEMA,
        "status": "ok",
        "cell": cell.names,  # type: ignore[typeddict-item]
        "label": label(cell),
        "facts": facts(cell),
        "knowledge": knowledge(cell),
        "arms": {},
        "perturbation": {},
        "counts": {},
        "stages": [],
        "config": dict(config),
        "provenance": provenance(store.device),
        "flags": [],
        "error": None,
    }


def failed_record(cell: Cell, store: Store, config: Mapping[str, Any], error: BaseException) -> record.Record:
    """The record of a cell that did not finish: its traceback in place of scores."""
    found = empty_record(cell, store, config)
    found["status"] = "failed"
    found["error"] = "".join(traceback.format_exception(error))
    return found


def facts(cell: Cell) -> record.Facts:
    """What readers of the record must know of the cell beside its names."""
    return {
        "budget": {"kind": cell.budget.thing.kind, "eps": cell.budget.thing.eps},
        "preset": cell.protect.preset,
        "edits": not cell.task.thing.trains,
        "embedded": cell.victim.thing.embedded,
        "protected_fraction": cell.protected_fraction,
    }


def label(cell: Cell) -> str:
    """Which leaderboard the cell belongs to: the embedded model's numbers never share one with another model's."""
    return "embedded world (64 px)" if cell.victim.thing.embedded else cell.victim.name


def knowledge(cell: Cell) -> dict[str, bool]:
    """What the owner's model has in common with the thief's; of models without an autoencoder, all or nothing."""
    mine, theirs = (part.thing.identity() for part in (cell.surrogate, cell.victim))

    def same(part: str) -> bool:
        ours, others = ({k: of[k] for k in (part, "hub", "revision") if k in of} for of in (mine, theirs))
        return ours == others

    latent = "latent" in cell.surrogate.thing.capabilities | cell.victim.thing.capabilities
    same_unet = same("unet")
    return {
        "same_vae": same("vae") if latent else same_unet,
        "same_unet": same_unet,
        "same_prompt": cell.owner_prompt == "data",
    }


def draw_sheet(cell: Cell, store: Store, path: Path) -> None:
    """The contact sheet: training pictures clean, protected, purified, what was added, and what each arm generated;
    edits stand under the picture they were made of, prompt after prompt."""
    made = arms(cell)
    training: dict[str, list] = {"clean": _some(store, data_stage(cell))}  # whether or not clean is among the arms
    training |= {name: _some(store, made[name].pictures) for name in ("protected", "purified") if name in made}
    edits = not cell.task.thing.trains
    each = cell.task.thing.made(1) if edits else 1
    generated = {name: _some(store, arm.final, each) for name, arm in made.items()}
    holes = _holes(cell, store.path(data_stage(cell)), training["clean"]) if edits else []
    sheet.write_sheet(path, sheet.cell_rows(training, generated, edits=edits, holes=holes))


def _some(store: Store, stage: Stage | None, each: int = 1) -> list:
    """Pictures to show of a stage that made ``each`` of every picture it was given: of the k-th, the k-th in turn."""
    assert stage is not None
    folder = store.path(stage)
    paths = list_images(folder / "train" if stage.name == "data" else folder)
    return [read(paths[k * each + k % each]) for k in range(min(SHOWN, len(paths) // each))]


def _holes(cell: Cell, data: Path, shown: list) -> list:
    """What the task paints anew in the pictures to show, the first ones; nothing if it edits whole pictures."""
    names = (path.name for path in list_images(data / "train"))
    squares = {name: fit_square(x, min(x.shape[-2:])) for name, x in zip(names, shown, strict=False)}
    return list(cell.task.thing.holes(squares, data / "masks").values())


def _read_scores(store: Store, stage: Stage) -> dict[str, float]:
    return json.loads((store.path(stage) / "scores.json").read_text())


def _arm(cell: Cell, store: Store, arm: Arm) -> record.Arm:
    curve: dict[str, dict[str, float]] = {}
    validation: dict[str, dict[str, float]] = {}
    for into, stages in ((curve, scores(cell, arm)), (validation, validation_scores(cell, arm))):
        for (_, share), stage in stages.items():
            into.setdefault(f"{share:g}", {}).update(_read_scores(store, stage))
    n = len(list_images(store.path(arm.final)))
    wants = {name: want for m in cell.metrics.values() for name, want in m.thing.scores.items()}
    found: record.Arm = {
        "metrics": {
            name: {"value": value, "n": n, "better_protected": wants[name], "primary": name in cell.primary}
            for name, value in curve["1"].items()
        },
        "absent": dict(cell.absent)
        | {name: "the metric has no finite value here" for name in wants if name not in curve["1"]},
        "key": arm.final.key,
        "curve": curve if len(curve) > 1 else {},
        "images": str(store.path(arm.final)),
    }
    if validation:
        found["curve_validation"] = validation
    return found


def with_ancestors(stages: list[Stage]) -> list[Stage]:
    """The stages and their ancestors, each once, parents first."""
    found: dict[str, Stage] = {}

    def visit(stage: Stage) -> None:
        if stage.key not in found:
            for parent in stage.parents.values():
                visit(parent)
            found[stage.key] = stage

    for stage in stages:
        visit(stage)
    return list(found.values())


def _cost(store: Store, stage: Stage, computed: bool) -> record.Stage:
    facts = store.facts(stage)
    costs = {k: facts[k] for k in ("seconds", "peak_mb", "device", "commit")}
    return {"name": str(stage), "key": stage.key, "cached": not computed, **costs}  # type: ignore[typeddict-item]


def _counts(cell: Cell, store: Store) -> dict[str, int]:
    """Work the protection and the attack took, as the harness counted it."""
    total: dict[str, int] = {}
    for name in ("protected", "purified"):
        stage = made.pictures if (made := arms(cell).get(name)) else None
        for k, v in (store.facts(stage)["counts"] if stage and store.finished(stage) else {}).items():
            total[k] = total.get(k, 0) + v
    return total
