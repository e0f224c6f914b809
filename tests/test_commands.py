"""The command line beside the cells: unknown words, help, list, score, doctor, completion."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from hydra.errors import HydraException
from PIL import Image

from udpbench import __main__ as entry
from udpbench.benchmark.arms import ARMS
from udpbench.commands import doctor, score
from udpbench.commands import list as listing
from udpbench.commands.telling import lines_of
from udpbench.core.images import write_png
from udpbench.core.package import CONF
from udpbench.interfaces import Log, Metric

pytestmark = pytest.mark.slow  # every test composes a configuration or starts a process

ROOT = Path(__file__).parent.parent
METHODS = ROOT / "docs" / "methods.md"


def shell(*words: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess:
    said = [sys.executable, "-m", "udpbench", *words]
    return subprocess.run(said, env={**os.environ, **(env or {})}, capture_output=True, text=True, check=False)


# -- all of them -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", entry.COMMANDS)
def test_help_imports_no_torch(command):
    code = (
        f"import atexit, sys; atexit.register(lambda: print(*sys.modules)); sys.argv = ['udpbench', '{command}', '--help'];"
        "from udpbench.__main__ import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"python -m udpbench {command}" in done.stdout
    assert not set(done.stdout.splitlines()[-1].split()) & {"torch", "numpy", "rich", "wandb", "pandas"}


def test_a_word_that_is_no_command_gives_the_commands(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["udpbench", "protct", "in", "out"])
    with pytest.raises(SystemExit) as end:
        entry.main()
    assert end.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("error: unknown command 'protct'; say GROUP=OPTION ..., or one of")
    assert all(f"\n  {command} " in said for command in entry.COMMANDS)


def test_ctrl_c_while_libraries_are_loaded_is_one_word(monkeypatch, capsys):
    def interrupted(name):
        raise KeyboardInterrupt

    monkeypatch.setattr(entry, "import_module", interrupted)
    monkeypatch.setattr(sys, "argv", ["udpbench", "list"])
    with pytest.raises(SystemExit) as end:
        entry.main()
    assert end.value.code == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_a_reader_that_has_seen_enough_is_no_error():
    said = [sys.executable, "-m", "udpbench", "list", "protect", "eudp"]
    with subprocess.Popen(said, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141


@pytest.mark.parametrize(
    ("command", "words", "told"),
    [
        ("protect", ["in"], "error: the following arguments are required: OUT; python -m udpbench protect --help"),
        ("score", [], "error: the following arguments are required: GOT, REF; python -m udpbench score --help"),
        ("plan", ["--foo"], "error: unrecognized arguments: --foo; python -m udpbench plan --help"),
        ("bench", ["--loops", "foo"], "error: argument --loops: invalid choice: 'foo'"),
        ("protect", ["-dash", "out", "protect=noise"], "error: unrecognized arguments: -dash (a file or folder -dash is written ./-dash); "),
        ("protect", ["--overwrite", "-dash", "out"], "error: the following arguments are required: OUT (a file or folder -dash is written ./-dash); "),
        ("score", ["--", "a", "-b"], "error: the following arguments are required: REF (a file or folder -b is written ./-b); "),
    ],
)  # fmt: skip
def test_words_that_a_command_does_not_take_are_one_error_line(command, words, told, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["udpbench", command, *words])
    with pytest.raises(SystemExit) as end:
        entry.main()
    assert end.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(told)


def test_ctrl_c_is_status_130_without_a_traceback(monkeypatch, capsys, tmp_path):
    def pressed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(score, "scores", pressed)
    with pytest.raises(SystemExit) as end:
        score.main([str(tmp_path), str(tmp_path)])
    assert end.value.code == 130
    assert capsys.readouterr().err == "interrupted\n"


@pytest.mark.slow
@pytest.mark.parametrize("error", [ValueError(), HydraException(), OSError(), ValueError("\n")])
def test_an_error_without_a_message_is_called_by_its_class(error):
    assert lines_of(error) == [type(error).__name__]


def test_completion_of_overrides_installs_and_answers():
    done = shell("-sc", "install=bash")
    assert done.returncode == 0, done.stderr
    assert "complete -o nospace" in done.stdout
    line = "udpbench protect=eud"
    answered = shell("-sc", "query=bash", env={"COMP_LINE": line, "COMP_POINT": str(len(line))})
    assert "protect=eudp" in answered.stdout.split(), answered.stderr


def test_the_documented_completion_knows_every_command():
    (words,) = [line for line in (ROOT / "docs/commands.md").read_text().splitlines() if "compgen -W" in line]
    assert words.partition("-W ")[2].split('"')[1].split() == list(entry.COMMANDS)


# -- list --------------------------------------------------------------------------------------------------------------


def test_the_tables_of_the_docs_are_up_to_date(tmp_path):
    copy = shutil.copy(METHODS, tmp_path / "methods.md")
    listing.fill(copy)
    assert copy.read_text() == METHODS.read_text(), "say: python -m udpbench list --fill docs/methods.md"


def test_every_option_says_what_it_is():
    for group in (*listing.GROUPS, *listing.OTHERS):
        for name, (text, _) in listing.options(group).items():
            assert text, f"conf/{group}/{name}.yaml needs a comment at its top"


def test_every_protection_that_needs_a_model_says_what_it_costs():
    rows = [
        row.split(" | ") for row in listing.tables().splitlines() if row.startswith(("| Protections", "| `protect="))
    ]
    assert rows[0][2:4] == ["needs", "cost"]
    options_of_groups = [row for row in rows[1:] if " for family " not in row[0]]
    costs = {name: cost for name, _, needs, cost, *_ in options_of_groups if needs != "-"}
    assert len(costs) > 50
    assert not [name for name, cost in costs.items() if cost == "-"]


def test_a_file_without_marks_is_refused(tmp_path):
    file = tmp_path / "x.md"
    file.write_text("nothing")
    with pytest.raises(ValueError, match="has no"):
        listing.fill(file)


def test_without_words_the_groups_with_a_group_its_options(capsys):
    listing.main([])
    shown = capsys.readouterr().out
    for group in listing.ALL:
        (line,) = [line for line in shown.splitlines() if line.startswith(f"{group} ")]
        assert f" {len(listing.options(group))} " in line
    listing.main(["arm"])
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(ARMS)
    listing.main(["attack"])
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("jpeg ")]
    assert "Recompression with Pillow" in line


def test_methods_of_a_folder_of_one_s_own_are_listed(tmp_path, capsys, monkeypatch):
    (tmp_path / "conf" / "protect").mkdir(parents=True)
    yaml = "# Mine.\ndefaults:\n  - noise\n"
    (tmp_path / "conf" / "protect" / "mine.yaml").write_text(yaml, encoding="utf-8")
    search = f"hydra.searchpath=[file://{tmp_path}/conf]"
    listing.main(["protect", search])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == sorted([*listing.options("protect"), "mine"])
    listing.main([search, "protect", "mine"])
    shown = capsys.readouterr().out
    assert shown.startswith("protect=mine: Mine.\n")
    assert "class: udpbench.protect.noise.Noise" in shown


@pytest.mark.parametrize(
    ("yaml", "module", "told"),
    [
        ("_target_: no_such_module.Mine\n", "", "error: mine: no module 'no_such_module' for no_such_module.Mine; put"),
        ("_target_: misspelt.Mine\n", "class Mine(:\n", "error: mine: Error loading 'misspelt.Mine':"),
        ("_target_: stranger.Mine\n", "class Mine: ...\n", "error: mine: stranger.Mine is no Attack; derive it from"),
        ("steps: 3\n", "", "error: mine: _target_ must name a class, given None"),
    ],
)
def test_an_option_of_one_s_own_that_cannot_be_loaded_is_told(yaml, module, told, tmp_path, capsys, monkeypatch):
    (tmp_path / "conf" / "attack").mkdir(parents=True)
    (tmp_path / "conf" / "attack" / "mine.yaml").write_text(yaml)
    for name in ("misspelt", "stranger"):
        (tmp_path / f"{name}.py").write_text(module)
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(SystemExit) as end:
        listing.main(["attack", "mine", f"hydra.searchpath=[{tmp_path}/conf]"])
    assert end.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(told)


def test_groups_of_settings_show_their_files(capsys):
    listing.main(["experiment", "udp"])
    shown = capsys.readouterr().out
    assert shown.startswith("experiment=udp: The claims of UDP")
    assert "defaults:" in shown


def test_with_a_name_everything_there_is_to_know(capsys):
    listing.main(["protect", "eudp"])
    shown = capsys.readouterr().out
    assert "class: udpbench.protect.udp.EUDP (version 4)" in shown
    assert "needs: denoise" in shown
    assert "verified with: " in shown
    assert "  times: snr  # " in shown
    assert "  rounds: " in shown, "of the option that it is made from, too"
    assert "arXiv 2306.01902" in shown


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (
            ["protct"],
            "error: list: no group 'protct'; allowed are protect, attack, task, data, model, budget, metric, features, metrics,",
        ),
        (["protect", "eudq"], "error: list: no protect 'eudq'; did you mean eudp"),
        (["--fill", "/no/such/file"], "error: /no/such/file: No such file or directory"),
    ],
)
def test_what_there_is_not_is_told(words, told, capsys):
    with pytest.raises(SystemExit) as end:
        listing.main(words)
    assert end.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(told)


# -- score -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def folders(tmp_path, pictures) -> tuple[Path, Path]:
    """Four pictures, and the same a little brighter under other suffixes."""
    for i, x in enumerate(pictures):
        write_png(tmp_path / "ref" / f"{i}.png", x)
        write_png(tmp_path / "got" / f"{i}.png", (x + 4 / 255).clamp(0, 1))
        (tmp_path / "got" / f"{i}.png").rename(tmp_path / "got" / f"{i}.webp")
    return tmp_path / "got", tmp_path / "ref"


def test_what_can_be_computed_is_and_the_rest_is_absent_with_its_reason(folders):
    found = score.scores(*folders)
    assert {"psnr", "ssim", "linf", "sim_train_efflite0"} <= set(found["scores"])
    assert found["scores"]["linf"]["value"] == pytest.approx(4)
    assert found["scores"]["linf"]["metric"] == "perturbation_size"
    assert found["scores"]["psnr"]["better_protected"] in ("up", "down")
    assert "at least 50 a side are needed" in found["absent"]["kd_efflite0"]
    assert found["absent"]["judge"] == "judges pictures whose truth is known: only in a cell"


def test_folders_of_other_names_are_no_pairs(folders):
    got, ref = folders
    (got / "0.webp").rename(got / "zero.webp")
    found = score.scores(got, ref)
    assert not {"psnr", "ssim", "linf"} & (set(found["scores"]) | set(found["absent"]))
    assert "must hold the same names" in score.scores(got, ref, ["psnr"])["absent"]["psnr"]


def test_reasons_name_the_folder_that_was_given(folders, pictures):
    got, ref = folders
    write_png(ref / "2.png", torch.nn.functional.pad(pictures[2], (0, 0, 0, 1)))
    reason = score.scores(got, ref, ["ssim"])["absent"]["ssim"]
    assert f" and {ref}" in reason
    assert "/tmp/tmp" not in reason


def test_the_table_the_file_and_the_status(folders, tmp_path, capsys):
    words = [*map(str, folders), "--metrics", "psnr,edit_ssim", "--json", str(tmp_path / "new" / "found.json")]
    assert score.main(words) == 1, "one of those named is absent"
    shown = capsys.readouterr().out
    assert "psnr" in shown
    assert "absent: edit_ssim: compares edits with a clean arm's: only in a cell" in shown
    found = json.loads((tmp_path / "new" / "found.json").read_text())
    assert list(found["scores"]) == ["psnr"]
    assert score.main([*map(str, folders), "--metrics", "psnr"]) == 0


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--metrics", "psnrr"], "error: metrics: unknown psnrr; allowed are "),
        ([], "error: images: there is no folder"),
        (["protect=noise"], "error: score: protect=noise means nothing here; allowed are settings of runtime"),
        (["hydra.searchpath=[file:///no/such]"], "error: hydra.searchpath: there is no folder /no/such"),
    ],
)
def test_wrong_folders_and_names_are_told(words, told, folders, capsys):
    got, ref = folders
    if not words:
        shutil.rmtree(ref)
    with pytest.raises(SystemExit) as end:
        score.main([str(got), str(ref), *words])
    assert end.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(told)


def test_a_metric_of_one_s_own_scores_folders_too(folders, tmp_path, capsys):
    own = tmp_path / "conf" / "metric" / "mine.yaml"
    own.parent.mkdir(parents=True)
    own.write_text("# As ssim.\n" + (CONF / "metric" / "ssim.yaml").read_text())
    words = ["--metrics", "mine", f"hydra.searchpath=[file://{tmp_path / 'conf'}]"]
    assert score.main([*map(str, folders), *words]) == 0
    assert "ssim" in capsys.readouterr().out


def test_pictures_with_more_pixels_than_allowed_are_scored_once_they_are(folders, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)
    assert "raise runtime.max_pixels" in score.scores(*folders, ["psnr"], ["runtime.max_pixels=200"])["absent"]["psnr"]
    assert "psnr" in score.scores(*folders, ["psnr"], ["runtime.max_pixels=300"])["scores"]


def test_a_metric_that_fails_without_a_word_is_absent_and_counted_when_it_is_done(folders, monkeypatch):
    seen = []

    class Watch(Log):
        @contextmanager
        def bar(self, title, total, unit="it"):
            yield lambda n: seen.append(title)

    def fails(metric, got, ref, run):
        seen.append("work")
        raise ValueError

    monkeypatch.setattr(score, "_computed", fails)
    assert score.scores(*folders, ["psnr"], log=Watch())["absent"] == {"psnr": "ValueError"}
    assert seen == ["work", "scores"]


# -- doctor ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def examined(tmp_path, monkeypatch, capsys):
    """Words -> status and what was shown; no account, no weights but the embedded ones."""
    for name in ("CONFIG", "CACHE", "DATA"):
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(tmp_path / "home"))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))

    def run(*words: str) -> tuple[int, str]:
        status = doctor.main([f"runtime.out={tmp_path / 'out'}", *words])
        return status, capsys.readouterr().out

    return run


def test_a_machine_on_which_the_default_cell_runs(examined, tmp_path):
    status, shown = examined()
    assert status == 0, shown
    assert shown.rstrip().endswith("this cell can run")
    rows = {line[2:24].strip(): line[25:] for line in shown.splitlines() if line.startswith("  ")}
    assert rows["python"].startswith(f"{sys.version_info.major}.{sys.version_info.minor}")
    assert rows["torch"] == torch.__version__.partition("+")[0]
    assert rows["micro"] == "embedded"
    assert rows["local"] == "yours: give its path"
    assert rows["sd15"].startswith("missing; `hf download stable-diffusion-v1-5/stable-diffusion-v1-5")
    assert rows["locks"] == "a second process waits, as it should"
    assert rows["wandb"].startswith("not logged in")
    assert "vgg16-397923af.pth" in shown, "what metrics lack, and where it belongs"
    assert "Traceback" not in shown
    assert not (tmp_path / "out").exists()


def test_what_keeps_a_cell_from_running_is_told(examined, monkeypatch):
    monkeypatch.setattr(doctor, "SECTIONS", {title: doctor.SECTIONS[title] for title in ("Store", "Cell")})
    status, shown = examined("model@victim=local", "victim.path=/no/such/folder")
    assert status == 1
    assert "this cell cannot run:" in shown
    assert "model local: no folder '/no/such/folder'" in shown.split("cannot run:")[1]
    monkeypatch.setattr(doctor, "TRIES_LOCK", "")  # a second process that gets the lock
    status, shown = examined("model@victim=sd15", "family=micro")
    assert status == 1
    assert "model sd15: missing; `hf download" in shown.split("cannot run:")[1]
    assert "locks: this file system does not lock" in shown.split("cannot run:")[1]
    monkeypatch.setattr(shutil, "disk_usage", lambda path: (_ for _ in ()).throw(OSError("the disk is gone")))
    status, shown = examined()
    assert status == 1
    assert "store: OSError: the disk is gone" in shown.split("cannot run:")[1]


def test_doctor_counts_no_option_that_only_its_user_can_complete(monkeypatch):
    class Lacks(Metric):
        def check(self):
            raise ValueError("a file is missing")

    options = {"task": [("a", Metric()), ("b", f"{doctor.YOURS} path")], "metric": [("c", Lacks())]}
    monkeypatch.setattr(doctor, "_built", lambda group, kind: options.get(group, []))
    assert dict(doctor._others(None)) == {
        "metric=c": "a file is missing",
        "nothing is missing for": "the other 1 of 2 options that need no setting of yours",
    }


def test_doctor_names_models_that_a_method_holds_and_that_are_missing(examined, monkeypatch):
    monkeypatch.setattr(doctor, "SECTIONS", {"Cell": doctor.SECTIONS["Cell"]})
    status, shown = examined("protect=ensemble", "model@protect.further.other=sd15", "family=micro")
    assert status == 1
    assert "model sd15: missing; `hf download" in shown.split("cannot run:")[1]


def test_a_list_that_names_no_metric_is_an_error(tmp_path, capsys):
    for given in ("", ","):
        with pytest.raises(SystemExit) as end:
            score.main([str(tmp_path), str(tmp_path), f"--metrics={given}"])
        assert end.value.code == 2
        assert f"--metrics {given!r} names none; give some" in capsys.readouterr().err
