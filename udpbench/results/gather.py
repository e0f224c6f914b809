"""A cell's record and contact sheet, gathered from its graph and the store."""

from __future__ import annotations

import json
import traceback
from collections import Counter
from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from udpbench.benchmark.cell import Cell, Part
from udpbench.benchmark.graph import Arm, Graph, Scores
from udpbench.benchmark.stage import Stage, hash_of
from udpbench.benchmark.stages import compared_with
from udpbench.benchmark.store import Store
from udpbench.benchmark.texts import cut_captions
from udpbench.core.folders import edits_of, pictures_in, read_data_facts
from udpbench.core.images import list_images, read
from udpbench.core.pixels import fit_square
from udpbench.core.provenance import provenance
from udpbench.results import flags, sheet
from udpbench.results.schema import EMBEDDED, SCHEMA, ArmScores, Record, Score, StageCost

SHOWN = 8  # pictures per row of the contact sheet


def record_of(graph: Graph, store: Store, config: Mapping[str, Any], computed: Collection[str]) -> Record:
    """The record of a finished cell; ``computed``: keys of the stages that this run did."""
    found = _empty(graph.cell, store, config)
    for name, arm in graph.arms.items():
        found["arms"][name] = _arm(graph.cell, store, arm)
        if measured := [_read_scores(store, stage) for stage in arm.perturbation]:
            found["perturbation"][name] = {k: v for scores in measured for k, v in scores.items()}
    found["stages"] = [_cost(store, stage, computed) for stage in graph.stages if store.has_facts(stage)]
    found["counts"] = _counts(graph, store)
    found["facts"]["captions_cut"] = cut_captions(graph.cell)
    found["facts"]["shared"] = read_data_facts(store.path(graph.data)).get("shared", {})
    found["flags"] = flags.of_record(found)
    return found


def failed_record(graph: Graph, store: Store, config: Mapping[str, Any], error: BaseException) -> Record:
    """The record of a cell that did not finish: its traceback in place of scores, and what of its stages is there,
    which the same cell will need again."""
    failed: Any = {"status": "failed", "error": "".join(traceback.format_exception(error)), "stages": []}
    for stage in filter(store.has_facts, graph.stages):
        with suppress(OSError, ValueError):  # it is damaged, which may be the error
            failed["stages"].append(_cost(store, stage, store.computed))
    return _empty(graph.cell, store, config) | failed


def _empty(cell: Cell, store: Store, config: Mapping[str, Any]) -> Record:
    """The parts of a record that are known before anything is measured.

    ``label``: the embedded model's numbers never share a leaderboard with another model's.
    """
    embedded = cell.victim.component.embedded
    return {
        "schema": SCHEMA,
        "status": "ok",
        "cell": cell.names,  # type: ignore[typeddict-item]
        "label": EMBEDDED if embedded else cell.victim.name,
        "facts": {
            "budget": cell.budget.component.facts,
            "preset": cell.protect.preset,
            "edits": not cell.task.component.trains,
            "embedded": embedded,
            "protected_fraction": cell.protected_fraction,
        },
        "knowledge": knowledge(cell),
        "arms": {},
        "perturbation": {},
        "counts": {},
        "stages": [],
        "config": dict(config),
        "provenance": provenance(store.device) | {"parts": _parts(cell)},
        "flags": [],
        "error": None,
    }


def _parts(cell: Cell) -> dict[str, Any]:
    """Role -> version of the part, digests of what it reads from disk and of the user's own code; its settings are in
    the configuration."""
    parts = {name: part for name, part in vars(cell).items() if isinstance(part, Part)}
    parts |= {f"metrics.{name}": metric for name, metric in cell.metrics.items()}
    parts |= {f"perturbation.{name}": metric for name, metric in cell.perturbation_metrics.items()}
    return {name: {k: v for k, v in part.key.items() if k != "settings" and v} for name, part in parts.items()}


def knowledge(cell: Cell) -> dict[str, bool]:
    """What the owner's model has in common with the thief's; of models without an autoencoder, all or nothing."""
    models = cell.surrogate.component, cell.victim.component
    known = [model.contents() for model in models]

    def same(part: str) -> bool:
        # A checkpoint in one file has its weights there, a fresh network in its seed.
        mine, theirs = ([identity.get(k) for k in (part, "file", "seed", "hub", "revision")] for identity in known)
        return mine == theirs

    latent = any("latent" in model.capabilities for model in models)
    same_unet = same("unet")
    same_vae = same("vae") if latent else same_unet
    return {"same_vae": same_vae, "same_unet": same_unet, "same_prompt": cell.owner_prompt == "data"}


def _arm(cell: Cell, store: Store, arm: Arm) -> ArmScores:
    curve, validation = _curve(store, arm.scores), _curve(store, arm.validation)
    ways = {name: way for metric in cell.metrics.values() for name, way in metric.component.scores.items()}
    used = _used(cell, store, arm)
    scores: dict[str, Score] = {
        name: {"value": value, "n": used[name], "better_protected": ways[name], "primary": name in cell.primary}
        for name, value in curve["1"].items()
    }
    infinite = {name: "the metric has no finite value here" for name in ways if name not in scores}
    found: ArmScores = {
        "metrics": scores,
        "absent": dict(cell.absent) | infinite,
        "key": arm.final.key,
        "curve": curve if len(curve) > 1 else {},
        "images": str(store.path(arm.final)),
    }
    if validation:
        found["curve_validation"] = validation
    if arm.pictures:
        found["pictures"] = str(store.path(arm.pictures))
    return found


def _used(cell: Cell, store: Store, arm: Arm) -> dict[str, int]:
    """Score -> how many of the arm's generated pictures went into it."""
    made = len(list_images(store.path(arm.final)))
    used: dict[str, int] = {}
    for name, metric in cell.metrics.items():
        n, parents = made, arm.scores[name, 1.0].parents
        if metric.component.equal_sizes:
            folders = {role: store.path(parent) for role, parent in parents.items()}
            n = min(made, len(list_images(compared_with(metric.component.against, folders))))
        used |= dict.fromkeys(metric.component.scores, n)
    return used


def _curve(store: Store, scores: Scores) -> dict[str, dict[str, float]]:
    """Step multiplier -> score -> value."""
    curve: dict[str, dict[str, float]] = {}
    for (_, multiplier), stage in scores.items():
        curve.setdefault(f"{multiplier:g}", {}).update(_read_scores(store, stage))
    return curve


def _read_scores(store: Store, stage: Stage) -> dict[str, float]:
    return json.loads((store.path(stage) / "scores.json").read_text(encoding="utf-8"))


def _cost(store: Store, stage: Stage, computed: Collection[str]) -> StageCost:
    found: Any = {"name": str(stage), "key": stage.key, "cached": stage.key not in computed}
    facts = store.facts(stage)
    return found | {name: facts[name] for name in ("seconds", "peak_mb", "device", "commit")}


def _counts(graph: Graph, store: Store) -> dict[str, int]:
    """Work the protection and the attack took, as the harness counted it."""
    arms = [graph.arms[name] for name in ("protected", "purified") if name in graph.arms]
    made = {arm.pictures.key: arm.pictures for arm in arms if arm.pictures and store.has_facts(arm.pictures)}
    total: Counter[str] = Counter()
    for stage in made.values():
        total.update(store.facts(stage)["counts"])
    return dict(total)


# -- pictures ----------------------------------------------------------------------------------------------------------


def draw_sheet(graph: Graph, store: Store, path: Path) -> None:
    """The contact sheet: training pictures clean, protected, purified, what was added, and what each arm generated;
    edits stand under the picture they were made of, prompt after prompt. One that shows the same is left as it is."""
    task, arms = graph.cell.task.component, graph.arms
    shown = [*graph.shown, *(arm.final for arm in arms.values())]
    shows = hash_of([sheet.LAYOUT, SHOWN, graph.key, [store.facts(stage)["content"] for stage in shown]])
    if sheet.already(path, shows):
        return
    training: dict[str, list] = {"clean": _some(store, graph.data)}  # whether or not clean is among the arms
    training |= {name: _some(store, arms[name].pictures) for name in ("protected", "purified") if name in arms}
    edits = not task.trains
    generated = {name: _some(store, arm.final, edits) for name, arm in arms.items()}
    anew = _repainted(graph, store.path(graph.data), training["clean"]) if edits else []
    sheet.write_sheet(path, sheet.cell_rows(training, generated, edits=edits, repainted=anew), shows=shows)


def _some(store: Store, stage: Stage | None, edits: bool = False) -> list:
    """Pictures to show of a stage, of one that makes ``edits`` one of each picture in turn."""
    assert stage is not None
    folder = store.path(stage)
    if not edits:
        return [read(path) for path in list_images(pictures_in(folder))[:SHOWN]]
    return [read(made[k % len(made)]) for k, made in zip(range(SHOWN), edits_of(folder).values(), strict=False)]


def _repainted(graph: Graph, data: Path, shown: list) -> list:
    """What the task paints anew in the pictures to show, the first ones; nothing if it edits whole pictures."""
    names = (path.name for path in list_images(data / "train"))
    squares = {name: fit_square(x, min(x.shape[-2:])) for name, x in zip(names, shown, strict=False)}
    return list(graph.cell.task.component.repainted(squares, data / "masks").values())
