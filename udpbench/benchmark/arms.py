"""What a cell compares: its arms, from pictures to generated ones, and the scores of each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from udpbench.benchmark.stages import (
    ARMS,
    Cell,
    Part,
    attack_stage,
    data_stage,
    edit_stage,
    generate_stage,
    mixed_stage,
    protect_stage,
    protected_stage,
    score_stage,
    train_stage,
    upper_bound_stage,
)
from udpbench.benchmark.store import Stage


@dataclass(frozen=True)
class Arm:
    """One thing to compare: its training pictures (None where nothing is trained) and the generated ones by share of
    the steps."""

    pictures: Stage | None
    generated: Mapping[float, Stage]

    @property
    def final(self) -> Stage:
        """The pictures after all steps."""
        return self.generated[1.0]


def arms(cell: Cell) -> dict[str, Arm]:
    """The arms that the cell asks for and that mean something for it, in the order of ``ARMS``."""
    clean = data_stage(cell)
    protects, attacks = cell.protect.name != "none", cell.attack.name != "none"
    protected = protected_stage(cell) if protects else clean
    on_clean = _attack_on_clean(cell) if attacks else None
    pictures = {
        "clean": clean,
        "noise": protect_stage(cell, cell.noise) if protects else None,
        "noise_rms": protect_stage(cell, cell.noise_rms, protected) if protects else None,
        "protected": protected if protects else None,
        "purified": attack_stage(cell, _reaching(cell, protected), cell.attack) if protects and attacks else None,
        "clean_attacked": attack_stage(cell, clean, on_clean) if on_clean else None,
    }
    make = _trained_arm if cell.task.thing.trains else _edited_arm
    # An attack is made on all that reached the thief, who cannot tell protected pictures from clean ones.
    whole = ("clean", "purified", "clean_attacked")
    made: dict[str, Arm | None] = {
        name: make(cell, images, images if name in whole else _reaching(cell, images))
        for name, images in pictures.items()
        if images
    }
    if cell.task.thing.trains:
        made["pretrained"] = Arm(None, {1.0: generate_stage(cell, None)})
        made["upper_bound"] = (
            Arm(None, {1.0: upper_bound_stage(cell)}) if cell.data.thing.sizes.get("heldout") else None
        )
    else:
        made["reseeded"] = Arm(None, {1.0: edit_stage(cell, clean, "second")})
    return {name: arm for name in ARMS if name in cell.arms and (arm := made.get(name))}


def _attack_on_clean(cell: Cell) -> Part | None:
    """The attack as it is on clean pictures; None if what it would make of them is not known."""
    if not hasattr(cell.attack.thing, "on_clean"):
        return cell.attack
    same = cell.attack.thing.on_clean()
    return replace(cell.attack, thing=same) if same else None


def _reaching(cell: Cell, images: Stage) -> Stage:
    """Changed pictures as they reach the thief: all of them, or a share among clean ones."""
    return images if cell.protected_fraction == 1 or images.name == "data" else mixed_stage(cell, images)


def _trained_arm(cell: Cell, images: Stage, reaching: Stage) -> Arm:
    model = train_stage(cell, reaching)
    return Arm(images, {share: generate_stage(cell, model, share) for share in cell.task.thing.curve})


def _edited_arm(cell: Cell, images: Stage, reaching: Stage) -> Arm:
    return Arm(images, {1.0: edit_stage(cell, reaching)})


def scores(cell: Cell, arm: Arm) -> dict[tuple[str, float], Stage]:
    """The score stages of an arm, by metric and share of the steps."""
    clean = data_stage(cell)
    return {
        (k, share): score_stage(cell, m, g, clean)
        for share, g in arm.generated.items()
        for k, m in cell.metrics.items()
    }


def validation_scores(cell: Cell, arm: Arm) -> dict[tuple[str, float], Stage]:
    """Primary scores against the validation pictures, by which the thief chooses among the points of a curve."""
    if len(arm.generated) < 2 or not cell.data.thing.sizes.get("validation"):
        return {}
    chosen = {
        k: m
        for k, m in cell.metrics.items()
        if m.thing.against == "reference" and set(m.thing.scores) & set(cell.primary)
    }
    clean = data_stage(cell)
    return {
        (k, share): score_stage(cell, m, g, clean, "validation")
        for share, g in arm.generated.items()
        for k, m in chosen.items()
    }


def perturbation_scores(cell: Cell, arm: Arm) -> list[Stage]:
    """The scores of an arm's training pictures against the clean ones (visibility, measured budget) and, for metrics
    that have a word on it, against noise of the same budget."""
    if arm.pictures is None or arm.pictures.name == "data":
        return []
    clean, metrics = data_stage(cell), cell.perturbation_metrics.values()
    found = [score_stage(cell, m, arm.pictures, clean) for m in metrics]
    compares = cell.protect.name != "none" and "noise" in cell.arms
    if compares and arm.pictures.key != protect_stage(cell, cell.noise).key:
        of_noise = [m for m in metrics if hasattr(m.thing, "against_noise")]
        found += [score_stage(cell, m, arm.pictures, clean, "noise") for m in of_noise]
    return found
