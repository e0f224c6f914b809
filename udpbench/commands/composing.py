"""A grid without doing anything twice: files of the configuration are read once, each cell is composed once."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from hydra._internal import defaults_list as hydras
from hydra._internal.config_repository import ConfigRepository
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.default_element import InputDefault
from hydra.core.global_hydra import GlobalHydra
from hydra.plugins.config_source import ConfigResult
from omegaconf import DictConfig, OmegaConf

WAITING = 256  # configurations at most
_made_map = hydras._create_interpolation_map


class ReadOnce(ConfigRepository):
    """Where Hydra finds its files, which keeps what it has read for as long as it looks in the same places.

    Raises what Hydra's own raises.
    """

    def __init__(self, sources: list[Any]) -> None:
        self.sources = sources
        self.known: dict[str, ConfigResult | None] = {}

    def initialize_sources(self, config_search_path: ConfigSearchPath) -> None:
        super().initialize_sources(config_search_path)
        self.known = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> ReadOnce:
        """Hydra takes a copy for each composition: it may look elsewhere, and what it reads is known to all."""
        other = ReadOnce(list(self.sources))
        other.known = self.known
        return other

    def load_config(self, config_path: str) -> ConfigResult | None:
        if config_path not in self.known:
            self.known[config_path] = super().load_config(config_path)
        return copy.deepcopy(self.known[config_path])  # a composition takes parts of it over


def _map_of_choices(overrides: Any, defaults_list: list[InputDefault], self_added: bool) -> DictConfig:
    """Hydra's map of the options chosen so far, which it makes for every file and looks into for defaults that refer to
    one: a third of what composing takes."""
    if any(default.is_interpolation() for default in defaults_list if not default.is_self()):
        return _made_map(overrides, defaults_list, self_added)
    return OmegaConf.create()


def read_files_once() -> None:
    """From here on the compositions of this process read each file once, and make only maps that are looked into."""
    loader: Any = GlobalHydra.instance().config_loader()
    loader.repository = ReadOnce(list(loader.repository.get_sources()))
    hydras._create_interpolation_map = _map_of_choices


def compose_once() -> None:
    """From here on a cell of a sweep is given the configuration that Hydra has composed to see whether that can be, and
    would compose again. Of a grid of more than ``WAITING`` cells the last ones are composed twice: a configuration that
    waits takes a third of a megabyte."""
    loader: Any = GlobalHydra.instance().config_loader()
    compose, waiting, room = loader.load_sweep_config, dict[tuple[str, ...], DictConfig](), WAITING

    def load_sweep_config(master_config: DictConfig, sweep_overrides: Sequence[str]) -> DictConfig:
        nonlocal room
        if (found := waiting.pop(words := tuple(sweep_overrides), None)) is not None:
            room = 0  # the cells have begun: what is composed from now on is used at once
            OmegaConf.copy_cache(master_config, found)  # of resolvers: others may have been asked since
            return found
        found = compose(master_config, sweep_overrides)
        if len(waiting) < room:
            waiting[words] = found
        return found

    loader.load_sweep_config = load_sweep_config
