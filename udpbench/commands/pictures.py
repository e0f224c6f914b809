"""What ``protect`` and ``purify`` have in common: a folder of pictures of any size and format in, finished ones out.

A picture keeps its shape (``data.geometry=native``, unless another is asked for), its transparency, resolution and EXIF
data, and a grey one stays grey.

Each picture is a unit of work of its own in the store, so pictures that were done before are not done again; unless the
method couples them (a surrogate trained on all): then the folder is one unit.
"""

from __future__ import annotations

import filecmp
import json
import re
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import replace
from math import inf
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from omegaconf import DictConfig
from PIL import ExifTags, Image, ImageOps
from PIL.ImageFile import ImageFile
from torch import Tensor

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
from udpbench.commands.inputs import called, data_of, pictures_below
from udpbench.commands.preparing import check_members, composed, open_store
from udpbench.core.atomic import atomic_write, try_folder
from udpbench.core.captions import read_captions, unread_captions
from udpbench.core.codecs import LONGEST
from udpbench.core.colours import has_other_colours
from udpbench.core.digest import file_digest, files_digest
from udpbench.core.errors import ConfigError, Errors
from udpbench.core.images import BROKEN, as_saved, file_name, from_pil, header, open_image, read, to_pil, write_metadata
from udpbench.core.text import shown_name
from udpbench.core.visibility import survival, visibility
from udpbench.interfaces import Dataset, Log, Method, Run, Titled
from udpbench.results.flags import beyond

FORMATS: dict[str, dict[str, Any]] = {"png": {}, "webp": {"lossless": True, "exact": True, "quality": 100}}
CODECS = {"protect": (("jpeg", 90), ("jpeg", 75), ("webp", 80)), "attack": ()}  # what websites do to pictures
TABLE = "pictures.json"  # file name -> what it was made of, how visible the change is, what survives, what was lost
READING = {"text", "denoise"}  # needs of methods that are given captions
FINISHED = "finished"  # the kind of stages that hold finished pictures
MOST_DPI = 1e6  # more is no resolution, and PNG holds no number much larger
SHOWN = 40  # rows of the table
MANY = 50  # pictures whose reading has a line of progress
UNUSED = {  # what the other half of a cell takes: groups, and models mounted for it
    "protect": r"(attack|purifier|task|victim|metrics|perturbation)\b|"
    r"model@(purifier|victim)|(arms|protected_fraction)=",
    "attack": r"(protect|budget|surrogate|task|victim|metrics|perturbation|like|inner|noise|noise_rms)\b|"
    r"model@(surrogate|victim)|(owner_prompt|arms|protected_fraction)=",
}
MOVING = ("GIF", "WEBP", "PNG", "AVIF")  # formats whose further pictures are an animation
COLUMNS = {"largest change": "linf", "RMS": "rms", "PSNR dB": "psnr", "SSIM": "ssim"}
MEASURED = ("linf", "rms")  # kinds of budgets that a row has the number of
SURVIVES = [
    "survives: the perturbation's energy, along itself, that saving in that format leaves (over 100%: the",
    "format makes it larger); this promises nothing.",
]
Rows = Mapping[str, Mapping[str, Any]]


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
    the work. Raises HydraException or ValueError for what is wrong, before any work.
    """
    source, target = Path(source).expanduser(), Path(target).expanduser()
    if target.exists() and source.exists() and target.samefile(source):
        raise ValueError(f"{target}: the finished pictures would replace your own; give another folder")
    _check_words(overrides, method)
    default = [] if method == "protect" or any(word.startswith("attack=") for word in overrides) else ["attack=impress"]
    cfg = composed(["data=folder", "data.geometry=native", *default, *overrides])
    store = open_store(cfg, log)  # first: it says how many pixels a picture may have
    below = pictures_below(source, target, Path(cfg.runtime.out), store.root)
    reads_captions = _reads_captions(cfg, method)
    rows: dict[str, Mapping[str, Any]] = {}
    with TemporaryDirectory() as scratch:
        data = data_of(source, below, reads_captions, Path(scratch) / "data")
        with called(data, source):
            cell = _cell(cfg, data, prompt, method)
            files = [source.resolve() / file.name for file in cell.data.component.files()]
        _check_format(form, cell.data.component)
        part: Part = getattr(cell, method)
        coupled, console = _coupled(cell, part), store.log
        units = [files] if coupled else [[file] for file in files]
        captions = read_captions(source, files) if reads_captions else {}
        if reads_captions and (unread := unread_captions(source, files)):
            console.say(f"! {unread}")
        work = []
        for i, unit in enumerate(units):
            unit_cell = cell if coupled else _cell_of(unit, captions, cell, cfg, Path(scratch) / str(i))
            work.append(_finished_stage(unit_cell, unit, method, form))
        _check_target(target, files, form, None if overwrite else store, {store.path(stage) for stage in work})
        todo = {stage.key for stage in work if not store.finished(stage)}
        undone = (unit for unit, stage in zip(units, work, strict=True) if stage.key in todo)
        _check_readable([file for unit in undone for file in unit], console)
        fetch_models(cell, store.missing(work))
        try_folder(target)
        _say_plan(console, part.name, len(files), coupled, len(todo))
        for line in slow_here(cell, store.device, only=method) if todo else ():
            console.say(f"! {line}")
        bar = (console if todo and not coupled else Log()).bar(part.name, len(todo), "img")
        with within(store), bar as advance:
            for unit, stage in zip(units, work, strict=True):
                store.log = console if coupled else Titled(console, shown_name(unit[0].name))
                rows |= _delivered(store.do(stage)[0], target)
                advance(stage.key in todo)
    model = cell.methods[method][1]
    for line in _objections(cell, part, model, method, rows):
        console.say(f"! {line}")
    return rows, _title(cell, part, model, method), below


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
    if said := next((word for word in overrides if re.match(rf"[+~]*({UNUSED[method]})", word)), ""):
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
    for made in (store.root / FINISHED).glob("*/*") if there else ():
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
            rows[path.name] = _finish(file, shaped, read(clean), read(changed), path, codecs)
        (out / TABLE).write_text(json.dumps(rows, indent=1), encoding="utf-8")

    # Of the files themselves, too: those that differ in transparency or resolution only may show the same.
    key = {"version": 4, "files": files_digest(files), "format": form, "codecs": codecs}
    return Stage(FINISHED, key, work, {"data": graph.data, "pictures": made}, title=made.title)


def _cell_of(files: Sequence[Path], captions: Mapping[str, str], cell: Cell, cfg: DictConfig, scratch: Path) -> Cell:
    """The cell of these pictures alone: a folder in ``scratch``, of the name of their own, that holds them only."""
    folder = scratch / files[0].parent.resolve().name
    folder.mkdir(parents=True)
    for file in files:
        (folder / file.name).symlink_to(file.resolve())
    if own := {file.name: {"text": captions[file.name]} for file in files if file.name in captions}:
        write_metadata(folder, own)
    data = cfg.data.copy()
    data.path = str(folder)
    return replace(cell, data=make_part(data, "folder", Dataset))


def _finish(
    file: Path, shaped: Callable[[Tensor], Tensor], clean: Tensor, changed: Tensor, path: Path, codecs: Any
) -> dict[str, Any]:
    """Write the finished picture of ``file``: with the change from ``clean``, which is what ``shaped`` makes of its
    pixels, to ``changed`` (CHW both); returns how visible that is, what of it survives, and what was lost."""
    form, several = path.suffix.removeprefix("."), _holds_several(file)
    with open_image(file) as image:
        lost = _lost(image, several, form, clean)
        kept: dict[str, Any] = {"dpi": dpi} if form == "png" and (dpi := _resolution(image)) else {}
        made, exif = _restored(image, shaped, clean, changed)
        kept |= {"exif": exif} if exif else {}
    made.save(path, **FORMATS[form], **kept)
    shown = read(path)
    survives = {
        f"{codec} {quality}": survival(clean, shown, codec, quality) if max(clean.shape) <= LONGEST[codec] else None
        for codec, quality in codecs
    }
    origin = {"file": file.name, "folder": str(file.parent), "digest": file_digest(file)}
    return {**origin, **visibility(clean, shown), "survives": survives, "lost": lost}


def _restored(
    image: Image.Image, shaped: Callable[[Tensor], Tensor], clean: Tensor, changed: Tensor
) -> tuple[Image.Image, bytes]:
    """The changed picture with the transparency of ``image``, grey if that is, upright, and its EXIF data without the
    orientation.

    The change is added to the colours under the transparency (``_below``), so it is there for who drops the alpha
    plane, too. Of a grey picture, methods that keep a budget change all channels alike (``Budget.project``); of what
    others do, the mean over the channels is kept.
    """
    upright = ImageOps.exif_transpose(image)
    if grey := _is_grey(upright):
        changed = changed.mean(0, keepdim=True).expand(3, -1, -1)
    if not upright.has_transparency_data:
        return to_pil(changed).convert("L" if grey else "RGB"), _exif_of(upright)
    colours, alpha = _below(upright.convert("RGBA"), shaped, clean)
    made = to_pil(colours + changed - clean).convert("L" if grey else "RGB")
    made.putalpha(to_pil(alpha.expand(3, -1, -1)).getchannel(0))
    return made, _exif_of(upright)


def _below(rgba: Image.Image, shaped: Callable[[Tensor], Tensor], clean: Tensor) -> tuple[Tensor, Tensor]:
    """Colours (CHW in [0,1]) and alpha (1HW, as saved) that show as ``clean`` over white: as what the method was given.

    The colours are the picture's own, as ``shaped`` makes them, wherever these do. At the edges of a resized picture
    they do not: colours that were hidden are mixed in. There they follow from ``clean`` and alpha. Alpha is what
    ``shaped`` makes of it, or more where no colour below it could show as dark as ``clean`` (bicubic resizing
    overshoots). A change d of these colours, as saved, is a change by at most |d| over any ground, and over white it is
    measured from ``clean``.
    """
    plane = rgba.getchannel("A")
    plane.info.pop("icc_profile", None)  # of the colours
    alpha = as_saved(torch.maximum(shaped(from_pil(plane))[:1], 1 - clean.amin(0, keepdim=True)))
    own = as_saved(shaped(from_pil(rgba.convert("RGB"))))
    shows = ((own * alpha + 1 - alpha - clean).abs() <= 0.501 / 255).all(0, keepdim=True)  # but for rounding
    solved = ((clean - 1 + alpha) / alpha.clamp(min=1 / 255)).clamp(0, 1)
    return torch.where(shows, own, solved), alpha


def _resolution(image: ImageFile) -> tuple[float, float] | None:
    """Dots per inch across and down that a file states; None where it states none: Pillow then has one of its own for
    TIFF (1) and for JPEG with EXIF data (72)."""
    if image.format in ("TIFF", "JPEG", "MPO") and image.info.get("jfif_unit") not in (1, 2):
        with suppress(*BROKEN):
            if ExifTags.Base.XResolution not in image.getexif():
                return None
    across, down = map(float, image.info.get("dpi", (0, 0)))
    return (across, down) if min(across, down) > 1 and max(across, down) < MOST_DPI else None


def _exif_of(image: Image.Image) -> bytes:
    """A picture's EXIF data; none if they are broken."""
    with suppress(*BROKEN):
        return found.tobytes() if len(found := image.getexif()) else b""
    return b""


def _is_grey(image: Image.Image) -> bool:
    return image.mode in ("1", "L", "LA", "La", "F") or image.mode.startswith("I")


def _holds_several(file: Path) -> bool:
    """Whether there is a second picture in a file, which can be found."""
    with open_image(file) as image:
        try:
            image.seek(1)
        except BROKEN:
            return False
    return True


def _lost(image: ImageFile, several: bool, form: str, shown: Tensor) -> list[str]:
    """What of a picture file a finished picture, of the size of ``shown``, does not have; ``several``: the file holds
    more than one."""
    deep = image.mode == "I" or image.mode.startswith("I;16") or ";16" in str(image.tile)
    height, width = shown.shape[-2:]
    found = {
        f"{image.width} x {image.height} px: now {width} x {height} (data.size, data.geometry)": {height, width}
        != {image.height, image.width},
        "an animation: its first frame is kept": several and image.format in MOVING,
        "further pictures in the file: the first is kept": several and image.format not in MOVING,
        "16 bits a channel: 8 are kept": deep,
        "floating-point values: 8 bits are kept": image.mode == "F",
        "black and white in 1 bit: now 8-bit grey": image.mode == "1",
        f"colours for print or of another space ({image.mode}): now RGB": image.mode in ("CMYK", "YCbCr", "LAB", "HSV"),
        f"one channel of grey: {form} has three equal ones": form == "webp" and _is_grey(image),
        "colour profile: applied, colours are now sRGB": has_other_colours(image),
        f"resolution (dpi): {form} has none": form != "png" and _resolution(image) is not None,
    }
    return [text for text, is_so in found.items() if is_so]


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
    lines += [f"{shown_name(row['file'])}: {'; '.join(row['lost'])}" for row in rows.values() if row["lost"]]
    lines += [done]
    lines += SURVIVES if codecs else []
    show(table(title, ["picture", *COLUMNS, *codecs], shown), *lines)


def _cells(row: Mapping[str, Any]) -> list[str]:
    numbers = [(row[key], ".3f" if key == "ssim" else ".1f") for key in COLUMNS.values()]
    numbers += [(left, "z.0%") for left in row["survives"].values()]
    return ["-" if value is None else format(value, form) for value, form in numbers]
