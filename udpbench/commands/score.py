"""``python -m udpbench score GOT REF [--metrics NAME,...]``: scores of a folder of pictures against a reference.

The metrics are those of ``conf/metric`` that need no cell: of two sets of pictures, and of pairs of one name.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from udpbench.commands.common import Parser, show, table, write_json
from udpbench.commands.preparing import composed, open_store
from udpbench.commands.searchpath import SEARCHPATH, option_files, searched
from udpbench.commands.telling import one_line_errors
from udpbench.core.errors import first_line

if TYPE_CHECKING:
    from udpbench.interfaces import Log, Metric, Run

BUNDLES = ("micro", "full")  # whose metrics are taken if none is named; those of pairs, too, if the names are the same
NEEDS_A_CELL = {"truth": "judges pictures whose truth is known", "clean_arm": "compares edits with a clean arm's"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 fine, 1 if a metric that was named could not be computed, or none, 2 wrong input, 130
    interrupted."""
    parser = Parser("score", "Score a folder of pictures against a reference.")
    parser.add_argument("got", type=Path, metavar="GOT", help="folder with the pictures to score")
    parser.add_argument("ref", type=Path, metavar="REF", help="folder with the pictures to compare with")
    parser.add_argument("--metrics", metavar="NAME,...", help="python -m udpbench list metric shows them")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers there, too")
    parser.takes_overrides("of runtime, e.g. runtime.max_pixels=400000000; hydra.searchpath=[file://DIR] adds metrics")
    args = parser.parse_intermixed_args(arguments)
    names = None if args.metrics is None else [name for name in args.metrics.split(",") if name]
    if names == []:
        parser.error(f"--metrics {args.metrics!r} names none; give some, or leave it out for all")
    with one_line_errors():
        from udpbench.tracking.console import Console

        found = scores(args.got, args.ref, names, args.overrides, Console())
        _show(found)
        if args.json:
            write_json(args.json, found)
    return 1 if (names and found["absent"]) or not found["scores"] else 0


def scores(
    got: Path, ref: Path, metrics: Sequence[str] | None = None, overrides: Sequence[str] = (), log: Log | None = None
) -> dict[str, Any]:
    """``{"scores": {score: {"value", "better_protected", "metric"}}, "absent": {metric: reason}}``, with both folders.

    Raises ValueError for a folder without pictures, for an unknown metric and for overrides of anything but
    ``runtime``.
    """
    from udpbench.benchmark.build import make_part
    from udpbench.core.images import list_images
    from udpbench.interfaces import Log, Metric, Run

    if odd := [word for word in overrides if not (word.startswith("runtime.") or SEARCHPATH.match(word))]:
        allowed = "settings of runtime, e.g. runtime.batch=16, and hydra.searchpath"
        raise ValueError(f"score: {odd[0]} means nothing here; allowed are {allowed}")
    got, ref = Path(got).expanduser(), Path(ref).expanduser()
    paired = {path.stem for path in list_images(got)} == {path.stem for path in list_images(ref)}
    chosen = list(metrics) if metrics is not None else [n for b in (*BUNDLES, *["pairs"] * paired) for n in _bundle(b)]
    known = [path.stem for path in option_files("metric", *searched(overrides))]
    if unknown := sorted(set(chosen) - set(known)):
        raise ValueError(f"metrics: unknown {', '.join(unknown)}; allowed are {', '.join(known)}")
    names = list(dict.fromkeys(chosen))
    cfg = composed([*(f"+metric@chosen.{name}={name}" for name in names), *overrides])
    store = open_store(cfg)
    run = Run(0, store.device, log or Log(), store.batch, store.grad_batch)
    found: dict[str, Any] = {"got": str(got), "ref": str(ref), "scores": {}, "absent": {}}
    with _of_equal_names(got, ref) as folders, run.log.bar("scores", len(names), "metric") as advance:
        for name in names:
            _add_scores(found, name, make_part(cfg.chosen[name], name, Metric).component, *folders, run)
            advance(1)
        given = {metric: reason.replace(str(folders[1]), str(ref)) for metric, reason in found["absent"].items()}
        found["absent"] = given
    return found


def _add_scores(found: dict[str, Any], name: str, metric: Metric, got: Path, ref: Path, run: Run) -> None:
    """Add what ``metric``, called ``name``, measures to ``found`` (see ``scores``), or why it measures nothing."""
    try:
        with run.log.bar(name, 1, "metric") as done:
            values = _computed(metric, got, ref, run)
            done(1)
    except ValueError as error:
        found["absent"][name] = first_line(error).removeprefix(f"{name}: ")
        return
    for score, value in values.items():
        row = {"value": value, "better_protected": metric.scores[score], "metric": name}
        found["scores"].setdefault(score, row)  # a score that two metrics give is the first one's
    if lacking := [score for score in metric.scores if score not in values]:
        found["absent"][name] = f"no finite value of {', '.join(lacking)}"


def _computed(metric: Metric, got: Path, ref: Path, run: Run) -> dict[str, float]:
    """The scores; ValueError with the reason if they cannot be computed."""
    from udpbench.benchmark.stages import scores_of
    from udpbench.models.weights import OR_GIVEN

    if metric.against in NEEDS_A_CELL:
        raise ValueError(f"{NEEDS_A_CELL[metric.against]}: only in a cell")
    try:
        metric.check()
    except ValueError as error:  # settings of metrics are a cell's
        raise ValueError(str(error).removesuffix(OR_GIVEN)) from error
    return scores_of(metric, got, ref, run)


def _bundle(name: str) -> list[str]:
    """The metrics of an option of ``metrics``, by their own names."""
    choices = composed([f"metrics={name}"]).hydra.runtime.choices
    return [option for group, option in choices.items() if group.startswith("metric@metrics.bundle.")]


@contextmanager
def _of_equal_names(got: Path, ref: Path) -> Iterator[tuple[Path, Path]]:
    """The folders, as they are unless pictures differ in the suffix of their names only; then under equal names."""
    from udpbench.core.images import list_images

    ours, theirs = ({path.name: path for path in list_images(folder)} for folder in (got, ref))
    of_stem = {path.stem: path for path in theirs.values()}
    if set(ours) == set(theirs) or {path.stem for path in ours.values()} != set(of_stem) or len(ours) != len(theirs):
        yield got, ref
        return
    with TemporaryDirectory() as scratch:
        renamed = Path(scratch) / ref.resolve().name
        renamed.mkdir()
        for name, path in ours.items():
            (renamed / name).symlink_to(of_stem[path.stem].resolve())
        yield got, renamed


def _show(found: dict[str, Any]) -> None:
    from udpbench.results.words import ARROW, significant

    rows = [
        [f"{name} {ARROW[row['better_protected']]}", significant(row["value"]), row["metric"]]
        for name, row in found["scores"].items()
    ]
    absent = [f"absent: {name}: {reason}" for name, reason in found["absent"].items()]
    title = f"{found['got']} against {found['ref']}"
    show(table(title, ["score", "value", "metric"], rows), "arrows: where better protected pictures go", *absent)
