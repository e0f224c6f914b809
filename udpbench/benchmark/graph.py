"""The graph of a cell: data -> protect -> attack -> train -> generate -> score, for each of its arms.

Built once and read by check, plan, run, record and contact sheet; ``stages.py`` says what work each kind of stage does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import product

from udpbench.benchmark import stages
from udpbench.benchmark.arms import ARMS
from udpbench.benchmark.cell import Cell, Part
from udpbench.benchmark.stage import Stage, hash_of, with_ancestors

Scores = Mapping[tuple[str, float], Stage]  # (metric, step multiplier) -> the stage that scores it


@dataclass(frozen=True)
class Arm:
    """One thing to compare, from pictures to scores."""

    pictures: Stage | None  # what is trained on or edited; None where nothing is
    generated: Mapping[float, Stage]  # step multiplier -> generated pictures, or edits
    scores: Scores = field(default_factory=dict)
    validation: Scores = field(default_factory=dict)  # primary scores by which the thief chooses his step multiplier
    perturbation: tuple[Stage, ...] = ()  # scores of its pictures against the clean ones

    @property
    def final(self) -> Stage:
        """The pictures after all steps."""
        return self.generated[1.0]

    @property
    def wanted(self) -> list[Stage]:
        """What of it goes into a record."""
        return [*self.perturbation, *self.generated.values(), *self.scores.values(), *self.validation.values()]


def without_scores(made: Iterable[Stage]) -> list[Stage]:
    """All stages but scores."""
    return [stage for stage in made if stage.name != stages.SCORE]


class Graph:
    """Every stage of a cell.

    ``arms``: those that the cell asks for and that mean something for it, in the order of the table of arms.
    """

    def __init__(self, cell: Cell) -> None:
        self.cell = cell
        self.data = stages.data_stage(cell)
        makers = self._makers()  # not kept: they hold the graph, which models would outlive their cell with
        made = {name: arm for name in ARMS if name in cell.arms and (arm := self._arm(name, makers))}
        self.arms = {name: self._scored(arm) for name, arm in made.items()}

    # -- the flow ------------------------------------------------------------------------------------------------------

    @cached_property
    def noise(self) -> Stage:
        """Noise of the whole budget on the clean pictures."""
        return stages.protect_stage(self.cell, self.cell.noise, self.data)

    @cached_property
    def protected(self) -> Stage:
        """The protected pictures; the clean ones if the cell has no protection.

        A control used as the protection (``protect=noise_rms protect@like=eudp``) is made as strong as the pictures it
        matches.
        """
        cell = self.cell
        if not cell.protect.component.protects:
            return self.data
        matched = cell.like if cell.protect.component.matches_strength else None
        like = stages.protect_stage(cell, matched, self.data) if matched else None
        return stages.protect_stage(cell, cell.protect, self.data, like)

    @cached_property
    def attacked(self) -> bool:
        """Whether the thief does anything about a protection."""
        return bool(self.cell.attack.component.hooks)

    @cached_property
    def attack_on_clean(self) -> Part | None:
        """The attack as it is on clean pictures; None if what it would make of them is not known."""
        same = self.cell.attack.component.on_clean()
        return replace(self.cell.attack, component=same) if self.attacked and same else None

    @cached_property
    def class_pictures(self) -> Stage | None:
        """Class pictures for a task with prior preservation, by the pretrained victim."""
        return stages.class_stage(self.cell, self.data) if self.cell.task.component.prior_weight else None

    def _arm(self, name: str, makers: Mapping[str, Callable[[], Arm]]) -> Arm | None:
        """An arm without its scores; None if it means nothing for this cell."""
        kind = "training" if self.cell.task.component.trains else "editing"
        make = makers.get(name) if kind in ARMS[name].of else None
        return make() if make else None

    def _makers(self) -> dict[str, Callable[[], Arm]]:
        """Arm -> the function that makes it, for the arms whose inputs this cell has."""
        cell, data = self.cell, self.data
        makers: dict[str, Callable[[], Arm]] = {
            "clean": lambda: self._victim(data),
            "reseeded": lambda: Arm(None, {1.0: stages.edit_stage(cell, data, data, "second")}),
            "pretrained": lambda: Arm(None, {1.0: stages.generate_stage(cell, data, None)}),
        }
        if protects := self.protected is not data:
            makers |= {
                "noise": lambda: self._victim(self.noise),
                "noise_rms": lambda: self._victim(stages.protect_stage(cell, cell.noise_rms, data, self.protected)),
                "protected": lambda: self._victim(self.protected),
            }
        if protects and self.attacked:
            makers["purified"] = lambda: self._victim(self._received_by_thief(self.protected), cell.attack)
        if self.attack_on_clean:
            makers["clean_attacked"] = lambda: self._victim(data, self.attack_on_clean)
        if cell.data.component.sizes.get("heldout"):
            makers["upper_bound"] = lambda: Arm(None, {1.0: stages.upper_bound_stage(cell, data)})
        return makers

    def _victim(self, pictures: Stage, attack: Part | None = None) -> Arm:
        """What the thief makes of pictures: purified, if he attacks, then edited, or trained on and generated from."""
        cell = self.cell
        if attack and "purify" in attack.component.hooks:
            # An attack is made on all that reaches the thief, who cannot tell protected pictures from clean ones.
            received = pictures = stages.attack_stage(cell, pictures, attack)
        else:
            received = self._received_by_thief(pictures)
        if not cell.task.component.trains:
            return Arm(pictures, {1.0: self._edits(received)})
        model = stages.train_stage(cell, received, self.class_pictures, attack)
        curve = cell.task.component.curve
        return Arm(pictures, {m: stages.generate_stage(cell, self.data, model, m, attack) for m in curve})

    def _received_by_thief(self, pictures: Stage) -> Stage:
        """Changed pictures as they reach the thief: all of them, or a fraction among clean ones."""
        if self.cell.protected_fraction == 1 or pictures is self.data or pictures.name == stages.MIXED:
            return pictures
        return stages.mixed_stage(self.cell, pictures, self.data)

    def _edits(self, pictures: Stage) -> Stage:
        return self.clean_edits if pictures is self.data else stages.edit_stage(self.cell, pictures, self.data)

    @cached_property
    def clean_edits(self) -> Stage:
        """The edits of the clean pictures, which all other edits are compared with."""
        return stages.edit_stage(self.cell, self.data, self.data)

    # -- scores --------------------------------------------------------------------------------------------------------

    def _scored(self, arm: Arm) -> Arm:
        cell = self.cell
        scores = self._scores(arm, cell.metrics)
        compares = {name: metric for name, metric in cell.metrics.items() if metric.component.against == "reference"}
        primary = {
            name: metric for name, metric in compares.items() if set(metric.component.scores) & set(cell.primary)
        }
        chooses = len(arm.generated) > 1 and cell.data.component.sizes.get("validation")
        validation = self._scores(arm, primary, "validation") if chooses else {}
        return replace(arm, scores=scores, validation=validation, perturbation=self._perturbation(arm))

    def _scores(self, arm: Arm, metrics: Mapping[str, Part], against: str = "") -> Scores:
        combinations = product(arm.generated.items(), metrics.items())
        return {(name, at): self._score(metric, made, against) for (at, made), (name, metric) in combinations}

    def _perturbation(self, arm: Arm) -> tuple[Stage, ...]:
        """Scores of an arm's pictures against the clean ones and, by metrics that can (``compares_with_noise``),
        against noise of the same budget."""
        if arm.pictures is None or arm.pictures is self.data:
            return ()
        metrics = self.cell.perturbation_metrics.values()
        scores = [self._score(metric, arm.pictures) for metric in metrics]
        if self.protected is not self.data and "noise" in self.cell.arms and arm.pictures.key != self.noise.key:
            of_noise = [metric for metric in metrics if metric.component.compares_with_noise]
            scores += [self._score(metric, arm.pictures, "noise") for metric in of_noise]
        return tuple(scores)

    def _score(self, metric: Part, pictures: Stage, against: str = "") -> Stage:
        against = against or metric.component.against
        other = {"clean_arm": lambda: self.clean_edits, "noise": lambda: self.noise}.get(against)
        return stages.score_stage(metric, pictures, self.data, against, other() if other else None)

    # -- reading it ----------------------------------------------------------------------------------------------------

    @cached_property
    def wanted(self) -> list[Stage]:
        """Every stage that the cell's record and contact sheet are made of, in the order in which their work is best
        done: arm by arm."""
        return [*self._recorded, *self.shown]

    @cached_property
    def stages_before_scores(self) -> list[Stage]:
        """Every stage of the cell except its scores."""
        return without_scores(self.stages)

    @cached_property
    def shown(self) -> list[Stage]:
        """The stages whose pictures the contact sheet has beside those of the arms."""
        return [self.data, *(arm.pictures for arm in self.arms.values() if arm.pictures)]

    @cached_property
    def stages(self) -> list[Stage]:
        """The wanted stages and all that they need, each once, parents first."""
        return with_ancestors(self.wanted)

    @cached_property
    def key(self) -> str:
        """The cell's own cache key: of all it is made of."""
        return hash_of([stage.key for stage in self._recorded])

    @property
    def _recorded(self) -> list[Stage]:
        return [stage for arm in self.arms.values() for stage in arm.wanted]
