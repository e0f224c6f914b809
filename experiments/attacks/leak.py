"""Twelve pictures of the thief's own: ``python -m experiments.attacks.leak OUT`` renders development subject 0."""

import sys
from pathlib import Path

import torch

from udpbench.core.folders import numbered, write_pictures
from udpbench.world import renderer

if __name__ == "__main__":
    scenes = renderer.draw(12, torch.Generator().manual_seed(0), renderer.subject(0))
    write_pictures(Path(sys.argv[1]), numbered(renderer.render(scenes)))
