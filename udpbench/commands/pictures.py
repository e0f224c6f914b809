"""What ``protect`` and ``purify`` have in common: a folder of pictures of any size and format in, finished ones out.

A picture keeps its shape (``data.geometry=native``, unless another is asked for), its transparency, resolution and EXIF
data, and a grey one stays grey.

Each picture is a unit of work of its own in the store, so pictures that were done before are not done again; unless the
method couples them (a surrogate trained on all): then the folder is one unit.
"""

from __future__ import annotations

import filecmp
import json
import os
import re
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from math import inf
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from omegaconf import DictConfig

from udpbench.benchmark import stages
from udpbench.benchmark.build import build, make_part
from udpbench.benchmark.cell import Cell, Part
from udpbench.benchmark.check import check_alone
from udpbench.benchmark.graph import Graph
from udpbench.benchmark.remarks import slow_here
from udpbench.benchmark.run import fetch_models
from udpbench.benchmark.signatures import KINDS
from udpbench.benchmark.stage import Stage
from udpbench.benchmark.store import Store
from udpbench.commands.common import show, table
from udpbench.commands.disk import NO_MORE
from udpbench.commands.finishing import FORMATS, finish
from udpbench.commands.inputs import called, data_of, pictures_below
from udpbench.commands.preparing import check_members, composed, open_store
from udpbench.commands.workers import threads_for, with_threads
from udpbench.core.atomic import atomic_write, try_folder
from udpbench.core.captions import read_captions, unread_captions
from udpbench.core.codecs import LONGEST
from udpbench.core.digest import file_digest, files_digest
from udpbench.core.errors import ConfigError, Errors
from udpbench.core.images import file_name, header, read, write_metadata
from udpbench.core.text import shown_name
from udpbench.interfaces import Dataset, Log, Method, Run, Titled
from udpbench.results.flags import beyond

CODECS = {"protect": (("jpeg", 90), ("jpeg", 75), ("webp", 80)), "attack": ()}  # what websites do to pictures
TABLE = "pictures.json"  # file name -> what it was made of, how visible the change is, what survives, what was lost
READING = {"text", "denoise"}  # needs of methods that are given captions
FINISHED = "finished"  # the kind of stages that hold finished pictures
SHOWN = 40  # rows of the table
MANY = 50  # pictures whose reading has a line of progress
OF_CELLS = (  # what only a cell takes: arms to share, a record, scores and what they compare with
    r"(track|runtime\.(workers|stages|records)|data\.(reference|heldout|validation|prompts)|metrics|perturbation)\b|metric@"
)
UNUSED = {  # what the other half of a cell takes: groups, and models mounted for it
    "protect": r"(attack|purifier|task|victim|(protect@)?noise(_rms)?)\b|"
    r"model@(purifier|victim)|(arms|protected_fraction)=",
    "attack": r"(protect|budget|surrogate|task|victim|like|inner|noise(_rms)?)\b|"
    r"model@(surrogate|victim)|(owner_prompt|arms|protected_fraction)=",
}
COLUMNS = {"largest change": "linf", "RMS": "rms", "PSNR dB": "psnr", "SSIM": "ssim"}
MEASURED = ("linf", "rms")  # kinds of budgets that a row has the number of
SURVIVES = [
    "survives: the perturbation's energy, along itself, that saving in that format leaves (over 100%: the",
    "format makes it larger); this promises nothing.",
]
Rows = Mapping[str, Mapping[str, Any]]
Work = Sequence[tuple[Stage, Sequence[Path]]]  # each stage with its pictures


def change(
    source: Path,
    target: Path,
    method: str,
    overrides: Sequence[str],
    prompt: str = "a photo",
    form: str = "png",
    log: Log | None = None,
    *,
    overwrite: bool = False,
    within: Callable[[Store], AbstractContextManager[Any]] = nullcontext,
) -> tuple[Rows, str, int]:
    """Protect or purify (``method``: protect | attack) the pictures in ``source`` into ``target``.

    Returns what is known of each finished picture, what was done in words, and how many pictures in subfolders were
    left out. ``overwrite``: files in ``target`` that the store did not write may be replaced. ``within``: a context for
    the work, which has ``runtime.threads`` threads. Raises HydraException or ValueError for what is wrong, before any
    work.
    """
    source, target = (Path(os.path.expanduser(path)) for path in (source, target))
    if target.exists() and source.exists() and target.samefile(source):
        raise ValueError(f"{target}: the finished pictures would replace your own; give another folder")
    _check_words(overrides, method)
    default = [] if method == "protect" or any(word.startswith("attack=") for word in overrides) else ["attack=impress"]
    cfg = composed(["data=folder", "data.geometry=native", *default, *overrides])
    store = open_store(cfg, log)  # first: it says how many pixels a picture may have
    below = pictures_below(source, target, Path(cfg.runtime.out), store.root)
    reads_captions = _reads_captions(cfg, method)
    with TemporaryDirectory() as scratch:
        data = data_of(source, below, reads_captions, Path(scratch) / "data")
        with called(data, source):
            cell = _cell(cfg, data, prompt, method)
            files = [source.resolve() / file.name for file in cell.data.component.files()]
        _check_format(form, cell.data.component)
        part: Part = getattr(cell, method)
        coupled = _coupled(cell, part)
        captions = _captions(source, files, store.log) if reads_captions else {}
        units = [(cell, files)] if coupled else _alone(files, captions, cell, cfg, Path(scratch))
        work = [(_finished_stage(of, unit, method, form), unit) for of, unit in units]
        _check_target(target, files, form, None if overwrite else store, {store.path(stage) for stage, _ in work})
        todo = [(stage, unit) for stage, unit in work if not store.finished(stage)]
        _check_readable([file for _, unit in todo for file in unit], store.log)
        fetch_models(cell, store.missing([stage for stage, _ in work]))
        try_folder(target)
        _say_plan(store.log, part.name, len(files), coupled, len(todo))
        for line in slow_here(cell, store.device, only=method) if todo else ():
            store.log.say(f"! {line}")
        model = cell.methods[method][1]
        with within(store), with_threads(threads_for(cfg.runtime.threads, model.component)):
            rows = _do(store, work, {stage.key for stage, _ in todo}, part.name, target, coupled)
    for line in _objections(cell, part, model, method, rows):
        store.log.say(f"! {line}")
    return rows, _title(cell, part, model, method), below


def _do(store: Store, work: Work, todo: Collection[str], name: str, target: Path, coupled: bool) -> Rows:
    """Do what is not done (``todo``: keys), unit by unit, and deliver each at once; returns what is known of each
    picture."""
    rows: dict[str, Mapping[str, Any]] = {}
    console = store.log
    with (console if todo and not coupled else Log()).bar(name, len(todo), "img") as advance:
        for stage, unit in work:
            store.log = console if coupled else Titled(console, shown_name(unit[0].name))
            rows |= _delivered(store.do(stage)[0], target)
            advance(stage.key in todo)
    store.log = console
    return rows


def _captions(source: Path, files: Sequence[Path], log: Log) -> Mapping[str, str]:
    """Those of the pictures by file name; those that no picture has are told."""
    if unread := unread_captions(source, files):
        log.say(f"! {unread}")
    return read_captions(source, files)


def _delivered(folder: Path, target: Path) -> dict[str, Any]:
    """Copy the finished pictures of a stage to ``target``; returns what is known of each."""
    _copy(folder, target)
    rows: dict[str, Any] = json.loads((folder / TABLE).read_text(encoding="utf-8"))
    return rows


def _title(cell: Cell, part: Part, model: Part, method: str) -> str:
    """What was done, in words."""
    budget = f", {cell.budget.component.name}" if method == "protect" else ""
    return f"{part.name}{budget}{f', model {model.name}' if part.component.needs else ''}"


def _check_words(overrides: Sequence[str], method: str) -> None:
    """ValueError for a setting that the command would ignore."""
    if said := next((word for word in overrides if re.match(r"[+~]*data(\.(path|prompt|class_prompt))?=", word)), ""):
        raise ValueError(f"{said}: means nothing here; the pictures are those in IN, their prompt is --prompt")
    if said := next((word for word in overrides if re.match(rf"[+~]*({UNUSED[method]}|{OF_CELLS})", word)), ""):
        raise ValueError(f"{said}: means nothing here, where pictures are changed and nothing else is done")


def _reads_captions(cfg: DictConfig, method: str) -> bool:
    """Whether the method, or what a control matches, is given prompts; what cannot be built says so elsewhere."""
    nodes = (cfg[method], cfg.get("like")) if method == "protect" else (cfg[method],)
    made = [Errors().attempt(make_part, node, method, KINDS[method]) for node in nodes if node is not None]
    return any(isinstance(m.component, Method) and READING & m.component.needs for m in made if m)


def _cell(cfg: DictConfig, source: Path, prompt: str, method: str) -> Cell:
    """The cell whose pictures are those in ``source``, checked as far as ``method`` goes."""
    # Not as overrides: names of folders and sentences may hold what Hydra's grammar gives a meaning.
    path, prompt = (text.replace("${", "\\${") for text in (str(source.resolve()), prompt))
    cfg.data.path, cfg.data.prompt, cfg.data.class_prompt = path, prompt, prompt
    cell = build(cfg, cfg.hydra.runtime.choices, alone=method)
    check_members(cfg, cfg.hydra.runtime.choices)
    part: Part = getattr(cell, method)
    if method == "protect" and not part.component.protects:
        raise ConfigError(f"protect={part.name} changes nothing; give another protection")
    if method == "attack" and "purify" not in part.component.hooks:
        raise ConfigError(f"attack={part.name} changes no pictures; give an attack that does, e.g. attack=impress")
    check_alone(cell, method)
    return replace(cell, arms=())


def _check_target(target: Path, files: Sequence[Path], form: str, store: Store | None, todo: Collection[Path]) -> None:
    """ValueError if one of ``files`` is a link into ``target``, or if a file would be replaced there that no stage in
    the store wrote of the same picture (None: any may be, but no folder): one of ``todo``, the folders of the stages
    that are to be done, or one of a picture of that name in that folder, or of that content."""
    if linked := next((file for file in files if file.resolve().parent == target.resolve()), None):
        raise ValueError(f"{linked}: links into {target}, where it would be replaced; give another folder")
    finished = {target / file_name(file.stem, f".{form}"): file for file in files}
    if folder := next((path for path in finished if path.is_dir() and not path.is_symlink()), None):
        raise ValueError(f"{folder}: is a folder, where a finished picture would be; give another OUT")
    if store is None:
        return
    there = {path: file for path, file in finished.items() if path.exists() or path.is_symlink()}
    ours: dict[str, list[Path]] = {}
    for known in (store.root / FINISHED).glob(f"*/{TABLE}") if there else ():
        for made in known.parent.iterdir() if known.parent.suffix != ".part" else ():
            ours.setdefault(made.name, []).append(made)
    for path, file in there.items():
        same = (made for made in ours.get(path.name, ()) if path.is_file() and filecmp.cmp(path, made, shallow=False))
        if not any(made.parent in todo or _made_of(file, made) for made in same):
            raise ValueError(f"{path}: was not written from this store; give another folder, or --overwrite")


def _made_of(file: Path, made: Path) -> bool:
    """Whether a finished picture was made of ``file``, or of what that was before; one of a stage that does not say so
    counts as that."""
    row = json.loads((made.parent / TABLE).read_text(encoding="utf-8"))[made.name]
    return row.get("folder", str(file.parent)) == str(file.parent) or row["digest"] == file_digest(file)


def _check_readable(files: Sequence[Path], log: Log) -> None:
    """ConfigError with a line for each of ``files`` that is no whole picture; one is in memory at a time."""
    errors = Errors()
    with (log if len(files) > MANY else Log()).bar("read pictures", len(files), "img") as advance:
        for file in files:
            errors.attempt(read, file)
            advance(1)
    errors.raise_any()


def _check_format(form: str, data: Dataset) -> None:
    """ValueError for a picture that is larger than the format of the finished ones can hold."""
    most = LONGEST.get(form, inf)
    for file in data.files() if data.size is None else ():  # type: ignore[attr-defined]  # it is a folder
        if max(header(file).size) > most:
            raise ValueError(f"{file}: WebP holds sides of up to {most} px; say --format png, or data.size=N")


def _objections(cell: Cell, part: Part, model: Part, method: str, rows: Rows) -> Iterator[str]:
    """Why finished pictures are not what they may be taken for."""
    if part.component.needs and model.component.embedded:
        does = {"protect": "protects from nothing", "attack": "undoes nothing"}[method]
        yield f"the embedded model is a toy, this {does} real; model=local model.path=DIR takes Stable Diffusion"
    if method == "protect" and (norm := (budget := cell.budget.component).kind) in MEASURED:
        found = (beyond(f"{shown_name(name)} measures {norm}", row[norm], budget.eps) for name, row in rows.items())
        yield from filter(None, found)


def _coupled(cell: Cell, part: Part) -> bool:
    """Whether what the method makes of a picture depends on the others; a control does as what it matches does."""
    matches = part is cell.protect and part.component.matches_strength and cell.like
    return bool(part.component.couples_images or (matches and cell.like.component.couples_images))  # type: ignore[union-attr]


def _say_plan(log: Log, name: str, pictures: int, coupled: bool, todo: int) -> None:
    """What was done before; ``todo``: the units to do."""
    if coupled and todo and pictures > 1:
        log.say(f"{name} couples the pictures, so all {pictures} are done together, and anew whenever one changes")
    elif todo < pictures:
        log.say(f"{pictures - todo} of {pictures} pictures were done before with these settings and are kept")


# -- stages ------------------------------------------------------------------------------------------------------------


def _finished_stage(cell: Cell, files: Sequence[Path], method: str, form: str) -> Stage:
    """The finished pictures of one unit: changed, with what their files held beside RGB, and measured."""
    graph = Graph(cell)
    if method == "protect":
        made = graph.protected
    else:
        made = replace(stages.attack_stage(cell, graph.data, cell.attack), title=cell.attack.name)
    codecs, shaped = CODECS[method], cell.data.component.shaped

    def work(out: Path, parents: dict[str, Path], run: Run) -> None:
        rows = {}
        for file in files:
            clean, changed = parents["data"] / "train" / f"{file.stem}.png", parents["pictures"] / f"{file.stem}.png"
            path = out / file_name(file.stem, f".{form}")
            rows[path.name] = finish(file, shaped, read(clean), read(changed), path, codecs)
        (out / TABLE).write_text(json.dumps(rows, indent=1), encoding="utf-8")

    # Of the files themselves, too: those that differ in transparency or resolution only may show the same.
    key = {"version": 4, "files": files_digest(files), "format": form, "codecs": codecs}
    return Stage(FINISHED, key, work, {"data": graph.data, "pictures": made}, title=made.title)


def _alone(
    files: Sequence[Path], captions: Mapping[str, str], cell: Cell, cfg: DictConfig, scratch: Path
) -> list[tuple[Cell, list[Path]]]:
    """For each picture the cell of it alone: a folder in ``scratch``, of the name of its own, that holds it only."""
    found = []
    for i, file in enumerate(files):
        folder = scratch / str(i) / file.parent.resolve().name
        folder.mkdir(parents=True)
        (folder / file.name).symlink_to(file.resolve())
        if file.name in captions:
            write_metadata(folder, {file.name: {"text": captions[file.name]}})
        data = cfg.data.copy()
        data.path = str(folder)
        found.append((replace(cell, data=make_part(data, "folder", Dataset)), [file]))
    return found


def _copy(folder: Path, target: Path) -> None:
    """Copy the finished pictures, but those that are there already."""
    target.mkdir(parents=True, exist_ok=True)
    for path in (path for path in sorted(folder.iterdir()) if path.suffix.removeprefix(".") in FORMATS):
        there = target / path.name
        if not (there.is_file() and filecmp.cmp(path, there, shallow=False)):
            try:
                with atomic_write(there) as beside:
                    shutil.copyfile(path, beside)
            except OSError as error:
                if error.errno not in NO_MORE:
                    raise
                todo = "free some space, or give another OUT; the same command goes on from there"
                raise ValueError(f"cannot write {there}: {error.strerror}; {todo}") from error


# -- the table ---------------------------------------------------------------------------------------------------------


def report(rows: Rows, title: str, done: str) -> None:
    """Show what ``change`` returned; ``done``: a line for all of it."""
    codecs = [f"survives {codec}" for codec in next(iter(rows.values()))["survives"]]
    shown = [[shown_name(name), *_cells(row)] for name, row in list(rows.items())[:SHOWN]]
    lines = [f"... and {len(rows) - SHOWN} more"] if len(rows) > SHOWN else []
    lines += _losses(rows)
    lines += [done]
    lines += SURVIVES if codecs else []
    show(table(title, ["picture", *COLUMNS, *codecs], shown), *lines)


def _losses(rows: Rows) -> list[str]:
    """A line for each thing, or set of things, that pictures lost: of one picture with its name first."""
    losers: dict[str, list[str]] = {}
    for row in rows.values():
        if row["lost"]:
            losers.setdefault("; ".join(row["lost"]), []).append(shown_name(row["file"]))
    lines = [
        f"{lost}: {len(names)} pictures, e.g. {names[0]}" if names[1:] else f"{names[0]}: {lost}"
        for lost, names in losers.items()
    ]
    rest = sum(len(names) for names in list(losers.values())[SHOWN:])
    return lines[:SHOWN] + ([f"... and of {rest} more pictures something was lost"] if rest else [])


def _cells(row: Mapping[str, Any]) -> list[str]:
    numbers = [(row[key], ".3f" if key == "ssim" else ".1f") for key in COLUMNS.values()]
    numbers += [(left, "z.0%") for left in row["survives"].values()]
    return ["-" if value is None else format(value, form) for value, form in numbers]
