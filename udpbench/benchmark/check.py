"""What only shows when the parts of a cell meet, found before anything is done."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from udpbench.benchmark.cell import Cell, Part, setting_at
from udpbench.benchmark.graph import Graph
from udpbench.benchmark.texts import lacks_class_prompt, long_prompts
from udpbench.core.errors import ConfigError, Errors
from udpbench.core.images import most_pixels
from udpbench.interfaces import NEEDS, Metric, Protection
from udpbench.models.weights import OR_GIVEN
from udpbench.optim.several import Several

LITE = "lite1"  # a network whose weights come in a package
PLACES = {"surrogate": "protect", "purifier": "attack", "victim": "task"}  # of the methods, by the models they take


def checked_graph(cell: Cell, asked_for: tuple[str, ...] = ()) -> Graph:
    """The graph of a cell whose parts go together; metrics that cannot be computed are left out with the reason.

    Raises ConfigError; a metric in ``asked_for`` (those of ``metrics.extra``) that cannot be computed is an error, too.
    """
    errors = Errors(line for find in CHECKS for line in find(cell))
    absent = {}
    for name, metric in cell.metrics.items():
        if reason := _obstacle(cell, metric):
            absent[name] = _named(reason, metric, f"metrics.{'extra' if name in asked_for else 'bundle'}.{name}")
    errors += [f"metric {name}: {reason}" for name, reason in absent.items() if name in asked_for]
    errors.raise_any()
    kept = {name: metric for name, metric in cell.metrics.items() if name not in absent}
    if not kept:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in absent.items())
        raise ConfigError(f"metrics: none can be computed for this cell ({reasons or 'none is chosen'})")
    graph = Graph(replace(cell, metrics=kept, absent=absent))
    if not graph.arms:
        given = f"protect={cell.protect.name} attack={cell.attack.name} task={cell.task.name}"
        raise ConfigError(f"arms: none of {list(cell.arms)} means anything for {given}")
    return graph


def check_alone(cell: Cell, method: str) -> None:
    """ConfigError if the protection or the attack (``method``: protect | attack) cannot be used on the cell's pictures.

    What else the cell is made of does not matter: no victim is trained.
    """
    part, model, role = cell.methods[method]
    lines = Errors([*errors_of(cell.data.component.check), *_size_of_pictures(cell)])
    for used in (part, cell.like) if method == "protect" and cell.like else (part,):
        lines += [*_of_method(cell, used, model, role), *long_prompts(cell, used)]
    if method == "protect":
        lines += [*_lacks(cell.budget, "budget"), *_strength_to_match(cell)]
    lines.raise_any()


# -- checks: cell -> a line for everything that is wrong ---------------------------------------------------------------


def _methods(cell: Cell) -> Iterator[str]:
    for part, model, role in cell.methods.values():
        yield from _of_method(cell, part, model, role)
    if cell.like:
        yield from _of_method(cell, cell.like, cell.surrogate, "surrogate")
    if {"adapt"} & cell.attack.component.hooks:
        yield from errors_of(partial(cell.attack.component.check_victim, cell.victim.component))


def _of_method(cell: Cell, part: Part, model: Part, role: str) -> Iterator[str]:
    """Everything that is wrong with a protection, an attack or a task, and the model that it takes."""
    lacking = list(_lacking(part, model, role))
    yield from lacking
    if not lacking:  # of a model that has what is needed: whether it is large enough and has learned something
        yield from errors_of(partial(part.component.check_model, model.component))
        yield from _untrained(part, model, role)
    yield from _lacks(part, "like" if part is cell.like else PLACES[role])
    yield from errors_of(partial(part.component.check_data, cell.data.component))
    yield from _of_another_world(cell, part, model, role)
    if isinstance(part.component, Protection):
        yield from _class_pictures(part)
        yield from _extra_clean(cell, part)


def _lacking(part: Part, model: Part, role: str) -> Iterator[str]:
    needs = {"text" if need == "class_images" else need for need in part.component.needs}
    if needs and (lacking := needs - model.component.capabilities):
        wanted = " and ".join(NEEDS[need] for need in sorted(lacking))
        yield f"{part.name}: needs {wanted}, which {role} {model.name} lacks; choose model@{role}=..."


def _untrained(part: Part, model: Part, role: str) -> Iterator[str]:
    """What starts from weights that have learned nothing."""
    if part.component.starts_from_weights and not model.component.trained:
        yield (
            f"{part.name}: starts from the weights of {role} {model.name}, which has learned nothing; "
            f"let it start from random ones, or choose model@{role}=pixel {role}.path=DIR"
        )


def _strength_to_match(cell: Cell) -> Iterator[str]:
    if cell.protect.component.matches_strength and cell.like is None:
        yield f"protect={cell.protect.name}: say whose strength it shall match, e.g. protect@like=eudp"
    if cell.like and cell.like.component.matches_strength:
        yield f"protect@like={cell.like.name}: has no strength of its own; give a protection, e.g. eudp"


def _class_pictures(protect: Part) -> Iterator[str]:
    protection = protect.component
    if ("class_images" in protection.needs) != (protection.class_images > 0):
        given = protection.class_images
        yield f"{protect.name}: class_images must be > 0 if it needs class_images, else 0; it is {given}"


def _extra_clean(cell: Cell, protect: Part) -> Iterator[str]:
    if protect.component.wants_extra_clean and not cell.data.component.sizes.get("extra_clean"):
        yield f"{protect.name}: needs further clean pictures of the subject; give data.extra_clean"


def _data_and_budget(cell: Cell) -> Iterator[str]:
    """What of them is missing on this machine."""
    for part, place in ((cell.data, "data"), (cell.budget, "budget")):
        yield from _lacks(part, place)


def _pictures_for_the_model(cell: Cell) -> Iterator[str]:
    """Renderings of the embedded world for a model of another family: nobody means that without saying so."""
    victim = cell.victim.component
    if (
        cell.data.component.rendered
        and "text" in victim.capabilities
        and not victim.embedded
        and cell.family != "micro"
    ):
        said = f"shows the embedded world, {cell.victim.name} is of family {cell.family}"
        yield f"data {cell.data.name}: {said}; give data=folder data.path=DIR, or family=micro for its settings"


def _of_another_world(cell: Cell, part: Part, model: Part, role: str) -> Iterator[str]:
    """Embedded models on pictures of another family, where nobody chose them: of pixels, or an upscaler, that purifies;
    beside the surrogate of an ensemble."""
    if cell.family != "sd":
        return
    instead = {"pixel": "model@purifier=pixel purifier.path=DIR", "upscale": "model@purifier=sd_x4"}
    if role == "purifier" and model.component.embedded:
        for todo in (instead[need] for need in sorted(part.component.needs & instead.keys())):
            yield f"attack {part.name}: purifier {model.name} {_ALONE}; give {todo}, or family=micro"
    for name, other in part.component.further.items() if isinstance(part.component, Several) else ():
        if other.embedded:
            todo = f"give another, e.g. model@protect.further.{name}=sd21, or family=micro"
            yield f"{part.name}: {name} of further, model {other.name}, {_ALONE}; {todo}"


_ALONE = "was trained on the embedded world only"


def _hooks(cell: Cell) -> Iterator[str]:
    """What of the attack the task would not take."""
    if lost := sorted(cell.attack.component.hooks - cell.task.component.takes):
        name, takes = cell.task.name, ", ".join(sorted(cell.task.component.takes))
        yield f"attack {cell.attack.name}: task {name} would ignore its {', '.join(lost)}; it takes {takes} only"


def _fraction(cell: Cell) -> Iterator[str]:
    if cell.protected_fraction < 1 and not cell.task.component.trains:
        why = f"task {cell.task.name} edits pictures and trains on none, so clean ones cannot be mixed in"
        yield f"protected_fraction: {why}; give 1"
    train = cell.data.component.sizes["train"]
    if cell.protect.component.protects and not cell.protected_of(train):
        yield f"protected_fraction: {cell.protected_fraction:g} of {train} training pictures is none"


def _perturbation_metrics(cell: Cell) -> Iterator[str]:
    side, score = cell.data.component.shortest_side(), cell.budget.component.score
    for name, metric in cell.perturbation_metrics.items():
        if metric.component.against != "input":
            what = "does not compare a changed picture with its original"
            yield f"metric {name}: {what}; it belongs to metrics, not to metrics@perturbation"
        for reason in _lacks(metric, f"perturbation.bundle.{name}"):
            yield f"metric {name}: {reason}"
        least = metric.component.least_side
        if side is not None and side < least:
            what = f"needs pictures of at least {least} x {least} px, the smallest one of the data has a side of {side}"
            yield f"metric {name}: {what}; leave it out (~perturbation.bundle.NAME)"
    if score and not any(score in metric.component.scores for metric in cell.perturbation_metrics.values()):
        todo = f"add metric@perturbation.bundle.distance={score}"
        yield f"budget {cell.budget.name}: nothing measures {score} of the saved pictures; {todo}"


def _size_of_pictures(cell: Cell) -> Iterator[str]:
    side = cell.data.component.shortest_side()
    if side is not None and side**2 > most_pixels():
        said = f"pictures of {side} x {side} px have more pixels than runtime.max_pixels, {most_pixels():,}"
        yield f"data {cell.data.name}: {said}; give a smaller data.size"


def _same_scores(cell: Cell) -> Iterator[str]:
    """Scores that two metrics of other settings would give: one would hide the other."""
    for group, metrics in (("metrics", cell.metrics), ("metrics@perturbation", cell.perturbation_metrics)):
        first: dict[str, str] = {}
        for name, metric in metrics.items():
            for score in metric.component.scores:
                other = first.setdefault(score, name)
                if metrics[other].settings != metric.settings:
                    yield f"{group}: {other} and {name} both give the score {score}; leave one out"


CHECKS: tuple[Callable[[Cell], Iterator[str]], ...] = (
    _data_and_budget, _methods, _strength_to_match, _pictures_for_the_model, lacks_class_prompt, long_prompts, _hooks,
    _fraction, _perturbation_metrics, _same_scores, _size_of_pictures,
)  # fmt: skip


# -- metrics -----------------------------------------------------------------------------------------------------------


def _obstacle(cell: Cell, metric: Part) -> str | None:
    """Why a metric cannot be computed for a cell, or None."""
    component, data, trains = metric.component, cell.data.component, cell.task.component.trains
    against, least = component.against, component.least_side
    if against == "truth" and not data.truth:
        return f"data {cell.data.name} has no truth that a judge could know"
    if against == "truth" and data.truth != component.truth:
        return f"judges a {component.truth}, data {cell.data.name} shows a {data.truth}"
    if against == "input":
        return "compares a changed picture with its original; it belongs to metrics@perturbation"
    if (against == "clean_arm") == trains:
        return f"task {cell.task.name} {'makes no edits' if trains else 'only makes edits'}"
    if against == "clean_arm" and (side := cell.victim.component.known_size or least) < least:
        return f"needs pictures of at least {least} x {least} px, edits are of {side}"
    if against == "reference" and (lacking := _lacking_sets(cell, component)):
        return lacking
    return next(iter(errors_of(component.check)), None)


def _lacking_sets(cell: Cell, metric: Metric) -> str | None:
    """Why no set of pictures can be compared with references, if none can."""
    data = cell.data.component
    if not data.sizes.get("reference"):
        return f"data {cell.data.name} has no reference pictures (data.reference)"
    if not data.compares_sets:
        return f"data {cell.data.name} has references that overlap the training pictures"
    n, setting = _smallest_set(cell, metric)
    return f"needs {metric.minimum} pictures a side, there are {n}{setting}" if n < metric.minimum else None


def _smallest_set(cell: Cell, metric: Metric) -> tuple[int, str]:
    """How many pictures the smallest set would have that ``metric`` compares with another (the upper bound's counts,
    too; validation pictures, if the thief chooses by it), and the setting that says so, if it is one of these."""
    sizes, task = cell.data.component.sizes, cell.task.component
    chooses = len(task.curve) > 1 and bool(set(metric.scores) & set(cell.primary))
    counts = [(task.generated_count(sizes["train"]), ""), (sizes.get("reference"), "")]
    counts += [(sizes.get("heldout"), " (data.heldout)")] if "upper_bound" in cell.arms else []
    counts += [(sizes.get("validation"), " (data.validation)")] if chooses else []
    return min((n, setting) for n, setting in counts if n)


def _lacks(part: Part, place: str) -> list[str]:
    """What a part lacks on this machine, in a line each; ``place``: where it stands in the configuration."""
    return [_named(line, part, place) for line in errors_of(part.component.check)]


def _named(line: str, part: Part, place: str) -> str:
    """The line on a missing file of weights, with the setting that takes its path by its name."""
    keys = " or ".join(map(setting_at, _open(part.settings, place)))
    return line.replace(OR_GIVEN, f", or say {keys}") if keys else line


def _open(settings: Any, place: str) -> Iterator[str]:
    """The settings inside ``settings``, which stand at ``place``, that take a file of weights and were given none."""
    for name, value in settings.items() if isinstance(settings, Mapping) else ():
        if name == "weights" and value is None and LITE not in (settings.get("perceptual"), settings.get("network")):
            yield f"{place}.weights=FILE"
        yield from _open(value, f"{place}.{name}")


def errors_of(do: Callable[[], Any]) -> list[str]:
    """The line of the ValueError that ``do`` raises, if it does."""
    errors = Errors()
    errors.attempt(do)
    return errors
