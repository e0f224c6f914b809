"""Drawn values in place of any setting: refused in one line, or used as they were given."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from math import inf, nan
from typing import Any

import pytest
from drawn import draws, one_line
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf
from shared import composed, family_options, options

from udpbench.benchmark.build import make_part
from udpbench.benchmark.signatures import KINDS
from udpbench.commands.preparing import prepare
from udpbench.commands.telling import WRONG_WORDS
from udpbench.core.component import check_plain, inside

pytestmark = pytest.mark.slow  # every test composes a configuration

ODD = [
    *(None, True, False, 0, -1, 3, -0.5, 0.5, 1.5, 10**9, 10**30, 1e300, nan, inf, -inf),
    *("", " ", "1", "nan", "auto", "none", "a\nb", "ä\udcff", "x" * 100, "../x", "${no.such}", "???", "{", "\0"),
    *([], [None], [nan], [-1], ["a"], [[]], {}, {"a": 1}, {"_target_": "os.getcwd"}),
]
VALUES = st.sampled_from(ODD) | st.floats() | st.integers() | st.text(max_size=20)
GROUPS = ("protect", "attack", "task", "metric", "data", "budget")


def leaves(value: Any, *at: str) -> Iterator[tuple[str, ...]]:
    """Places of all values, those that hold others included."""
    if at:
        yield at
    for name, inner in inside(value):
        if isinstance(value, dict):  # a list is exchanged whole
            yield from leaves(inner, *at, str(name))


def like(value: Any, before: Any) -> bool:
    """Whether a value that was taken is of the kind of the one that it replaced; of none nothing is known."""
    if before is None or value is None or before == "auto":
        return True
    if isinstance(before, bool) or isinstance(value, bool):
        return isinstance(before, bool) and isinstance(value, bool)
    return isinstance(value, int | float if isinstance(before, int | float) else type(before))


def at(value: Any, place: tuple[str, ...]) -> Any:
    for name in place:
        value = value[name]
    return value


@given(data=st.data())
@draws(150)
def test_any_setting_of_any_option_is_refused_in_one_line_or_taken_as_given(node, data):
    group, option, family = data.draw(
        st.sampled_from(
            [(g, o, "micro") for g in GROUPS for o in options(g)]
            + [(g, o, f) for f, g, o in (name.split("/") for name in family_options()) if g in GROUPS]
        )
    )
    conf = node(group, option, family)
    plain = OmegaConf.to_container(conf)
    places = [place for place in leaves(plain) if place != ("_target_",)]
    if not places:
        return
    place, value = data.draw(st.sampled_from(places)), data.draw(VALUES)
    try:
        OmegaConf.update(conf, ".".join(place), value, merge=False)
        part = make_part(conf, option, KINDS[group])
        check_plain(part.settings, option)
    except WRONG_WORDS as error:
        one_line(error)
        return
    if place[-1] not in (*part.component.unbounded, "preset"):
        assert like(value, at(plain, place)), (group, option, place, value)


BASES = (
    ("protect=eudp", "attack=impress"),
    ("protect=noise", "attack=jpeg", "task=img2img", "~task.pictures"),
    ("protect=photoguard", "task=textual_inversion"),
)


@given(data=st.data())
@draws(60)
def test_any_setting_of_a_cell_is_refused_in_one_line_or_taken_as_given(tiny, data):
    base = composed(tiny, *data.draw(st.sampled_from(BASES)))
    choices = base.hydra.runtime.choices
    plain: Any = OmegaConf.to_container(base)
    del plain["hydra"]
    cfg = copy.deepcopy(base)
    OmegaConf.set_readonly(cfg, False)
    place, value = data.draw(st.sampled_from(list(leaves(plain)))), data.draw(VALUES)
    try:
        OmegaConf.update(cfg, ".".join(place), value, merge=False)
        ready = prepare(cfg, choices=choices)
    except WRONG_WORDS as error:
        one_line(error)
        return
    assert ready.graph.key
    mine = OmegaConf.masked_copy(cfg, [key for key in cfg if key != "hydra"])
    check_plain(OmegaConf.to_container(mine, resolve=True), "configuration")
    assert like(value, at(plain, place)), (place, value)
