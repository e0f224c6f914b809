"""Characters to which Hydra gives a meaning: what is said of them, and that what is advised sets what was meant."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import pytest
from hydra._internal.utils import get_args
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf
from omegaconf.errors import ConfigAttributeError

from udpbench.commands import run as command
from udpbench.commands.preparing import composed
from udpbench.commands.quoting import advice, quoted
from udpbench.commands.searchpath import searched, with_folders
from udpbench.commands.telling import no_setting, one_line_errors
from udpbench.core.package import CONF

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
        ("data.prompts=[a (dog, it's]", "quote each text of the list, and all of it: 'data.prompts=[\"a (dog\",\"it'\"'\"'s\"]'"),
        ("hydra.searchpath=[file://~/mine]", "quote each text of the list, and all of it: 'hydra.searchpath=[\"file://~/mine\"]'"),
        ("dog", "'dog' is no KEY=VALUE; if it belongs to the word before, quote the whole value, such as 'data.prompt=\"a {token} dog\"'"),
        ("arms=clean,noise", "arms: 'clean,noise' is several values; say 'arms=[clean,noise]' for a list, 'arms=\"clean,noise\"' for one text, -m for a grid"),
        ("+protect=udp", "protect: has one option; write protect=udp, without the + (in the defaults list of a YAML: - override /protect: udp)"),
        ("metric=fid", "+metric@metrics.extra.NAME=NAME adds one, as +metric@metrics.extra.fid=fid"),
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


def test_a_setting_that_another_option_has_is_told_with_that(tmp_path):
    cfg = OmegaConf.create({"data": {"_target_": "udpbench.data.toyworld.Toyworld", "size": 32}})
    OmegaConf.set_struct(cfg, True)
    with pytest.raises(ConfigAttributeError) as error:
        _ = cfg.data.path
    assert no_setting(error.value) == "no setting 'data.path'; data=folder has it; allowed are size"


def test_folders_of_one_s_own_are_found_however_they_are_written(tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for word in ("hydra.searchpath=[mine]", "+hydra.searchpath=[file://mine]", "hydra.searchpath=[pkg://no.such,mine]"):
        assert searched(["seed=1", word]) == [Path("mine")]
        assert with_folders([word]) == [word]
    for place in ("~/mine", "file://~/mine"):
        assert with_folders([f'hydra.searchpath=["{place}"]']) == [f'hydra.searchpath=["file://{tmp_path}/mine"]']
        assert searched([f'hydra.searchpath=["{place}"]']) == [tmp_path / "mine"]
    with pytest.raises(ValueError, match="hydra.searchpath: there is no folder yours"):
        searched(["hydra.searchpath=[yours]"])


def test_an_option_of_the_name_of_one_of_the_package_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for file in ("attack/mine.yaml", "family/sd/protect/aspl.yaml", "notes/blur.yaml"):
        (tmp_path / "mine" / file).parent.mkdir(parents=True)
        (tmp_path / "mine" / file).write_text("a: 1\n")
    assert searched(["hydra.searchpath=[mine]"]) == [Path("mine")]
    assert searched([f"hydra.searchpath=[{CONF}]"]) == [CONF], "the package's own"
    (tmp_path / "mine" / "attack" / "blur.yaml").write_text("a: 1\n")
    with pytest.raises(
        ValueError, match="^mine/attack/blur.yaml: the package has attack=blur; give yours another name$"
    ):
        composed(["hydra.searchpath=[file://mine]"])
    with pytest.raises(ValueError, match=r"mine/attack/blur.yaml: the package has"):
        command._check_options(["--config-dir", "mine"])


@pytest.mark.parametrize(
    ("words", "ordered"),
    [
        ("protect=udp -m seed=0,1", "protect=udp seed=0,1 -m"),
        ("-m a=1 --config-name X b=2", "a=1 b=2 -m --config-name X"),
        ("-cn=X a=1 --info b=2", "a=1 b=2 -cn=X --info"),
        ("a=1 -i plugins b=2 -c job", "a=1 b=2 -i plugins -c job"),
    ],
)
def test_options_may_stand_anywhere(words, ordered):
    found = command.options_last(words.split())
    assert found == ordered.split()
    assert get_args(found).overrides == [word for word in found if "=" in word and word[0] != "-"]


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
