"""udpbench: a benchmark of image protections against diffusion models.

The functions below do what the commands of the same names do, with the same store and the same cache keys; ``import
udpbench`` itself loads no torch. Overrides are those of the command line (``"budget.eps=4"``); choices are the same as
keywords (``protect="eudp", seed=1``). Pictures are paths of folders, or CHW float tensors in [0,1]: a list, a batch or
a generator of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from udpbench.results.schema import Record

    Pictures = str | Path | Iterable[Tensor]  # of a folder, or CHW float in [0,1] each

__all__ = ["load_records", "protect", "purify", "run", "score"]


@contextmanager
def _config_errors() -> Iterator[None]:
    """What is wrong in words of the command line is a ConfigError."""
    from udpbench.commands.telling import WRONG_WORDS, lines_of
    from udpbench.core.errors import ConfigError

    try:
        yield
    except WRONG_WORDS as error:
        raise ConfigError("\n".join(lines_of(error))) from error


@_config_errors()
def run(*overrides: str, **choices: Any) -> Record | None:
    """Run one cell and return its record, which is written as by the command line, too (None with
    ``runtime.stages=pictures``, which makes none).

    ``udpbench.run("budget.eps=4", protect="eudp", attack="impress", task="dreambooth", seed=1)``. Finished stages are
    not computed again. All is done in the process of the caller: ``runtime.workers`` is the command line's. Raises
    ``udpbench.core.errors.ConfigError`` with a line for everything that is wrong.
    """
    from omegaconf import open_dict

    from udpbench.commands.executing import execute
    from udpbench.commands.preparing import composed, prepare
    from udpbench.core.errors import ConfigError
    from udpbench.tracking.console import Console

    cfg = composed(_overrides(overrides, choices))
    if (n := cfg.runtime.workers) not in ("auto", 1):
        raise ConfigError(f"runtime.workers: run works in the process that calls it; allowed are auto and 1, given {n}")
    ready = prepare(cfg, Console())
    ready.tracker.check()
    with open_dict(cfg):
        del cfg["hydra"]
    return execute(ready, cfg, group="python", show_table=False)


@_config_errors()
def protect(
    source: Pictures, out: str | Path | None = None, *overrides: str, prompt: str = "a photo", **choices: Any
) -> Path | list[Tensor]:
    """Protect pictures at their own size; no victim is trained.

    ``source``: a folder of pictures of any format, or a list of 3HW tensors. ``out``: a folder for the protected
    pictures (PNG, under their own names; those of a list are numbered), which is returned, and in which nothing made of
    other pictures is replaced; None: they are returned as 3HW float32 in [0,1], multiples of 1/255, in the order of the
    list or of the names. ``prompt``: what the pictures show, for protections that read prompts. Raises ConfigError for
    what is wrong, before any work.
    """
    return _change("protect", source, out, _overrides(overrides, choices), prompt)


@_config_errors()
def purify(
    source: Pictures, out: str | Path | None = None, *overrides: str, prompt: str = "a photo", **choices: Any
) -> Path | list[Tensor]:
    """Attack pictures as they are (``attack="impress"`` if none is given); shapes and errors as of ``protect``."""
    return _change("attack", source, out, _overrides(overrides, choices), prompt)


@_config_errors()
def score(got: Pictures, ref: Pictures, metrics: Sequence[str] | None = None, *overrides: str) -> dict[str, Any]:
    """Scores of pictures against reference pictures; lists of 3HW tensors are paired by their order.

    ``metrics``: names of ``conf/metric``; None: those that can be computed. ``overrides``: of ``runtime``. Returns
    ``{"scores": {score: {"value", "better_protected": "up" | "down", "metric"}}, "absent": {metric: reason}}`` and both
    folders. Raises ConfigError for an unknown metric or no pictures.
    """
    from udpbench.commands.score import scores
    from udpbench.tracking.console import Console

    with TemporaryDirectory() as scratch:
        ours, theirs = _folder(got, Path(scratch) / "got"), _folder(ref, Path(scratch) / "ref")
        return scores(ours, theirs, metrics, overrides, Console())


def load_records(*folders: str | Path) -> list[Record]:
    """The records in the folders, in the order of their file names. Raises ValueError for one that is no record."""
    from udpbench.results.record import read_records

    return [record for folder in folders for record in read_records(Path(folder))]


# -- what they share ---------------------------------------------------------------------------------------------------


def _change(kind: str, source: Pictures, out: str | Path | None, words: list[str], prompt: str) -> Path | list[Tensor]:
    from udpbench.commands.pictures import change
    from udpbench.core.images import read_folder
    from udpbench.tracking.console import Console

    with TemporaryDirectory() as scratch:
        folder = _folder(source, Path(scratch) / "pictures")
        target = Path(scratch) / "out" if out is None else Path(out)
        change(folder, target, kind, words, prompt, log=Console())
        return list(read_folder(target).values()) if out is None else target


def _folder(pictures: Pictures, scratch: Path) -> Path:
    """The folder of the pictures; tensors are written into ``scratch`` as PNGs."""
    if isinstance(pictures, str | Path):
        return Path(pictures)
    from udpbench.core.folders import numbered, write_pictures

    given = _checked(pictures)
    write_pictures(scratch, numbered(given, digits=max(4, len(str(len(given) - 1)))))
    return scratch


def _checked(pictures: Iterable[Tensor]) -> list[Tensor]:
    """All pictures; ValueError in one line for what is no CHW float tensor in [0,1], which saving would clamp."""
    from torch import Tensor

    from udpbench.core.images import beyond_range

    allowed = "give a folder, or CHW float tensors in [0,1]"
    if not isinstance(pictures, Iterable):
        raise ValueError(f"images: given {type(pictures).__name__}; {allowed}")
    found = list(pictures)
    if not found:
        raise ValueError("images: the list is empty; give at least one picture")
    for i, x in enumerate(found):
        if not isinstance(x, Tensor):
            raise ValueError(f"images: picture {i} is of type {type(x).__name__}; {allowed}")
        if x.ndim != 3 or x.shape[0] != 3 or not x.numel():
            raise ValueError(f"images: picture {i} must be 3 x height x width, given {tuple(x.shape)}")
        if not x.is_floating_point():
            raise ValueError(
                f"images: picture {i} holds values of type {x.dtype}; pictures are floating point in [0,1]"
            )
        if beyond := beyond_range(x):
            raise ValueError(f"images: picture {i} holds {beyond}; pictures are in [0,1]")
    return found


def _overrides(overrides: Sequence[str], choices: dict[str, Any]) -> list[str]:
    return [*overrides, *(f"{key}={_word(value)}" for key, value in choices.items())]


def _word(value: Any) -> str:
    """A value as the command line has it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list | tuple):
        return f"[{','.join(map(_word, value))}]"
    if isinstance(value, dict):
        return f"{{{','.join(f'{key}:{_word(item)}' for key, item in value.items())}}}"
    if isinstance(value, str | Path):
        quoted = str(value).replace("'", "\\'")
        return f"'{quoted}'"
    return str(value)


class _Protections(ModuleType):
    """The package of the protections, whose name the function ``protect`` has, too: it can be called as that."""

    __call__ = staticmethod(protect)
    __wrapped__ = staticmethod(protect)  # whose signature help shows


_package = import_module("udpbench.protect")  # from here on the name means the package
_package.__class__, _package.__doc__ = _Protections, _Protections.__call__.__doc__
