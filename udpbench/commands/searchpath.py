"""The folders of the configuration: the package's, and those of one's own that ``hydra.searchpath`` names."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from omegaconf import ListConfig, OmegaConf

from udpbench.commands.quoting import list_of_texts
from udpbench.core.package import CONF

SEARCHPATH = re.compile(r"[+~]*hydra\.searchpath=")  # how the word begins that names folders of one's own


def option_files(group: str, *further: Path) -> list[Path]:
    """The YAMLs of a group of the configuration, and of ``further`` folders like it, sorted by name."""
    found = {path.stem: path for folder in (*further, CONF) for path in (folder / group).glob("*.yaml")}
    return [found[name] for name in sorted(found)]


def with_folders(overrides: Sequence[str]) -> list[str]:
    """The words as Hydra finds the folders of one's own that are among them: it takes ``~`` for a name.

    Raises ValueError as ``searched``.
    """
    searched(overrides)
    return [_with_home(word) if SEARCHPATH.match(word) and "~" in word.lstrip("~") else word for word in overrides]


def _with_home(word: str) -> str:
    """A word that names folders of one's own, with the home directory in place of ``~``."""
    return f"{word.partition('=')[0]}={list_of_texts(_places(word))}"


def searched(overrides: Sequence[str]) -> list[Path]:
    """The folders that ``hydra.searchpath`` among the words names.

    Raises ValueError for one that is not there, or in which an option has the name of one of the package's.
    """
    places = [place for word in overrides if SEARCHPATH.match(word) for place in _places(word)]
    folders = [Path(place.removeprefix("file://")) for place in places if place.startswith("file://")]
    if missing := next((folder for folder in folders if not folder.is_dir()), None):
        raise ValueError(f"hydra.searchpath: there is no folder {missing}")
    check_names(folders)
    return folders


def _places(word: str) -> list[str]:
    """The places in a word ``hydra.searchpath=[...]``; those that are folders begin with ``file://``."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    (parsed,) = OverridesParser.create().parse_overrides([word])
    given = OmegaConf.create({"places": parsed.value()}).places
    if not isinstance(given, ListConfig):
        raise ValueError(f"hydra.searchpath: must be a list, given {given!r}; say hydra.searchpath=[DIR]")
    split = (str(place).rpartition("://") for place in given)
    return [f"file://{os.path.expanduser(at)}" if kind in ("", "file") else f"{kind}://{at}" for kind, _, at in split]


def check_names(folders: Iterable[Path]) -> None:
    """ValueError if an option in one of the folders has the name of one of the package's, which Hydra would take in its
    place. What families bring has the names of the methods that it is for."""
    own = [folder for folder in folders if folder.resolve() != CONF.resolve()]
    ours = sorted(path.relative_to(CONF) for path in CONF.glob("*/**/*.yaml")) if own else []
    for folder in own:
        if twice := next((file for file in ours if file.parts[0] != "family" and (folder / file).is_file()), None):
            said = f"{twice.parent.as_posix()}={twice.stem}"
            raise ValueError(f"{folder / twice}: the package has {said}; give yours another name")
