"""Characters to which Hydra gives a meaning: what is said of them, and that what is advised sets what was meant."""

from __future__ import annotations

import shlex
import sys

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from udpbench.commands.common import one_line_errors
from udpbench.commands.quoting import advice, quoted

PARSER = OverridesParser.create()
SPECIAL = st.text(st.sampled_from("ab {}[](),:='\"\\$~*?|<>@#;%&!\té一\n-+.01"), max_size=12)


@given(SPECIAL)
def test_what_is_advised_sets_the_text(text):
    (word,) = shlex.split(quoted("data.prompt", text))
    assert PARSER.parse_override(word).value() == text


@given(st.one_of(SPECIAL, SPECIAL.map("data.prompt={}".format)))
def test_every_word_that_hydra_cannot_read_has_its_line(word):
    try:
        PARSER.parse_overrides([word])
    except HydraException:
        assert "\n" not in repr(advice(word))[1:-1]


@pytest.mark.parametrize(
    ("word", "line"),
    [
        ("data.prompt=a {token} dog", "data.prompt: Hydra gives characters of 'a {token} dog' a meaning; quote it for shell and Hydra: 'data.prompt=\"a {token} dog\"'"),
        ("data.path=my dog (2)", "quote it for shell and Hydra: 'data.path=\"my dog (2)\"'"),
        ("data.path=~/pics", "'data.path=\"~/pics\"'"),
        ("data.token=<cat-toy>", "'data.token=\"<cat-toy>\"'"),
        ("data.prompt='a {token} dog's'", "'data.prompt=\"a {token} dog'\"'\"'s\"'"),
        ("arms=[clean,", "'arms=[clean,' ends before its ]; a list with spaces needs quotes: 'arms=[clean, ...]'"),
        ("dog", "'dog' is no KEY=VALUE; if it belongs to the word before, quote the whole value, such as 'data.prompt=\"a {token} dog\"'"),
        ("arms=clean,noise", "arms: 'clean,noise' is several values; say 'arms=[clean,noise]' for a list, 'arms=\"clean,noise\"' for one text, -m for a grid"),
        ("task=null", "a group must be set to one of its options, not to null; python -m udpbench --help lists them"),
    ],
)  # fmt: skip
@pytest.mark.slow
def test_the_line(word, line, capsys):
    from udpbench.commands.plan import main

    with pytest.raises(SystemExit) as end:
        main([word])
    assert end.value.code == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith("error: ")
    assert said.endswith(line)


@pytest.mark.slow
def test_a_yaml_in_another_encoding_is_named(tmp_path, capsys):
    from udpbench.commands.plan import main

    file = tmp_path / "protect" / "mine.yaml"
    file.parent.mkdir()
    file.write_text("_target_: mine.Mine\n", encoding="utf-16")
    with pytest.raises(SystemExit) as end:
        main([f"hydra.searchpath=[file://{tmp_path}]", "protect=mine"])
    assert end.value.code == 2
    assert capsys.readouterr().err == f"error: {file}: is not UTF-8; save it as UTF-8\n"


def test_interpolations_of_no_setting_are_told():
    from udpbench.benchmark.build import make_part
    from udpbench.core.errors import Errors
    from udpbench.interfaces import Dataset

    errors, cfg = Errors(), OmegaConf.create({"data": {"prompt": "a ${token} dog"}})
    line = (
        "data.prompt: Interpolation key 'token' not found; ${NAME} is the setting of that name, and no text can hold ${"
    )
    errors.attempt(lambda: OmegaConf.to_container(cfg, resolve=True))
    errors.attempt(lambda: make_part(cfg.data, "folder", Dataset))
    assert errors == [line, line], "the same words, so that they are told once"


def test_any_error_of_the_input_is_one_line_among_the_others():
    from udpbench.core.errors import Errors

    def failing(error):
        raise error

    errors = Errors()
    for error in (ValueError(), ValueError("a\nb"), OSError(36, "File name too long", "/x"), OSError("tape")):
        errors.attempt(failing, error)
    assert errors == ["ValueError", "a", "/x: File name too long", "tape"]


def test_what_the_terminal_cannot_show_is_replaced(monkeypatch):
    import io

    out = io.TextIOWrapper(io.BytesIO(), encoding="latin-1", write_through=True)
    monkeypatch.setattr(sys, "stdout", out)
    with one_line_errors():
        print("Nîmes ↓")
    assert out.buffer.getvalue().decode("latin-1") == "Nîmes ?\n"
