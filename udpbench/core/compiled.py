"""Networks that torch.compile rewrites for the machine: the setting ``compile`` of models."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterable

import torch
from torch import nn

from udpbench.core.component import check_choice

MODES = ("none", "default")


def check_compiler(who: str, mode: str) -> None:
    """ValueError in one line if ``mode`` is none of ``MODES``, or a CPU is to compile and has no C++ compiler."""
    if mode == "reduce-overhead":
        why = "its CUDA graphs overwrite what a network gave when it is called again, as it is here before a gradient"
        raise ValueError(f"{who}: compile={mode} is not supported: {why}; say compile=default")
    check_choice(f"{who}: unknown compile", mode, MODES)
    compilers = [os.environ.get("CXX", "g++"), "clang++"]
    if mode != "none" and not torch.cuda.is_available() and not any(map(shutil.which, compilers)):
        raise ValueError(f"{who}: compile={mode} needs a C++ compiler on a CPU; install g++, or say compile=none")


def compile_networks(mode: str, networks: Iterable[nn.Module]) -> None:
    """Compile what is not compiled yet, each when it is first called with inputs of a kind; class, settings and weights
    stay as they are. Copies of a compiled network are not compiled."""
    for network in networks if mode != "none" else ():
        if network._compiled_call_impl is None:
            network.compile(mode=mode)


def seconds_compiling() -> float:
    """What this process has spent so far on compiling."""
    if "torch._dynamo" not in sys.modules:  # importing it takes seconds
        return 0.0
    from torch._dynamo.utils import calculate_time_spent

    return calculate_time_spent()["total_wall_time"]
