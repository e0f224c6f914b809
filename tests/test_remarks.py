"""What is said of a checked cell before it starts: pictures of another size than the victim's."""

from __future__ import annotations

import pytest
import torch

from udpbench.benchmark.remarks import of_run, remarks

CPU = torch.device("cpu")
EDITING = ("task=img2img", "~task.pictures")


@pytest.mark.parametrize(("words", "what"), [((), "training"), (EDITING, "editing")])
def test_pictures_that_are_resized_for_the_victim_are_told_once(cell, folder, words, what):
    assert not [line for line in of_run(cell(*words), CPU) if line.startswith("data")]
    (line,) = of_run(cell(*words, "data.size=24"), CPU)
    assert line == (
        "data toyworld: pictures have 24 px or more; they are protected and attacked at that size and reduced to the "
        f"victim's 16 px for {what}; data.size=16 keeps them one size"
    )
    of_folder = ["data=folder", f"data.path={folder}", "data.prompt='a {token} ring'"]
    smaller = cell(*words, *of_folder, "data.size=12")
    (line,) = [line for line in of_run(smaller, CPU) if line.startswith("data")]
    assert line == (
        "data folder: the smallest picture has a side of 12 px; such are enlarged to the victim's 16 px for "
        f"{what}; give larger ones (data.size=16, if that is less), or a victim of that size"
    )
    assert list(remarks(smaller, CPU)).count(line) == 1
