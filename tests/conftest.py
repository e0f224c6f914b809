"""What every test process is told; the process that only hands files out to others (``--dist``) imports no more than this."""

from __future__ import annotations

import os

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # of this process and of every command it starts
os.environ["HF_HUB_OFFLINE"] = "1"  # before anything reads it: no test may ask a server for weights


def pytest_configure(config: pytest.Config) -> None:
    hands_out = config.getoption("dist", "no") != "no" and not hasattr(config, "workerinput")
    if not hands_out:
        config.pluginmanager.import_plugin("shared")
