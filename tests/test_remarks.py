"""What is said of a checked cell before it starts: pictures of another size than the victim's, no held-out ones."""

from __future__ import annotations

import pytest
import torch

from udpbench.benchmark.remarks import of_run, remarks
from udpbench.core.images import write_png

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


def test_that_nothing_says_whether_a_victim_learned_is_told(cell, folder, tmp_path):
    for i, part in enumerate(("reference", "heldout")):
        write_png(tmp_path / part / "0.png", torch.full((3, 16, 16), i / 2))
    words = [
        "data=folder",
        f"data.path={folder}",
        "data.prompt='a {token} ring'",
        f"data.reference={tmp_path}/reference",
    ]
    lacks = (
        "data folder: no held-out pictures (data.heldout), so no arm upper_bound: nothing says whether the clean "
        "victim learned"
    )
    assert [line for line in of_run(cell(*words), CPU) if line.startswith("data")] == [lacks]
    for further in ([f"data.heldout={tmp_path}/heldout"], ["arms=[clean,protected]"], EDITING):
        assert lacks not in list(of_run(cell(*words, *further), CPU))


def test_with_held_out_pictures_a_folder_has_an_upper_bound(graph, folder, tmp_path):
    write_png(tmp_path / "0.png", torch.zeros(3, 16, 16))
    words = ["data=folder", f"data.path={folder}", "data.prompt='a {token} ring'", "arms=[pretrained,upper_bound]"]
    assert list(graph(*words, f"data.heldout={tmp_path}").arms) == ["pretrained", "upper_bound"]
