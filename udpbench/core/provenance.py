"""Where numbers come from: commit, versions, device."""

from __future__ import annotations

import platform
import subprocess
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

if TYPE_CHECKING:
    import torch

_PACKAGES = (
    "torch", "torchvision", "diffusers", "transformers", "accelerate", "peft", "safetensors", "torchmetrics",
    "torch-fidelity", "clean-fid", "lpips", "timm", "numpy", "scipy", "pillow", "hydra-core", "wandb",
)  # fmt: skip


class Provenance(TypedDict, total=False):
    """What a record says of where its numbers come from."""

    commit: str | None
    dirty: bool | None
    changed: list[str] | None
    version: str | None
    packages: dict[str, str]
    device: str
    python: str
    platform: str
    parts: dict[str, Any]  # of a cell: version, identity and source of each part and metric


DIRTY = "-dirty"  # appended to the commit if the code was changed since


def provenance(device: torch.device | None = None) -> Provenance:
    """Where numbers made now come from: commit, dirty flag and changed files (None outside a repository), versions,
    device, python."""
    head, changed = _git()
    packages = {name: found for name in _PACKAGES if (found := version(name)) is not None}
    machine = f"{platform.system()} {platform.machine()}"
    return {
        "commit": head, "dirty": None if changed is None else bool(changed), "changed": changed,
        "version": version("udpbench"), "packages": packages, "device": _device_name(device),
        "python": platform.python_version(), "platform": machine,
    }  # fmt: skip


def commit() -> str | None:
    """The commit of the code that runs, ``-dirty`` behind it if what makes numbers was changed since; None outside a
    repository."""
    head, changed = _git()
    return head and head + DIRTY * bool(changed)


@cache
def _git() -> tuple[str | None, list[str] | None]:
    """The commit of the repository that tracks this very file, and the files that differ from it; None, None without.

    As this process first found it: the code that it has loaded does not change when something is committed.

    A virtual environment inside another repository does not count. Only files that make numbers are looked at: a
    record just written beside the code changes none.
    """
    here = Path(__file__).resolve()

    def git(at: Path, *words: str) -> str | None:
        command = ["git", "-C", str(at), *words]
        try:
            done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", check=False)  # noqa: S603 (a fixed command)
        except FileNotFoundError:
            return None
        return done.stdout if done.returncode == 0 else None

    if (name := git(here.parent, "ls-files", "--full-name", "--error-unmatch", "-z", here.name)) is None:
        return None, None
    root = here.parents[name.count("/")]
    looked_at = ("udpbench", "conf", "pyproject.toml")
    status = git(root, "status", "--porcelain", "-z", "--no-renames", "--untracked-files=all", "--", *looked_at)
    head = git(root, "rev-parse", "HEAD")
    return head and head.strip(), sorted(line[3:] for line in (status or "").split("\0") if line)


@cache
def version(package: str) -> str | None:
    """Of an installed package; None without."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _device_name(device: torch.device | None) -> str:
    """What a person would call the device: "cuda: NVIDIA A100", "cpu: Intel Xeon ..."."""
    if device is not None and device.type == "cuda":
        import torch

        return f"cuda: {torch.cuda.get_device_name(device)}"
    if device is not None and device.type != "cpu":
        return device.type
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"cpu: {names[0] if names else platform.processor() or platform.machine()}"
