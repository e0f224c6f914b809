"""The files of a configuration, read once and not anew for every cell of a grid: a quarter of what composing takes."""

from __future__ import annotations

import copy
from typing import Any

from hydra._internal.config_repository import ConfigRepository
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.global_hydra import GlobalHydra
from hydra.plugins.config_source import ConfigResult


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


def read_files_once() -> None:
    """From here on the compositions of this process read each file once."""
    loader: Any = GlobalHydra.instance().config_loader()
    loader.repository = ReadOnce(list(loader.repository.get_sources()))
