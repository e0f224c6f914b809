"""``python -m udpbench list [GROUP] [NAME]``: what exists, read from ``conf/`` and the classes it names.

``hydra.searchpath=[DIR]`` among the words adds what is in ``DIR``.
``--fill FILE`` writes the tables into a file, between ``<!-- list:begin -->`` and ``<!-- list:end -->``.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from udpbench.benchmark.arms import ARMS
from udpbench.commands.common import Parser
from udpbench.commands.searchpath import option_files, searched
from udpbench.commands.telling import no_option, one_line_errors
from udpbench.core.atomic import atomic_text
from udpbench.core.package import CONF

GROUPS = {
    "protect": "Protections",
    "attack": "Attacks",
    "task": "Tasks",
    "data": "Data",
    "model": "Models",
    "budget": "Budgets",
    "metric": "Metrics",
}  # of configured components; arms are listed beside them
OTHERS = ("features", "metrics", "track", "runtime", "experiment")  # groups of settings, which are no methods
ALL = (*GROUPS, *OTHERS, "arm")
BEGIN, END = "<!-- list:begin -->", "<!-- list:end -->"
# What a line of the comment at the top of a YAML may begin with, and be a column of a table.
LABELS = ("Needs", "Cost", "Published budget", "Released code", "Verified with")


def main(arguments: Sequence[str] | None = None) -> None:
    """Exit status: 0 fine, 2 for a group or a name that there is not."""
    parser = Parser("list", "List groups, options, or one option.")
    about = f"GROUP is one of {', '.join(ALL)}; NAME is one option, in full; "
    about += "hydra.searchpath=[DIR] adds a folder"
    parser.add_argument("words", nargs="*", metavar="GROUP NAME", help=about)
    parser.add_argument("--markdown", action="store_true", help="every group as a table, as docs have it")
    parser.add_argument("--fill", type=Path, metavar="FILE", help=f"write them there, between {BEGIN} and {END}")
    args = parser.parse_args(arguments)
    with one_line_errors():
        if args.fill:
            fill(args.fill)
        else:
            overrides = [word for word in args.words if "=" in word]
            names = [word for word in args.words if word not in overrides]
            if len(names) > 2:
                raise ValueError(f"list: takes a group and a name, given {' '.join(names)}")
            group, name = [*names, None, None][:2]
            print(tables() if args.markdown else shown(group, name, overrides))  # noqa: T201


def shown(group: str | None = None, name: str | None = None, overrides: Sequence[str] = ()) -> str:
    """The groups; the options of a group; or one option in full; ``overrides`` may name further folders.

    Raises ValueError for what there is not.
    """
    further = searched(overrides)
    if group is None:
        names = {known: list(options(known, *further)) for known in ALL}
        lines = [f"{known:10} {len(found):3}  {', '.join(found)}" for known, found in names.items()]
        return "\n".join([*lines, "", "python -m udpbench list GROUP, or GROUP NAME, says more"])
    found = options(group, *further)
    if name is None:
        width = max(map(len, found), default=0)
        return "\n".join(f"{option:{width}}  {text}" for option, (text, _) in found.items())
    if name not in found:
        raise ValueError(f"list: {no_option(group, name, list(found))}")
    if group == "arm":
        return ARMS[name].description
    files = {path.stem: path for path in option_files(group, *further)}
    if group in OTHERS:
        return f"{group}={name}: {found[name][0]}\n\n{_split(files[name])[1]}"
    return _in_full(group, name, files, overrides)


def options(group: str, *further: Path) -> dict[str, tuple[str, dict[str, str]]]:
    """Option of a group -> its description and labelled facts (``LABELS``); ``further``: folders like ``conf/``.

    Raises ValueError for an unknown group.
    """
    if group == "arm":
        return {name: (arm.description, {}) for name, arm in ARMS.items()}
    if group not in ALL:
        of = [known for known in ALL if group in options(known, *further)]
        meant = f" did you mean {' or '.join(f'list {known} {group}' for known in of)}?" if of else ""
        raise ValueError(f"list: no group {group!r};{meant} allowed are {', '.join(ALL)}")
    return {path.stem: describe(path) for path in option_files(group, *further)}


def describe(path: Path) -> tuple[str, dict[str, str]]:
    """What the comment at the top of a YAML says: the description, and the facts that are labelled."""
    text, facts = [], {}
    for line in _split(path)[0]:
        label, _, fact = line.partition(": ")
        if label in LABELS:
            facts[label] = fact.rstrip(".")
        elif not line.startswith("@package"):
            text.append(line)
    return " ".join(text), facts


def _split(path: Path) -> tuple[list[str], str]:
    """The lines of the comment at the top of a YAML, and the rest of it."""
    lines = path.read_text(encoding="utf-8").splitlines()
    n = next((i for i, line in enumerate(lines) if not line.startswith("#")), len(lines))
    return [line.lstrip("# ").strip() for line in lines[:n]], "\n".join(lines[n:]).strip()


def _in_full(group: str, name: str, files: Mapping[str, Path], overrides: Sequence[str]) -> str:
    """Description, class, needs and settings of one option; the docstrings say paper and equations."""
    from omegaconf import OmegaConf

    from udpbench.commands.preparing import composed

    text, facts = describe(files[name])
    node = composed([*overrides, f"+{group}@shown={name}"]).shown
    kind, comments = _class_of(group, name, node), _comments(files, name)
    settings = [line for line in OmegaConf.to_yaml(node).splitlines() if not line.startswith("_target_")]
    about = [
        f"class: {kind.__module__}.{kind.__qualname__} (version {kind.version})",
        *([f"needs: {', '.join(sorted(kind.needs)) or 'no model'}"] if group in ("protect", "attack", "task") else []),
        *(f"{label.lower()}: {facts[label]}" for label in LABELS[1:] if label in facts),
        *(["settings:"] if settings else []),
        *(f"  {line}{comments.get(line.partition(':')[0], '')}" for line in settings),
    ]
    docs = (inspect.getdoc(inspect.getmodule(kind)), inspect.getdoc(kind))
    return "\n\n".join([f"{group}={name}: {text}", "\n".join(about), *filter(None, docs)])


def _class_of(group: str, name: str, node: Any) -> Any:
    """The class of an option; ValueError in one line if it names none that can be loaded, or one of another kind."""
    from hydra.utils import get_object

    from udpbench.benchmark.build import no_kind
    from udpbench.benchmark.signatures import KINDS, parameters_of

    try:
        parameters_of(node.get("_target_"))
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    if not (isinstance(made := get_object(node._target_), type) and issubclass(made, KINDS[group])):
        raise ValueError(f"{name}: {no_kind(node._target_, KINDS[group])}")
    return made


def _comments(files: Mapping[str, Path], name: str) -> dict[str, str]:
    """Setting -> the comment behind it, of an option and of those of its group that it is made from."""
    _, text = _split(files[name])
    parents = [parent for parent in _parents(text) if parent in files]
    inherited = [_comments(files, parent) for parent in parents]
    own = {key: f"  # {words}" for key, words in re.findall(r"^(\w+):.*? # (.*)$", text, re.MULTILINE)}
    return {key: words for found in (*inherited, own) for key, words in found.items()}


def tables() -> str:
    """Every group as a Markdown table."""
    parts = [
        _table(title, {f"{group}={name}": about for name, about in _with_needs(group).items()})
        for group, title in GROUPS.items()
    ]
    rows = [f"| `{name}` | {text} |" for name, (text, _) in options("arm").items()]
    return "\n\n".join([*parts, _families(), "\n".join(["| Arms | |", "|---|---|", *rows])])


def _with_needs(group: str) -> dict[str, tuple[str, dict[str, str]]]:
    """The options of a group; of methods, what their class needs is one more fact."""
    found = options(group)
    if group in ("protect", "attack"):
        for name, (_, facts) in found.items():
            facts.setdefault("Needs", ", ".join(sorted(_class(group, name).needs)))
    return found


def _class(group: str, name: str) -> Any:
    """The class that an option names, or one of the options that it is made from."""
    from hydra.utils import get_class

    _, text = _split(CONF / group / f"{name}.yaml")
    named = re.search(r"^_target_: (\S+)", text, re.MULTILINE)
    if named:
        return get_class(named[1])
    return _class(group, _parents(text)[0])


def _parents(text: str) -> list[str]:
    """The options of its group that one is made from, by its ``text``."""
    return re.findall(r"^  - (\w+)$", text, re.MULTILINE)


def _table(title: str, rows: Mapping[str, tuple[str, dict[str, str]]]) -> str:
    """Options and their descriptions as a Markdown table, with a column for every label that one of them has."""
    labels = [label for label in LABELS if any(label in facts for _, facts in rows.values())]
    lines = [
        [f"`{name}`", text, *(facts.get(label) or "-" for label in labels)] for name, (text, facts) in rows.items()
    ]
    head = [[title, "", *map(str.lower, labels)], ["---"] * (2 + len(labels))]
    cells = ([cell.replace("|", "\\|") for cell in line] for line in (*head, *lines))
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


def _families() -> str:
    """The settings that a model's family brings, as a Markdown table."""
    rows = {}
    for path in sorted((CONF / "family").glob("*/*/*.yaml")):
        family, group, option = path.relative_to(CONF / "family").with_suffix("").parts
        rows[f"{group}={option}` for family `{family}"] = describe(path)
    return _table("Settings by family of models", rows)


def fill(path: Path) -> None:
    """Replace what stands between the marks in ``path`` by the tables.

    Raises ValueError if the marks are not there.
    """
    text = path.read_text(encoding="utf-8")
    if BEGIN not in text or END not in text:
        raise ValueError(f"list: {path} has no {BEGIN} and {END}")
    before, rest = text.split(BEGIN, 1)
    atomic_text(path, f"{before}{BEGIN}\n{tables()}\n{END}{rest.split(END, 1)[1]}")
