"""Structural similarity under a uniform window: what tables made with the package sewar call SSIM."""

from __future__ import annotations

from udpbench.core.visibility import UNIFORM
from udpbench.metrics.ssim import Ssim


class SsimUniform(Ssim):
    """``ssim_uniform``: as ``ssim``, each place of the 11 x 11 window counting the same.

    The SSIM of the tables of IMPRESS (Cao et al., NeurIPS 2023): sewar's, which falls further than Wang et al.'s.
    """

    scores = {"ssim_uniform": "up"}
    window = UNIFORM
