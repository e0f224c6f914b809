"""The table of arms: what one cell compares. Configuration, records, reports, docs and tests read it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ArmKind:
    """One thing that a cell compares.

    ``depends``: of which of protect and attack it is made; the others are shared by all cells of a task.
    ``of``: the tasks for which it means something, those that train or those that edit.
    """

    name: str
    description: str
    depends: tuple[str, ...] = ()
    of: tuple[str, ...] = ("training", "editing")
    control: bool = False  # noise in place of a protection
    default: bool = True  # whether a cell has it without being asked


# In the order of tables.
_TABLE = (
    ArmKind("pretrained", "no training: the lower bound", of=("training",)),
    ArmKind("clean", "the pictures as they are"),
    ArmKind("reseeded", "clean pictures edited from other noise: how much edits differ for no reason", of=("editing",)),
    ArmKind(
        "noise", "random sign noise of the same budget: a protection that does not beat it does nothing", control=True
    ),
    ArmKind(
        "noise_rms",
        "Gaussian noise with the RMS of the protection's saved pictures; with budget=perceptual at its distance",
        ("protect",),
        control=True,
        default=False,
    ),
    ArmKind("protected", "the protected pictures", ("protect",)),
    ArmKind("purified", "the protected pictures after the attack", ("protect", "attack")),
    ArmKind("clean_attacked", "clean pictures after the attack: an attack that ruins them is no attack", ("attack",)),
    ArmKind(
        "upper_bound",
        "a perfect victim: held-out pictures after one round trip through its autoencoder",
        of=("training",),
    ),
)
ARMS = {kind.name: kind for kind in _TABLE}
CONTROLS = tuple(name for name, kind in ARMS.items() if kind.control)
DEFAULT = tuple(name for name, kind in ARMS.items() if kind.default)
