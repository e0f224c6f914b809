"""``python -m udpbench doctor [KEY=VALUE ...]``: what this machine has and lacks for the benchmark.

Nothing is downloaded and no model is loaded. Overrides are those of a cell, such as ``runtime.store=DIR``.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from udpbench.commands.common import Parser
from udpbench.commands.machine import cores, idle_cores
from udpbench.commands.preparing import composed
from udpbench.commands.searchpath import option_files
from udpbench.commands.telling import lines_of, one_line_errors
from udpbench.core.memory import ESTIMATE, of_cards

ROOM = 200_000_000  # bytes that a default cell leaves in the store, or less
TRIES_LOCK = "import sys; from filelock import SoftFileLease; SoftFileLease(sys.argv[1], timeout=0).acquire()"
YOURS = "yours: give its"  # of an option that only its user can complete
Lines = Iterator[tuple[str, str]]  # what, and what there is to say of it; a line that begins with "no: " is a failure


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 if the default cell, or that of the overrides, can run; 1 with the reasons if not."""
    parser = Parser("doctor", "What this machine has and lacks.")
    parser.takes_overrides("another cell than the default one")
    args = parser.parse_intermixed_args(arguments)
    failed = []
    with one_line_errors():
        cfg = composed(args.overrides)
        for title, look in SECTIONS.items():
            print(f"\n{title}")  # noqa: T201
            for what, text in _lines(look, cfg):
                print(f"  {what:22} {text}", flush=True)  # noqa: T201
                failed += [f"{what}: {text.removeprefix('no: ')}"] if text.startswith("no: ") else []
    print("\nthis cell can run" if not failed else "\nthis cell cannot run:")  # noqa: T201
    for reason in failed:
        print(f"  {reason}")  # noqa: T201
    return 1 if failed else 0


def _lines(look: Callable[[Any], Lines], cfg: Any) -> Lines:
    """What ``look`` finds; its failure is a finding, too."""
    try:
        yield from look(cfg)
    except Exception as error:  # noqa: BLE001 - whatever is broken here is what was asked for
        yield look.__name__.strip("_"), f"no: {type(error).__name__}: {lines_of(error)[0]}"


def _software(cfg: Any) -> Lines:
    from udpbench.core.provenance import provenance

    found = provenance()
    yield "python", f"{found['python']} ({sys.executable})"
    yield "udpbench", f"{found['version']}, commit {found['commit'] or 'unknown'}"
    if found["changed"]:
        yield "changed files", ", ".join(found["changed"])
    yield from found["packages"].items()


def _machine(cfg: Any) -> Lines:
    import torch

    from udpbench.commands.preparing import open_store
    from udpbench.core.device import unusable_gpu
    from udpbench.core.errors import ConfigError
    from udpbench.core.precision import NOTABLE, bf16_cost

    yield "CPU", f"{cores()} cores, {idle_cores()} idle; workers {cfg.runtime.workers}, threads {cfg.runtime.threads}"
    slow = "; say dtype=fp32" if bf16_cost() > NOTABLE else ""
    yield "bf16 on the CPU", f"a small convolution takes {bf16_cost():.1f} times as long as in fp32{slow}"
    with suppress(AttributeError, ValueError):  # a system that does not tell
        yield "memory", f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 1e9:.1f} GB"
    usable = torch.cuda.is_available()
    for i in range(torch.cuda.device_count() if usable else 0):
        about = torch.cuda.get_device_properties(i)
        yield f"GPU {i}", f"{about.name}, {about.total_memory / 1e9:.1f} GB"
    if not usable:
        yield "GPU", unusable_gpu() or "none that torch can use"
    try:
        device = str(open_store(cfg).device)
    except ConfigError as error:  # which the cell's own lines tell, too
        device = lines_of(error)[0]
    yield "a cell would use", device


def _memory(cfg: Any) -> Lines:
    yield "shown are", ESTIMATE
    yield from of_cards().items()


def _store(cfg: Any) -> Lines:
    folder = Path(cfg.runtime.store).expanduser().resolve()
    there = next(path for path in (folder, *folder.parents) if path.is_dir())
    yield "store", str(folder)
    if not os.access(there, os.W_OK):
        yield "writable", f"no: {there} may not be written; give runtime.out=DIR"
        return
    free = shutil.disk_usage(there).free
    yield "free disk", f"{'no: ' if free < ROOM else ''}{free / 1e9:.1f} GB"
    yield "locks", _locks(there)


def _locks(folder: Path) -> str:
    """Whether a second process cannot take a lock on a file in ``folder`` that this one holds."""
    from filelock import SoftFileLease

    with TemporaryDirectory(dir=folder, prefix=".udpbench-") as scratch, SoftFileLease(Path(scratch) / "lock") as lock:
        command = [sys.executable, "-c", TRIES_LOCK, str(lock.lock_file)]
        other = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", check=False)  # noqa: S603 (a fixed command)
    if "Timeout" in other.stderr:
        return "a second process waits, as it should"
    return "no: this file system does not lock, so two processes would do the same work; give another runtime.store=DIR"


def _models(cfg: Any) -> Lines:
    """Where the weights of every model are that an option names."""
    from udpbench.models.diffusion import Diffusion

    for name, component in _built("model", Diffusion):
        yield name, component if isinstance(component, str) else _place(component)


def _place(model: Any) -> str:
    if not model.trained:
        return "fresh weights: nothing to load"
    if folder := model.folder:
        return "embedded" if model.embedded else f"in {folder}"
    return f"missing; `hf download {model.path} --revision {model.revision}`, or model={model.option} model.path=DIR"


def _others(cfg: Any) -> Lines:
    """What components say that they lack here; those of the same words together."""
    from udpbench.benchmark.check import errors_of
    from udpbench.benchmark.signatures import KINDS

    lacking: dict[str, list[str]] = {}
    checked = 0
    for group in ("protect", "attack", "task", "metric"):
        for name, component in _built(group, KINDS[group]):
            reason = component if isinstance(component, str) else next(iter(errors_of(component.check)), "")
            if reason.startswith(YOURS):
                continue
            checked += 1
            if reason:
                lacking.setdefault(reason, []).append(f"{group}={name}")
    for reason, names in lacking.items():
        yield ", ".join(names), reason
    complete = checked - sum(map(len, lacking.values()))
    yield "nothing is missing for", f"the other {complete} of {checked} options that need no setting of yours"


def _built(group: str, kind: Any) -> Iterator[tuple[str, Any]]:
    """Every option of a group, built; the reason in its place if it cannot be built as it is."""
    from omegaconf import OmegaConf

    from udpbench.benchmark.build import make_part

    names = [path.stem for path in option_files(group)]
    every = composed([f"+{group}@every.{name}={name}" for name in names]).every
    for name in names:
        if missing := [key.rpartition(".")[2] for key in OmegaConf.missing_keys(every[name])]:
            yield name, f"{YOURS} {', '.join(missing)}"
            continue
        try:
            yield name, make_part(every[name], name, kind).component
        except ValueError as error:
            yield name, lines_of(error)[0].removeprefix(f"{name}: ")


def _tracking(cfg: Any) -> Lines:
    import logging

    import wandb

    logging.getLogger("wandb").setLevel(logging.ERROR)
    known = wandb.login(prompt=False)
    yield "wandb", "logged in" if known else "not logged in; track.mode=offline needs no account"


def _cell(cfg: Any) -> Lines:
    from udpbench.benchmark.run import models_of
    from udpbench.commands.common import cell_text
    from udpbench.commands.preparing import prepare

    try:
        ready = prepare(cfg)
        ready.tracker.check()
    except ValueError as error:
        for line in lines_of(error):
            yield "configuration", f"no: {line}"
        return
    cell = ready.cell
    yield "configuration", cell_text(cell)
    for model in models_of(cell, ready.graph.stages):
        if (place := _place(model)).startswith("missing"):
            yield f"model {model.name}", f"no: {place}"
    for name, reason in cell.absent.items():
        yield f"absent: {name}", reason


SECTIONS: dict[str, Callable[[Any], Lines]] = {
    "Software": _software,
    "Machine": _machine,
    "Memory of large models": _memory,
    "Store": _store,
    "Models": _models,
    "Weights and files of methods and metrics": _others,
    "Tracking": _tracking,
    "Cell": _cell,
}
