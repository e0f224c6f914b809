"""A grid without doing anything twice: files of the configuration are read once, and put together once for each choice
of options; what is left for a cell are the values of its settings."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from hydra._internal import config_loader_impl
from hydra._internal import defaults_list as hydras
from hydra._internal.config_repository import ConfigRepository
from hydra._internal.defaults_list import DefaultsList
from hydra.core.default_element import InputDefault, ResultDefault
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.types import Override
from hydra.plugins.config_source import ConfigResult
from omegaconf import DictConfig, OmegaConf

KEPT = 300  # of files, of lists of files and of what they say together, a third of a megabyte each; at most
_made_map, _made_list = hydras._create_interpolation_map, hydras.create_defaults_list


class ReadOnce(ConfigRepository):
    """Where Hydra finds its files, which keeps what was made of them.

    Raises what Hydra's own raises.
    """

    def __init__(self, sources: list[Any]) -> None:
        self.sources = sources
        self.known: dict[str, dict[tuple[Any, ...], Any]] = {}  # by kind

    def __deepcopy__(self, memo: dict[int, Any]) -> ReadOnce:
        """Hydra takes a copy for each composition: it may look elsewhere, and what it reads is known to all."""
        other = ReadOnce(list(self.sources))
        other.known = self.known
        return other

    def once(self, make: Callable[[], Any], kind: str, *key: Any) -> Any:
        """What ``make`` makes of the files where it looks, known by ``kind`` and ``key``."""
        known, key = self.known.setdefault(kind, {}), (*map(repr, self.sources), *key)
        if key not in known:
            found = make()
            if len(known) >= KEPT:
                known.pop(next(iter(known)))
            known[key] = found
        return known[key]

    def load_config(self, config_path: str) -> ConfigResult | None:
        found = self.once(partial(super().load_config, config_path), "file", config_path)
        return copy.deepcopy(found)  # a composition takes parts of it over


def _map_of_choices(overrides: Any, defaults_list: list[InputDefault], self_added: bool) -> DictConfig:
    """Hydra's map of the options chosen so far, which it makes for every file and looks into for defaults that refer to
    one: a third of what composing takes."""
    if any(default.is_interpolation() for default in defaults_list if not default.is_self()):
        return _made_map(overrides, defaults_list, self_added)
    return OmegaConf.create()


def _list_of_files(repo: Any, config_name: str | None, overrides_list: list[Override], **how: bool) -> DefaultsList:
    """Hydra's list of the files that a configuration is made of: options are chosen by options alone."""
    make = partial(_made_list, repo, config_name, overrides_list, **how)
    if not isinstance(repo.delegate, ReadOnce):
        return make()
    values = hydras.Overrides(repo, overrides_list).config_overrides
    chosen = [word.input_line for word in overrides_list if not any(word is value for value in values)]
    return replace(repo.delegate.once(make, "list", config_name, *chosen, *how.items()), config_overrides=values)


def _together(make: Callable[..., DictConfig], defaults: list[ResultDefault], repo: Any) -> DictConfig:
    """What listed files say together, to be changed by the caller."""
    return copy.deepcopy(repo.delegate.once(lambda: make(defaults=defaults, repo=repo), "together", repr(defaults)))


def read_files_once(loader: Any = None) -> None:
    """From here on the compositions of this process (of ``loader``, a Hydra ``ConfigLoaderImpl``; None: the one in use)
    read each file once, put the same files together once, and make only maps that are looked into."""
    loader = loader or GlobalHydra.instance().config_loader()
    loader.repository = ReadOnce(list(loader.repository.get_sources()))
    loader._compose_config_from_defaults_list = partial(_together, loader._compose_config_from_defaults_list)
    hydras._create_interpolation_map = _map_of_choices
    config_loader_impl.create_defaults_list = _list_of_files  # type: ignore[assignment]
