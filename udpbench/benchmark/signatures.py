"""What the class of a part takes, by its annotations: settings of other names and types are told before it is made."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping
from typing import Any

from hydra._internal.utils import _locate  # get_object, which logs what it raises, too

from udpbench.core.budget import Budget
from udpbench.core.component import Component, inside
from udpbench.core.errors import instead
from udpbench.interfaces import Attack, Dataset, Features, Metric, Protection, Task
from udpbench.models.diffusion import Diffusion

KINDS: dict[str, type[Component]] = {
    "data": Dataset,
    "budget": Budget,
    "protect": Protection,
    "attack": Attack,
    "task": Task,
    "model": Diffusion,
    "metric": Metric,
}  # group of the configuration -> the interface of what it configures
_TYPES: dict[str, tuple[str, tuple[type, ...]]] = {
    "int": ("a whole number", (int,)),
    "float": ("a number", (int, float)),
    "str": ("a text", (str,)),
    "Path": ("a text", (str,)),
    "bool": ("true or false", (bool,)),
    "Sequence": ("a list", (list,)),
    "tuple": ("a list", (list,)),
    "Mapping": ("settings by name", (dict,)),
}
_PARTS: dict[str, type[Component]] = {kind.__name__: kind for kind in (*KINDS.values(), Features)}  # that others have


def parameters_of(target: Any) -> Mapping[str, inspect.Parameter]:
    """Parameters of the class that ``target`` names, by name; empty if it has no readable signature.

    Raises ValueError, in one line, if there is no such object.
    """
    if not isinstance(target, str):
        raise ValueError(f"_target_ must name a class, given {target!r}")
    made = _object(target)
    try:
        return inspect.signature(made).parameters
    except (TypeError, ValueError):
        return {}


def _object(path: str) -> Any:
    """What there is at a dotted path; ValueError in one line if there is nothing."""
    try:
        return _locate(path)
    except (ImportError, ValueError) as error:
        if isinstance(error.__cause__, ModuleNotFoundError) and error.__cause__.name == (root := path.split(".")[0]):
            raise ValueError(f"no module {root!r} for {path}; put its folder on PYTHONPATH") from error
        raise ValueError(" ".join(str(error).split())) from error


def wrong_settings(settings: Mapping[str, Any]) -> list[str]:
    """What of a part's settings its ``_target_`` does not take, or takes as another type, if its annotations say a
    simple one; parts of parts included."""
    wrong = [f"{at}.{line}" for at, part in parts_in(settings) for line in wrong_settings(part)]
    parameters = parameters_of(settings.get("_target_"))
    any_name = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values())
    for key in () if any_name else settings:
        if not key.startswith("_") and key not in parameters:  # Hydra's own begin with _
            wrong.append(f"{key} is no setting{instead(key, list(parameters))}")
    for key, parameter in parameters.items():
        named = parameter.kind in (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        if named and parameter.default is inspect.Parameter.empty and key not in settings:
            wrong.append(f"give {key}=...")
        annotated = parameter.annotation  # a text where annotations are postponed, else a type
        annotation = annotated if isinstance(annotated, str) else inspect.formatannotation(annotated)
        allowed = re.split(r" \| (?![^[]*\])", annotation)
        if key in settings and not (settings[key] is None and "None" in allowed):
            type_errors = [_type_error(kind, settings[key]) for kind in allowed if kind != "None"]
            could_quote = allowed[0] == "str" and settings[key] is not None
            quote = f"; as a text: '{key}=\"{settings[key]}\"'" if could_quote else ""
            if type_errors and all(type_errors):
                wrong.append(f"{key} must be {type_errors[0]}, given {settings[key]!r}{quote}")
    return wrong


def parts_in(settings: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Place and settings of the parts that a part is made of, also of those in a mapping by name."""
    for key, value in settings.items():
        if isinstance(value, dict) and "_target_" in value:
            yield key, value
        elif isinstance(value, dict):
            yield from ((f"{key}.{at}", part) for at, part in parts_in(value))


def _type_error(annotation: str, value: Any) -> str:
    """What a value must be by a simple annotation (``float``, ``Sequence[str]``), if it is something else."""
    kind, _, of = annotation.partition("[")
    if part := _PARTS.get(kind.rpartition(".")[2]):
        return "" if _names_class(value, part) else f"a part of its own, with the _target_ of a {part.__name__}"
    words, allowed = _TYPES.get(kind.rpartition(".")[2], ("", (object,)))
    if not isinstance(value, allowed) or (isinstance(value, bool) and words and bool not in allowed):
        return words
    first, _, last = of.removesuffix("]").partition(", ")
    each = first if isinstance(value, list) else last  # of what it holds; keys are texts
    errors = (_type_error(each, item) for _, item in inside(value)) if each else ()
    return next((f"{words or kind}, each of it {wrong}" for wrong in errors if wrong), "")


def _names_class(value: Any, kind: type) -> bool:
    """Whether a value is settings of a part of this kind; ValueError for the path of no object."""
    if not isinstance(value, dict) or not isinstance(target := value.get("_target_"), str):
        return False
    made = _object(target)
    return isinstance(made, type) and issubclass(made, kind)
