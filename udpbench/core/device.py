"""The device that work is done on, and its float32."""

from __future__ import annotations

import torch

from udpbench.core.errors import ConfigError


def strict_float32() -> None:
    """fp32 is float32: no product on a GPU in TF32, whatever its environment would rather have (as NVIDIA's containers
    do), so that numbers do not depend on it."""
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False


def unusable_gpu() -> str:
    """In words, that there is a GPU and torch cannot use it, as with a driver that is too old; "" if it can, or there
    is none."""
    if torch.cuda.is_available() or not torch.cuda.device_count():
        return ""
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        why = next(iter(str(error).splitlines()), "")
        return f"there is a GPU, but torch, made for CUDA {torch.version.cuda}, cannot use it ({why})"
    return ""


def prepare_device(wanted: str) -> torch.device:
    """``auto`` is the first GPU, or the CPU where there is none.

    Raises ConfigError for a device that is not there, and for ``auto`` where torch cannot use the GPU that is there.
    """
    strict_float32()
    if wanted == "auto":
        if unusable := unusable_gpu():
            raise ConfigError(f"runtime.device: {unusable}; say runtime.device=cpu for the CPU")
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(wanted)
        if device.type not in ("cpu", "cuda"):
            raise RuntimeError(f"no device to compute on: {device.type}")
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(
            f"runtime.device: {wanted!r} cannot be used ({str(error).splitlines()[0]}); "
            "allowed are auto, cpu, cuda, cuda:N"
        ) from error
    return device
