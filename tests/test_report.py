"""The table of a cell and the report of a folder: numbers in the right places, honest words, no outside resource."""

from __future__ import annotations

import csv
import io
import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from factory import LABEL, SCORES, as_text, make_arm, make_record, shifted
from hypothesis import given
from hypothesis import strategies as st
from pandas import DataFrame

from udpbench.commands.report import main
from udpbench.results import flags
from udpbench.results import table as T
from udpbench.results import words as W
from udpbench.results.intervals import Interval, Recovery, paired_interval
from udpbench.results.record import read_files, write
from udpbench.results.report.arms import arm_means, curve_points, numbers
from udpbench.results.report.attacked import attack_costs
from udpbench.results.report.boards import board_frame, boards, leaderboard
from udpbench.results.report.choose import choose
from udpbench.results.report.compare import comparisons, transfer, verdict
from udpbench.results.report.render import Section, headers, latex_text, markdown_table, render, table
from udpbench.results.report.standings import Standings
from udpbench.results.report.write import _missing, flag_section
from udpbench.results.schema import Record
from udpbench.results.stats import Summary


@pytest.mark.parametrize(
    ("x", "text"),
    [(1234.0, "1230"), (9.999, "10.0"), (0.05678, "0.0568"), (0.0, "0"), (-3.14159, "-3.14"), (99.96, "100"),
     (1e-9, "1.00e-09"), (123456.0, "123000"), (0.5, "0.500"), (1e12, "1.00e+12")],
)  # fmt: skip
def test_three_significant_digits(x: float, text: str) -> None:
    assert W.significant(x) == text


def test_whole_percents_have_no_negative_zero() -> None:
    assert [W.percent(x) for x in (-0.004, 0.0, 0.456, -0.456)] == ["0 %", "0 %", "46 %", "-46 %"]


@given(st.floats(-1e15, 1e15, allow_subnormal=False))
def test_significant_is_within_half_a_unit_of_the_third_digit(x: float) -> None:
    assert float(W.significant(x)) == pytest.approx(x, rel=0.00501, abs=1e-300)
    assert float(W.significant(x, signed=True)) == float(W.significant(x))


@pytest.mark.parametrize("mean", [3.3e-17, -3.3e-17])
def test_a_mean_that_is_zero_but_for_rounding_is_shown_as_zero(mean: float) -> None:
    assert W.interval_text(Interval(mean, -0.07, 0.07, 5, 5, "t")) == "0 [-0.0700, +0.0700]"


@pytest.mark.parametrize(
    ("found", "texts"),
    [((0.0014, -1.75, 1.76), ["+0.00", "-1.75", "+1.76"]), ((-0.004, 9.999), ["-0.0", "+10.0"]),
     ((27.7, 14.6, 44.3), ["+27.7", "+14.6", "+44.3"]), ((0.0, 0.5), ["0", "+0.500"]), ((0.0, 0.0), ["0", "0"]),
     ((1234.0, 0.5), ["+1230", "+0.500"]), ((1e-9,), ["+1.00e-09"])],
)  # fmt: skip
def test_numbers_read_together_share_their_last_place(found: tuple[float, ...], texts: list[str]) -> None:
    assert W.together(*found) == texts


def test_a_scale_says_how_far_numbers_are_written_out() -> None:
    assert W.together(0.00617, -0.279, scale=31.8) == ["+0.0", "-0.3"]


def test_interval_text() -> None:
    assert W.interval_text(Interval(0.123, 0.05, 0.19, 3, 3, "t")) == "+0.123 [+0.050, +0.190]"
    assert W.interval_text(Interval(-2.0, None, None, 1, 1, "none")) == "-2.00 (1 victim)"
    assert W.interval_text(Interval(-2.98e-8, None, None, 1, 1, "none")) == "0 (1 victim)"
    assert W.interval_text(None) == "-"
    alike = paired_interval({(str(s), 0): 4.0 for s in range(4)}, np.random.default_rng(0))
    assert W.interval_text(alike) == "+4.00 (victims do not differ)", "an interval of no width would look certain"


def test_seeds_of_one_subject_claim_nothing_of_subjects() -> None:
    """However alike they are: their interval is the narrowest of all. Trainings on a data set that has no subjects
    speak for that data set."""

    def boarded(subjects: Sequence[str], seeds: int = 3) -> tuple[Any, DataFrame]:
        made = [
            make_record(shifted(k, protected=0.1 * k, purified=0.1 * k), subject=s, seed=k, protect=p)
            for s in subjects
            for k in range(seeds)
            for p in ("a", "b")
        ]
        for record in made[::2]:
            record["arms"]["protected"]["metrics"]["distance"]["value"] += 5.0 + 0.1 * record["cell"]["seed"]
        (board,) = boards(made)
        return leaderboard(board).tables[0].loc["a"].iloc[0], comparisons(board).tables[0].loc["a - b"].iloc[0]

    one, compared = boarded(["7"])
    assert one["distance ↑ effect"].startswith("+35.2 [")
    assert one["distance ↑ effect"].endswith("] †")
    assert one["distance ↑ recovery"] == "n/a: one subject stands for no others"
    assert (one["victims"], compared["victims"]) == ("3 (1 subject)", "3 (1 subject)")
    assert compared["verdict"] == "one subject: nothing claimed"
    none, compared = boarded([""])
    assert none["distance ↑ effect"] == one["distance ↑ effect"].removesuffix(" †")
    assert "%" in none["distance ↑ recovery"]
    assert (none["victims"], compared["verdict"]) == ("3", "a protects better")
    draws, _ = boarded(["", "draw_1", "draw_2"], 2)
    assert draws["victims"] == "6"
    assert boarded(["7"], 1)[0]["victims"] == "1"


def test_residuals_are_marked_where_nothing_may_be_claimed_of_them() -> None:
    made = [
        make_record(shifted(k, protected=s, purified=-20.0 * (s % 2)), subject=str(s), seed=k)
        for s in range(4)
        for k in range(2)
    ]
    (board,) = boards(made)
    row = leaderboard(board).tables[0].iloc[0]
    assert not row["distance ↑ effect"].endswith("†")
    assert row["distance ↑ residual"].startswith("0 [-")
    assert row["distance ↑ residual"].endswith("] †")
    assert any(line.startswith("†") for line in leaderboard(board).text)


def test_table_shows_arms_in_order_then_effect_and_residual() -> None:
    text = as_text(make_record())
    lines = text.splitlines()
    first = [line.split()[0] for line in lines if line.strip()]
    at = [first.index(a) for a in (*SCORES, "effect", "residual", "recovery")]
    assert at == sorted(at)
    row: dict[str, list[str]] = {}
    for line in filter(str.strip, lines):
        row.setdefault(line.split()[0], line.split()[1:])
    assert row["protected"] == ["70.0", "0.400"]
    assert row["effect"] == ["+30.0", "+0.400"]
    assert row["residual"] == ["+10.0", "+0.150"]
    assert row["recovery"] == ["n/a", "n/a"]
    assert "distance* ↑" in text
    assert "similarity ↓" in text
    assert "absent: fid: needs 1000 pictures a side, there are 256" in text
    assert "recovery n/a: one victim has no interval" in text
    assert "! no seed SD" in text
    assert "white box, prompt unknown" in " ".join(text.split())
    assert "eudp (linf 8/255) / impress / dreambooth on toyworld 0" in text
    assert "\x1b" not in text


def test_table_with_many_metrics_fits_into_100_columns() -> None:
    made = make_record()
    for arm in made["arms"].values():
        for i in range(13):
            name = f"a_rather_long_metric_name_number_{i}"
            arm["metrics"][name] = {"value": 1234.5678 * i, "n": 256, "better_protected": "down", "primary": i == 7}
    text = as_text(made)
    assert max(map(len, text.splitlines())) <= 100
    assert text.count("clean_attacked") == 3  # 15 metrics in blocks of six
    header = text[: text.index("pretrained")]
    assert "distance* ↑" in header
    assert "7* ↓" in header  # the other primary metric stands in the first block, too
    assert "similarity" not in header
    assert "…" not in text


def test_table_of_a_failed_cell_is_its_error() -> None:
    text = as_text(make_record(error="Traceback ...\n  File\nValueError: protect eudp: eps must be > 0\n\n"))
    assert "failed: ValueError: protect eudp: eps must be > 0" in text
    assert "effect" not in text


def curve(by: float) -> dict[str, dict[str, float]]:
    return {"0.5": {"distance": 50.0 + by}, "1": {"distance": 40.0 + by}, "2": {"distance": 44.0 + by}}


def test_thiefs_best_is_chosen_on_validation_and_reported_on_references() -> None:
    made = make_record()
    made["arms"]["clean"]["curve"] = curve(0)
    assert T.thiefs_best(made, "clean") == {"distance": ("1", 40.0)}  # better protected: up; the thief wants it low
    assert "flatters the thief" in as_text(made)
    validation = {"0.5": {"distance": 9.0}, "1": {"distance": 8.0}, "2": {"distance": 7.0}}
    made["arms"]["clean"]["curve_validation"] = validation
    assert T.thiefs_best(made, "clean") == {"distance": ("2", 44.0)}
    assert "flatters the thief" not in as_text(made)
    assert "44.0 @2x" in as_text(made)
    assert T.thiefs_best(made, "protected") == {}
    # What has no validation score (a judge's) is read where the thief stopped, though another stop would flatter it.
    for stop, value in (("0.5", 0.9), ("1", 0.8), ("2", 0.3)):
        made["arms"]["clean"]["curve"][stop]["similarity"] = value
    assert T.thiefs_best(made, "clean") == {"distance": ("2", 44.0), "similarity": ("2", 0.3)}


@pytest.mark.parametrize(
    ("same", "word"),
    [((1, 1, 1), "white box"), ((1, 1, 0), "white box, prompt unknown"), ((1, 0, 1), "grey box"),
     ((0, 0, 1), "black box"), ((0, 0, 0), "black box, prompt unknown")],
)  # fmt: skip
def test_box(same: tuple[int, int, int], word: str) -> None:
    made = make_record()
    made["knowledge"] = dict(zip(("same_vae", "same_unet", "same_prompt"), map(bool, same), strict=True))
    assert W.box_of(made) == word


@pytest.mark.parametrize("reseeded", [True, False])
def test_edits_must_beat_noise(reseeded: bool) -> None:
    """Edits of clean pictures are compared with themselves and do not spread: their floor is what noise does."""
    found = [
        make_record(
            shifted(0.0, noise=1.0 * s, protected=0.1 * s), subject=str(s), task="img2img", facts={"edits": True}
        )
        for s in range(4)
    ]
    for record in found:
        if reseeded:
            record["arms"]["reseeded"] = make_arm(90.0, 0.2)
        for arm in record["arms"].values():
            arm["metrics"] = {f"edit_{name}": score for name, score in arm["metrics"].items()}
    (board,) = boards(found)
    assert board.floors["edit_distance"] == pytest.approx(2.0 + 1.5)  # noise is 2 above clean, and 0 to 3 more here
    names = [row.protect for row in board.rows if row.control]
    again = ["reseeded (control)"] if reseeded else []
    assert names == ["noise (control)", *again, "clean_attacked of impress (control)"]
    (eudp,) = [row for row in board.rows if not row.control]
    assert eudp.summaries["edit_distance"].claimed
    residual = eudp.summaries["edit_distance"].residual
    assert residual is not None
    assert residual.mean == pytest.approx(55.0 - 40.0)  # purified - clean: distances to clean do not subtract
    assert "no seed SD" not in as_text(found[0])
    assert next(r for r in as_text(found[0]).splitlines() if r.startswith(" residual")).split()[1] == "+15.0"


def test_the_noise_floor_and_the_noise_line_weigh_subjects_alike() -> None:
    """A subject that was run with more seeds weighs no more, as in effects."""
    made = [
        make_record(shifted(0.0, noise=10.0 * (s == 0)), subject=str(s), seed=k, facts={"edits": True})
        for s, seeds in enumerate((3, 1))
        for k in range(seeds)
    ]
    for record in made:
        record["perturbation"]["noise"]["rms"] = 8.0 if record["cell"]["subject"] == "0" else 4.0
    (board,) = boards(made)
    assert board.floors["distance"] == pytest.approx((12.0 + 2.0) / 2)
    found = Standings(board)
    assert found.noise_line("distance")[1:] == [pytest.approx((6.0, 7.0))]
    (noise,) = [row for row in found.rows if row.name.startswith("noise")]
    assert (noise.changes["rms"], noise.left["distance"]["none"].mean) == pytest.approx((6.0, 7.0)), "on the line"


def test_noise_as_strong_as_a_protection_is_a_point_of_the_noise_line_for_each() -> None:
    made = []
    for protect, (rms, distance) in {"eudp": (5.0, 48.0), "glaze": (3.0, 44.0)}.items():
        record = make_record({**SCORES, "noise_rms": (distance, 0.7)}, protect=protect, attack="none")
        record["perturbation"]["noise_rms"] = {"rms": rms}
        made.append(record)
    (board,) = boards(made)
    assert Standings(board).noise_line("distance") == [(0.0, 0.0), (3.0, 4.0), (5.0, 8.0), (8.0, 2.0)]


# -- a folder of records -----------------------------------------------------------------------------------------------


def world(subjects: int = 4, seeds: int = 2) -> list[Record]:
    """Two protections by two attacks, all victims; seeds differ by 1; eudp protects 8 better than udp."""
    draws = np.random.default_rng(0)
    records = []
    for s in range(subjects):
        for k in range(seeds):
            jitter = float(draws.normal(0, 0.3))
            for protect, more in (("eudp", 8.0), ("udp", 0.0)):
                for attack, back in (("impress", 0.0), ("jpeg", 12.0)):
                    scores = shifted(s + k, protected=more + jitter + 0.001 * (s - 1.5) * more, purified=back + jitter)
                    cell = {"protect": protect, "attack": attack, "subject": str(s), "seed": k}
                    records.append(make_record(scores, **cell))
    return records


def save(folder: Path, records: list[Record]) -> Path:
    for i, made in enumerate(records):
        write(folder / f"{i:03}.json", made)
    return folder


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("records")
    records = world()
    for arm in ("clean", "protected"):
        records[0]["arms"][arm]["curve"] = curve(0)
    records[1]["flags"] = ["the moon was full"]  # what a record says of itself is computed anew
    records[1]["provenance"]["dirty"] = True
    records += [make_record(label="SD 1.5", data="faces")]
    records += [make_record(protect="mist", attack="jpeg", error="Traceback\nRuntimeError: out of memory | <b>\n")]
    save(folder, records)
    assert main([str(folder), "--title", "A & B"]) == 0
    return folder / "report"


def test_all_files_are_there(report: Path) -> None:
    names = sorted(p.relative_to(report).as_posix() for p in report.rglob("*") if p.is_file())
    assert names == [
        "figures.csv", "figures/board1_distance-visibility.svg", "figures/board1_distance.svg",
        "figures/board2_distance-cost.svg", "figures/board2_distance-curve.svg",
        "figures/board2_distance-visibility.svg", "figures/board2_distance.svg",
        "leaderboard.csv", "records.csv", "report.html", "report.md", "report.tex",
    ]  # fmt: skip


def test_leaderboard_numbers(report: Path) -> None:
    rows = list(csv.DictReader((report / "leaderboard.csv").open()))
    (row,) = [
        r for r in rows if (r["label"], r["protect"], r["attack"], r["metric"]) == (LABEL, "eudp", "jpeg", "distance")
    ]
    effect, residual, recovery = (float(row[k]) for k in ("effect", "residual", "recovery"))
    assert effect == pytest.approx(38, abs=0.3)
    assert residual == pytest.approx(22, abs=0.3)
    assert recovery == pytest.approx(1 - residual / effect)
    assert float(row["effect_low"]) < effect < float(row["effect_high"])
    assert float(row["floor"]) == pytest.approx(0.5**0.5)  # pairs (x, x + 1)
    assert row["victims"] == "8"
    (other,) = [r for r in rows if r["label"] == "SD 1.5" and r["metric"] == "distance" and r["control"] == "False"]
    assert (other["effect_low"], other["recovery"], other["recovery_reason"]) == ("", "", "n/a: no floor")


def test_ranked_by_effect_with_controls_last_and_labels_apart(report: Path) -> None:
    text = (report / "report.md").read_text()
    assert text.index(f"## {'SD 1.5'}") < text.index(f"## {LABEL}")
    board = [
        line.strip("| ").split(" | ")
        for line in text[text.index(f"## {LABEL}") :].split("#### Arms")[0].splitlines()
        if "|" in line
    ]
    assert board[0][-2:] == ["protect (s)", "protect (MB)"]
    assert [r[-2] for r in board[2:]] == ["24.0"] * 4 + ["-"]
    assert [(r[0], r[1]) for r in board[2:]] == [
        ("eudp", "impress"), ("eudp", "jpeg"), ("udp", "impress"), ("udp", "jpeg"), ("noise (control)", "none"),
    ]  # fmt: skip
    assert [re.match(r"\d+ %", r[6])[0] for r in board[2:6]] == ["73 %", "42 %", "66 %", "27 %"]
    sd = text[text.index("## SD 1.5") : text.index(f"## {LABEL}")]
    assert "no floor: nothing claimed" in sd
    assert "†" in sd
    assert "udp" not in sd.replace("eudp", "")


def test_comparisons_flags_failures_and_environment_are_told(report: Path) -> None:
    text = (report / "report.md").read_text()
    (line,) = [x for x in text.splitlines() if x.startswith("| eudp - udp | protected |")]
    assert "eudp protects better" in line
    assert "+8.00" in line
    assert "| dirty tree: not as in the recorded commit: files that the record does not name | 0/0 |" in text
    assert "the moon was full" not in text
    assert "few subjects" in text  # the single SD record
    assert not [x for x in text.splitlines() if "no seed SD" in x and LABEL in x]  # only the SD board has none
    assert "RuntimeError: out of memory \\| \\<b>" in text
    assert "0123456789ab" in text
    assert "torch 2.8.0" in text
    assert "1x steps" in text


def test_latex_is_balanced_and_escaped(report: Path) -> None:
    text = (report / "report.tex").read_text()
    assert text.count(r"\begin{table}") == text.count(r"\end{table}") >= 3
    for block in re.findall(r"\\begin\{tabular\}\{(\w+)\}(.*?)\\end\{tabular\}", text, re.S):
        for row in re.findall(r"^(?!\\)(.*) \\\\$", block[1], re.M):
            assert len(re.findall(r"(?<!\\)&", row)) == len(block[0]) - 1
    assert not re.search(r"(?<!\\)%", text.split("\n", 1)[1])
    assert latex_text("50 % & a_b -> c") == r"50 \% \& a\_b $\to$ c"


def test_the_same_records_give_the_same_bytes(tmp_path: Path) -> None:
    folder = save(tmp_path / "r", world(3, 2))
    for out in ("a", "b"):
        assert main([str(folder), "--out", str(tmp_path / out), "--title", "t"]) == 0
    a, b = ({p.relative_to(tmp_path / out): p.read_bytes() for p in (tmp_path / out).rglob("*.*")} for out in "ab")
    assert a == b
    assert len(a) > 5


def test_a_hundred_records_take_under_three_seconds(tmp_path: Path) -> None:
    folder = save(tmp_path, world(5, 5))
    start = time.process_time()
    assert main([str(folder), "--no-plots"]) == 0
    assert time.process_time() - start < 3
    assert not (folder / "report" / "figures").exists()


@pytest.mark.parametrize(("arguments", "said"), [(["nowhere"], "is not a folder"), (["."], "no record JSON under")])
def test_wrong_folders_are_one_line_and_status_2(
    arguments: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom udpbench.commands.report import main\ntry:\n    main(['--help'])\nexcept SystemExit as e:\n"
        "    print(e.code, sorted({'torch', 'pandas', 'numpy', 'scipy', 'matplotlib', 'rich', 'jinja2'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("0 []")
    assert "--title" in done.stdout


# -- the parts ---------------------------------------------------------------------------------------------------------


def rows_of(made: DataFrame) -> list[tuple[str, ...]]:
    """The rows of a table, index first."""
    return list(made.reset_index().itertuples(index=False, name=None))


def files(*records: Record) -> dict[Path, Record]:
    return {Path(f"{i}.json"): r for i, r in enumerate(records)}


def test_variants_are_told_apart_by_the_settings_that_differ() -> None:
    made = [make_record(settings={"protect": {"steps": n, "lr": 1}}) for n in (50, 100)]
    other = make_record(attack="jpeg", settings={"protect": {"steps": 50, "lr": 1}})
    chosen = choose(files(*made, other))
    assert [r["cell"]["protect"] for r in chosen.ok] == ["eudp (steps=50)", "eudp (steps=100)", "eudp (steps=50)"]
    assert made[0]["cell"]["protect"] == "eudp"  # what was handed in stays as it is


def test_variants_are_named_by_as_few_settings_as_tell_them_apart() -> None:
    settings = [{"a": 1, "b": 1, "gradient_checkpointing": True}, {"a": 2, "b": 2}, {"a": 2, "b": 2, "c": 3}]
    made = [make_record(settings={"protect": mine}) for mine in settings]
    names = [r["cell"]["protect"] for r in choose(files(*made)).ok]
    assert names == ["eudp (a=1)", "eudp (a=2)", "eudp (a=2, c=3)"]


def test_folders_that_an_attack_was_given_for_each_protection_are_no_variants() -> None:
    def attacks(*cells: tuple[str, str]) -> list[str]:
        made = [make_record(protect=p, attack="bridge", settings={"attack": {"protected": f}}) for p, f in cells]
        return [r["cell"]["attack"] for r in choose(files(*made)).ok]

    assert attacks(("eudp", "leak/eudp"), ("aspl", "leak/aspl")) == ["bridge", "bridge"]
    both = ("eudp", "leak/eudp"), ("eudp", "leak/more"), ("aspl", "leak/aspl")
    assert attacks(*both) == [f"bridge (protected={folder})" for _, folder in both]


def test_settings_that_came_later_and_places_of_equal_weights_are_no_variants() -> None:
    pap = {"_target_": "udpbench.protect.pap.PAP", "rounds": 10}
    made = [make_record(protect="pap", subject=str(i), settings={"protect": pap | more}) for i, more in
            enumerate(({}, {"pictures": 1}, {"pictures": 4}))]  # fmt: skip
    assert [r["cell"]["protect"] for r in choose(files(*made)).ok] == [
        "pap (pictures=1)",
        "pap (pictures=1)",
        "pap (pictures=4)",
    ]
    foreign = [make_record(settings={"protect": {"_target_": "os.path.join"} | more}) for more in ({}, {"p": 1})]
    assert len({r["cell"]["protect"] for r in choose(files(*foreign)).ok}) == 2, "of no component nothing is known"
    machines = [
        make_record(victim="mine", subject=str(i), settings={"victim": {"path": f"/home/{i}/sd"}}) for i in range(3)
    ]
    for record, digest in zip(machines, "aab"):
        record["provenance"]["parts"] = {"victim": {"version": 1, "identity": {"unet": digest}}}
    names = [r["cell"]["victim"] for r in choose(files(*machines)).ok]
    assert names == ["mine (path=/home/0/sd)", "mine (path=/home/0/sd)", "mine (path=/home/2/sd)"]


def test_data_models_and_what_is_matched_are_told_apart_but_not_subjects() -> None:
    def named(key: str, *settings: dict) -> list[str]:
        made = [make_record(subject=str(i), settings=s) for i, s in enumerate(settings)]
        return [r["cell"][key] for r in choose(files(*made)).ok]

    assert named("data", {"data": {"train": 6, "subject": 1}}, {"data": {"train": 12, "subject": 2}}) == [
        "toyworld (train=6)", "toyworld (train=12)",
    ]  # fmt: skip
    assert (
        named("data", *({"data": {"path": p, "prompt": p, "reference": p + "2", "heldout": p + "3"}} for p in "ab"))
        == ["toyworld"] * 2
    )
    assert named("data", *({"data": {"train": 6, "draw": draw}} for draw in (2, 3))) == ["toyworld"] * 2
    assert named("victim", {"model": {"path": "a"}}, {"model": {"path": "b"}}) == ["micro (path=a)", "micro (path=b)"]
    assert (
        named("purifier", {"model": {"path": "a"}}, {"model": {"path": "a"}, "purifier": {"path": "b"}})[1]
        == "micro (path=b)"
    )
    control = {"_target_": "NoiseRms"}
    likes = [{"protect": control, "noise_rms": control, "like": {"eps": n}} for n in (4, 8)]
    assert named("protect", *likes) == ["eudp (like.eps=4)", "eudp (like.eps=8)"]
    assert named("protect", *({**x, "noise_rms": {}} for x in likes)) == ["eudp"] * 2, "it matches nothing"


def test_cells_measured_otherwise_are_told_apart_and_further_metrics_are_no_difference() -> None:
    def measured(size: int | None, kind: str = "sign", **cell: Any) -> Record:
        bundle = {"kd": {"features": {"size": size}}} if size else {}
        return make_record(settings={"noise": {"kind": kind}, "metrics": {"bundle": bundle, "extra": None}}, **cell)

    def tasks(*records: Record) -> list[str]:
        return [r["cell"]["task"] for r in choose(files(*records)).ok]

    assert tasks(measured(32), measured(48, subject="1")) == [
        "dreambooth (metrics.kd.features.size=32)", "dreambooth (metrics.kd.features.size=48)",
    ]  # fmt: skip
    assert tasks(measured(32), measured(None, subject="1")) == ["dreambooth"] * 2
    assert tasks(measured(32), measured(32, "uniform", subject="1"))[1] == "dreambooth (noise.kind=uniform)"


def test_a_cell_that_was_run_with_other_arms_has_them_all() -> None:
    part = make_record({arm: SCORES[arm] for arm in ("clean", "protected")})
    rest = make_record({arm: SCORES[arm] for arm in ("clean", "noise", "upper_bound")})
    chosen = choose(files(part, rest))
    assert [set(r["arms"]) for r in chosen.ok] == [{"clean", "protected", "noise", "upper_bound"}]
    assert chosen.repeated == 1
    rest["arms"]["clean"]["key"] = "beef"
    with pytest.raises(ValueError, match="the same cell with different keys"):
        choose(files(part, rest))


def test_a_cell_that_was_measured_twice_has_every_score_in_either_order() -> None:
    full, fewer = make_record(), make_record()
    for part in fewer["arms"].values():
        part["absent"]["similarity"] = "not asked for"
        del part["metrics"]["similarity"]
        part["metrics"]["fid"], part["absent"] = {**part["metrics"]["distance"]}, {"similarity": "not asked for"}
    for two in ((full, fewer), (fewer, full)):
        (found,) = choose(files(*two)).ok
        for part in found["arms"].values():
            assert set(part["metrics"]) == {"distance", "similarity", "fid"}
            assert part["absent"] == {}


def test_two_results_of_one_cell_are_named_with_their_files(tmp_path: Path) -> None:
    """As where two people ran the same cell: nothing averages them, and nothing hides that there are two."""
    one, other = make_record(), make_record()
    other["arms"]["protected"]["metrics"]["distance"]["value"] = 222.0
    other["arms"]["clean"]["metrics"]["distance"]["value"] *= 1 + 1e-9  # as another order of a sum
    for lab, record in (("a", one), ("b", other)):
        write(tmp_path / "records" / lab / "r.json", record)
    paths = [tmp_path / "records" / lab / "r.json" for lab in "ab"]
    (found,) = choose(read_files(tmp_path / "records")).disagree
    assert (found.arm, found.metric, found.values, found.files) == ("protected", "distance", (70.0, 222.0), (*paths,))
    assert main([str(tmp_path / "records"), "--no-plots"]) == 0
    page = (tmp_path / "records" / "report" / "report.html").read_text()
    assert page.index("Cells with two results (1)") < page.index('class="leaderboard"')
    assert "distance: 70, 222" in page
    assert ", ".join(map(str, paths)) in page
    assert choose(files(one, make_record())).disagree == []


def test_a_record_whose_score_goes_the_other_way_is_named_and_left_out(tmp_path: Path, capsys) -> None:
    odd = make_record(subject="3")
    for part in odd["arms"].values():
        part["metrics"]["distance"]["better_protected"] = "down"
    folder = save(tmp_path, [*(make_record(subject=str(s)) for s in range(3)), odd])
    assert main([str(folder), "--no-plots"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    told = "metric distance: better_protected is down, in 3 other records up"
    assert line == f"error: {folder / '003.json'}: {told}; it is left out"
    assert "3 finished cells" in (folder / "report" / "report.md").read_text()
    (tmp_path / "text.md").write_text("<!-- table arms records=. -->\n<!-- end -->\n")
    assert main(["--fill", str(tmp_path / "text.md")]) == 2
    assert f"{folder / '003.json'}: {told}" in capsys.readouterr().err
    for i in (1, 2):
        (folder / f"00{i}.json").unlink()
    assert main([str(folder), "--no-plots"]) == 2
    told = f"is up in {folder / '000.json'} and down in {folder / '003.json'}; take one of them away"
    assert told in capsys.readouterr().err, "which of two is right, nobody knows"


def test_a_record_whose_arms_disagree_on_the_direction_of_a_score_is_broken(tmp_path: Path) -> None:
    odd = make_record()
    odd["arms"]["clean"]["metrics"]["distance"]["better_protected"] = "down"
    with pytest.raises(ValueError, match="metric distance: better_protected is up in one arm and down in another"):
        write(tmp_path / "r.json", odd)
    assert not (tmp_path / "r.json").exists()


def test_a_score_that_the_first_record_lacks_is_taken_from_the_next() -> None:
    first, second = make_record(protect="a"), make_record(protect="b")
    first["arms"]["clean"]["absent"]["similarity"] = "why"
    del first["arms"]["clean"]["metrics"]["similarity"]
    (board,) = boards([first, second])
    clean = numbers(board).query("arm == 'clean' and metric == 'similarity' and kind == 'score'")
    assert list(clean["value"]) == [0.8]
    together = [name for name, _ in groupby(numbers(board)["name"])]
    assert len(together) == len(set(together)), "arms stay together"


def test_numbers_say_of_how_many_victims_they_are_where_some_lack_the_score() -> None:
    records = [make_record(shifted(s, protected=0.5 * s), subject=str(s)) for s in range(4)]
    for record in records[2:]:
        part = record["arms"]["protected"]
        part["absent"]["distance"] = "why"
        del part["metrics"]["distance"]
    (board,) = boards(records)
    row = arm_means(board).tables[0].loc["protected: eudp"]
    assert (row["victims"], row["distance* ↑"]) == ("4", "70.8 ± 1.1 (2)")
    row = leaderboard(board).tables[0].iloc[0]
    assert row["victims"] == "4"
    assert row["distance ↑ effect"].endswith("] † (2)")


def test_protections_and_attacks_are_ordered_as_if_all_had_met_the_same_victims() -> None:
    """weak met only the victim that everything protects; the attack blur only the one on which nothing is left."""

    def cell(protect: str, attack: str, subject: int, effect: float, left: float) -> Record:
        scores = SCORES | {"protected": (40 + effect, 0.5), "purified": (40 + left, 0.5)}
        return make_record(scores, protect=protect, attack=attack, subject=str(subject))

    records = [cell("strong", "jpeg", s, 10 + 20 * s, 1 + 20 * s) for s in range(3)]
    records += [cell("weak", "jpeg", 2, 45, 42), cell("strong", "blur", 0, 10, 3)]
    (board,) = boards(records)
    names = [row.protect for row in board.rows if not row.control]
    assert names == ["strong", "strong", "weak"], "the mean of strong is 30, that of weak 45"
    found = Standings(board)
    assert [row.name for row in found.rows if not row.control] == ["strong", "weak"]
    assert found.attacks["distance"] == ["jpeg", "blur"], "jpeg leaves 22 on average, blur 3"
    assert list(attack_costs(board).tables[0].index) == ["jpeg", "blur"]


def test_noise_that_was_run_as_a_protection_takes_no_victim_from_the_comparison_with_noise() -> None:
    settings = {
        "protect": {"_target_": "udpbench.protect.noise.Noise"},
        "noise": {"_target_": "udpbench.protect.noise.Noise"},
    }
    own = make_record(protect="noise", settings=settings)
    (board,) = boards([*(make_record(shifted(s, protected=s), subject=str(s)) for s in range(3)), own])
    rows = comparisons(board).tables[0]
    assert rows.loc[("eudp - noise", "protected", "distance"), "victims"] == "3"
    assert not [index for index in rows.index if index[0] == "noise - noise"]


def test_scores_of_one_protection_that_disagree_are_told() -> None:
    one, other = make_record(attack="none"), make_record(shifted(0, protected=9.0), attack="jpeg")
    (board,) = boards([one, other])
    assert any(
        line.startswith("Records do not agree on the scores of protected: eudp") for line in arm_means(board).text
    )
    (board,) = boards([one, make_record(attack="jpeg")])
    assert not any("do not agree" in line for line in arm_means(board).text)


def test_folders_of_pictures_that_were_protected_elsewhere_are_one_protection() -> None:
    def named(protect: str, *settings: dict) -> list[str]:
        made = [make_record(protect=protect, subject=str(i), settings={"protect": s}) for i, s in enumerate(settings)]
        return [r["cell"]["protect"] for r in choose(files(*made)).ok]

    takes = {"_target_": "udpbench.protect.folder.Folder"}
    assert named("folder", *(takes | {"path": f"mine/{i}"} for i in range(3))) == ["folder"] * 3
    assert named("aspl", {"clean": "own"}, {"clean": "extra"}) == ["aspl (clean=own)", "aspl (clean=extra)"]
    assert len({*named("e", {"further": {"a": {"path": "x"}}}, {"further": {"a": {"path": "y"}}})}) == 2


def test_a_board_without_any_score_is_a_report_all_the_same(tmp_path: Path) -> None:
    record = make_record({"clean": SCORES["clean"]}, protect="none", attack="none")
    record["arms"]["clean"] |= {"metrics": {}, "absent": {"distance": "why"}}
    record["perturbation"] = {}
    write(tmp_path / "records" / "one.json", record)
    assert main([str(tmp_path / "records")]) == 0


def test_a_subject_with_more_seeds_weighs_no_more_in_the_order() -> None:
    a = [make_record(shifted(0, protected=x), protect="a", subject=s, seed=k) for s, k, x in
         (("0", 0, 40), ("0", 1, 40), ("0", 2, 40), ("1", 0, 30))]  # fmt: skip
    b = [make_record(shifted(0, protected=x), protect="b", subject=s, seed=k) for s, k, x in
         (("0", 0, 33), ("0", 1, 33), ("0", 2, 33), ("1", 0, 40))]  # fmt: skip
    (board,) = boards([*a, *b])
    assert [row.protect for row in board.rows if not row.control] == ["b", "a"], (
        "36.5 and 35 more; by victims 34.75 and 37.5"
    )
    assert [row.name for row in Standings(board).rows if not row.control] == ["b", "a"]


def test_the_same_folder_twice_and_folders_inside_others_are_read_once(tmp_path: Path) -> None:
    write(tmp_path / "a" / "b" / "one.json", make_record())
    for folders in (("a", "a"), ("a", "a/b"), ("a/b", "a")):
        assert len(read_files(*(tmp_path / folder for folder in folders))) == 1


def test_missing_cells_are_those_of_a_protection_s_own_victims() -> None:
    records = [make_record(protect="a", attack=attack, subject=s) for s in "01" for attack in ("none", "jpeg", "blur")]
    records = [r for r in records if r["cell"]["attack"] == "none" or r["cell"]["subject"] == "0"]
    records += [make_record(protect="c", attack=r["cell"]["attack"], subject=r["cell"]["subject"]) for r in records]
    found = boards(
        [*records, make_record(protect="b", attack="none", subject="7"), *(r | {"label": "SD"} for r in records[:2])]
    )
    section = _missing(found)
    (made,) = section.tables
    (row,) = made.reset_index().to_dict("records")
    assert (row["protections"], row["attacks"]) == ("a, c", "blur, jpeg")
    assert row["victims without a record (subject/seed)"] == "1/0"
    assert made.attrs["caption"] == f"{LABEL}: {found[-1].title}"
    assert made.attrs["caption"] in render("report.md", title="T", sections=[section])


def test_boards_stand_in_the_order_of_their_numbers_those_without_protections_last() -> None:
    made = [make_record(budget=f"linf_{eps}") for eps in (16, 2, 12, 4)]
    made.append(make_record({"clean": SCORES["clean"]}, budget="linf_1", protect="none", attack="none"))
    found = boards(choose(files(*made)).ok)
    assert [board.names["budget"] for board in found] == [f"linf {eps}/255" for eps in (2, 4, 12, 16, 1)]


def test_victims_of_different_length_are_not_compared_and_give_no_floor() -> None:
    def trained(steps: int, **cell: Any) -> Record:
        return make_record(settings={"task": {"steps": steps}}, **cell)

    seeds = [trained(400, protect="none", attack="none", seed=k, scores=shifted(2 * k)) for k in (1, 2)]
    chosen = choose(files(trained(200, protect="eudp"), trained(400, protect="udp"), *seeds))
    short, long = boards(chosen.ok)
    assert [short.names["task"], long.names["task"]] == ["dreambooth (steps=200)", "dreambooth (steps=400)"]
    assert [row.protect for row in short.rows if not row.control] == ["eudp"]
    assert (short.floors["distance"], long.floors["distance"]) == (None, pytest.approx(2.0))


def test_a_flag_of_a_cell_that_protects_nothing_is_told() -> None:
    clean = make_record(
        {"pretrained": (100.0, 0.1), "clean": (90.0, 0.2), "upper_bound": (20.0, 0.9)}, protect="none", attack="none"
    )
    (row,) = [
        row for row in rows_of(*flag_section(boards([clean])).tables) if row[2].startswith("victim did not learn")
    ]
    assert row[1:] == ("none / none", row[2], "0/0")


def test_rows_of_the_leaderboard_s_table_are_told_apart_by_their_names() -> None:
    made = [make_record(protected_fraction=s, subject=str(i)) for s in (0.5, 0.8) for i in range(2)]
    released = make_record(facts={"preset": "released"})
    text = board_frame(boards([*made, make_record(), released])).to_csv(index=False)
    rows = list(csv.DictReader(io.StringIO(text)))
    names = [tuple(v for k, v in row.items() if k not in ("effect", "residual", "recovery")) for row in rows]
    assert len(set(names)) == len(rows)
    assert {row["protected_fraction"] for row in rows} == {"1.0", "0.5", "0.8"}
    assert {row["preset"] for row in rows} == {"matched", "released"}
    for board in boards(made):
        assert set(board.names) <= set(rows[0])


def test_repeated_cells_count_once_and_conflicting_ones_are_an_error() -> None:
    chosen = choose(files(make_record(), make_record(), make_record(error="boom")))
    assert (len(chosen.ok), len(chosen.failed), chosen.repeated) == (1, 0, 2)
    other = make_record()
    other["arms"]["clean"]["key"] = "beef"
    with pytest.raises(ValueError, match=r"0\.json and 1\.json are the same cell with different keys"):
        choose(files(make_record(), other))


def test_every_cell_that_is_there_before_and_after_an_upgrade_is_named_with_the_older_record(tmp_path: Path) -> None:
    def made(version: int, seed: int, named: bool = True) -> Record:
        record = make_record(seed=seed)
        record["arms"]["clean"]["key"] = f"{version}"
        if named:
            record["provenance"]["parts"] = {"task": {"version": version}}  # type: ignore[typeddict-unknown-key]
        return record

    paths = [tmp_path / f"{i}.json" for i in range(4)]
    records = [made(2, 0), made(1, 0), made(1, 1, named=False), made(2, 1, named=False)]
    for i, (path, record) in enumerate(zip(paths, records)):
        write(path, record)
        os.utime(path, (i, i))
    with pytest.raises(ValueError, match="take the older records away") as error:
        choose(dict(zip(paths, records)))
    first, second, _ = str(error.value).split("; ")
    assert first.endswith(f"({paths[1]} is older: task 1, then 2)")
    assert second == f"{paths[2]} and {paths[3]} are the same cell with different keys ({paths[2]} was written first)"


def test_owner_prompt_budget_and_models_make_boards_of_their_own() -> None:
    records = [make_record(), make_record(budget="linf_4"), make_record(owner_prompt="data"), make_record(victim="sd")]
    found = boards(records)
    assert [len(b.records) for b in found] == [1, 1, 1, 1]
    assert sum("owner prompt data" in b.title for b in found) == 1


def test_the_seed_sd_takes_clean_victims_of_every_budget() -> None:
    records = [make_record(shifted(0)), make_record(shifted(2), budget="linf_4", seed=1)]
    assert [b.floors["distance"] for b in boards(records)] == pytest.approx([2**0.5, 2**0.5])


def test_the_seed_sd_never_mixes_labels() -> None:
    records = [make_record(shifted(0)), make_record(shifted(2), label="SD 1.5", seed=1)]
    assert [b.floors["distance"] for b in boards(records)] == [None, None]


def test_an_effect_is_claimed_only_above_the_floor() -> None:
    def claimed(effect: Interval | None, floor: float | None) -> bool:
        return Summary(effect, None, Recovery(None), floor).claimed

    shown = Interval(5.0, 4.0, 6.0, 6, 3, "bootstrap")
    assert claimed(shown, 3.9)
    assert not claimed(shown, 4.1)
    assert not claimed(shown, None)
    assert not claimed(None, 0.1)
    assert not claimed(Interval(5.0, None, None, 1, 1, "none"), 0.1)
    rounded = {("0", 0): 0.03 + 1e-16, ("1", 0): 0.03}
    alike = paired_interval(rounded, np.random.default_rng(0))
    assert not claimed(alike, 0.01), "two victims that agree say nothing of how far others would lie"
    assert not alike.excludes_zero
    single = {victim: float(np.float32(1.0) - np.float32(0.97 - 1e-7 * i)) for i, victim in enumerate(rounded)}
    assert paired_interval(single, np.random.default_rng(0)).excludes_zero
    assert not paired_interval(single, np.random.default_rng(0), size=1.0).excludes_zero, "scores near 1 of float32"


def test_verdicts() -> None:
    def said(low: float | None, mean: float, high: float | None, floor: float | None) -> str:
        interval = Interval(mean, low, high, 6, 6, "t", differ=low != high)
        return verdict("eudp", "udp", interval, floor)

    assert said(4.0, 5.0, 6.0, 0.1) == "eudp protects better"
    assert said(-6.0, -5.0, -4.0, 0.1) == "udp protects better"
    assert said(4.0, 5.0, 6.0, 7.0) == "eudp protects better, by less than the floor"
    assert said(5.0, 5.0, 5.0, 0.1) == "victims do not differ: nothing claimed"
    assert said(4.0, 5.0, 6.0, None) == "no floor: nothing claimed"
    assert said(-1.0, 5.0, 6.0, 0.1) == "no difference shown"
    assert said(None, 5.0, None, 0.1) == "one victim: nothing claimed"


def test_curve_points_are_means_over_victims() -> None:
    records = [make_record(subject="0"), make_record(subject="1")]
    for by, made in zip((0.0, 4.0), records, strict=True):
        made["arms"]["protected"]["curve"] = curve(by)
    (board,) = boards(records)
    assert curve_points(board, "distance") == {"protected: eudp": [(0.5, 52.0), (1.0, 42.0), (2.0, 46.0)]}


def test_renderers_agree_on_a_small_document() -> None:
    made = table([{"name": "a|b", "x*": "1"}, {"name": "c_d", "x*": "2"}, {"name": "e"}], ["name"], "cap")
    sections = [Section("S", 2, ["one\ntwo <b>"], [made], in_latex=True)]
    assert render("report.md", title="T", sections=sections).splitlines() == [
        "# T", "", "## S", "", "one two \\<b>", "", "| name | x\\* |", "| :-- | --: |", "| a\\|b | 1 |", "| c_d | 2 |",
        "| e | - |",
    ]  # fmt: skip
    assert r"c\_d & 2 \\" in render("report.tex", title="T", sections=sections)


def test_names_are_no_markup() -> None:
    """Neither that of Markdown nor that of LaTeX, where a bracket after a line's end is an argument."""
    names = ["~~a~~", "<b>", "_c_", "__d", "&lt;", "a_b", "[e](f)", "[0, 1]", "*"]
    made = table([{"name": name, "x": "a|b"} for name in names], ["name"], "cap")
    rows = markdown_table(made).splitlines()[2:]
    assert [row.removeprefix("| ").removesuffix(" | a\\|b |") for row in rows] == [
        r"\~\~a\~\~", r"\<b>", r"\_c\_", r"\_\_d", r"\&lt;", "a_b", r"[e\](f)", "[0, 1]", r"\*",
    ]  # fmt: skip
    text = render("report.md", title="~~a~~", sections=[Section("_c_", 2, ["&lt; a_b"])])
    assert text == "# \\~\\~a\\~\\~\n\n## \\_c\\_\n\n\\&lt; a_b\n"
    latex = [
        line
        for line in render("report.tex", title="T", sections=[Section("S", 2, [], [made], in_latex=True)]).splitlines()
        if "&" in line
    ]
    assert all(line.endswith(r" & a\textbar{}b \\") for line in latex[1:])
    assert latex[-2].startswith("{}[0, 1] &")
    assert latex[-1].startswith("{}* &")


def released(steps: int, **cell: Any) -> Record:
    return make_record(facts={"preset": "released"}, settings={"protect": {"steps": steps}}, **cell)


def test_released_settings_have_a_board_of_their_own() -> None:
    records = [make_record(protect="advdm", subject=str(s)) for s in range(3)]
    records += [released(50, protect="advdm_released", subject=str(s)) for s in range(3)]
    found = boards(records)
    assert [{row.protect for row in b.rows if not row.control} for b in found] == [{"advdm"}, {"advdm_released"}]
    assert [", released settings" in b.title for b in found] == [False, True]


def test_variants_of_released_settings_are_never_ranked_beside_matched_ones() -> None:
    """Whatever they are called: two settings of one released preset, and a matched protection of the same name."""
    records = [make_record(protect="udp"), released(50), released(100), make_record(settings={"protect": {"steps": 7}})]
    chosen = choose(files(*records))
    found = [{row.protect for row in b.rows if not row.control} for b in boards(chosen.ok)]
    assert found == [{"udp", "eudp (steps=7)"}, {"eudp (steps=50)", "eudp (steps=100)"}]


def test_no_fact_is_read_out_of_a_name() -> None:
    """A name that says another budget and preset than the facts changes nothing."""
    odd = make_record(budget="rms_3", protect="eudp_released", facts={"budget": {"kind": "linf", "eps": 8.0}})
    odd["perturbation"] = {"protected": {"linf": 9.0}}
    (board,) = boards(choose(files(odd)).ok)
    assert "linf 8/255" in board.title
    assert "released settings" not in board.title
    assert any(flag.startswith("budget exceeded: protected measures linf 9/255") for flag in flags.of_record(odd))
    sources = [path for path in (Path(W.__file__).parent).rglob("*.py") if path.name != "upgrade.py"]
    assert len(sources) > 10
    for path in sources:
        assert not re.search(r"\.(startswith|endswith|removeprefix|removesuffix)\(", path.read_text()), path


def test_a_variant_s_seconds_are_those_of_its_own_stages() -> None:
    made = [make_record(settings={"protect": {"steps": n}}, subject=str(n)) for n in (50, 100)]
    made[1]["stages"][0] |= {"seconds": 48.0, "key": "cd34"}
    (board,) = boards(choose(files(*made)).ok)
    rows = {row[0]: row for row in rows_of(*leaderboard(board).tables)}
    assert [rows[f"eudp (steps={n})"][-2] for n in (50, 100)] == ["24.0", "48.0"]


def test_the_title_says_what_was_run(tmp_path: Path) -> None:
    records = [make_record(), make_record(protect="udp", subject="1"), make_record(protect="none", attack="none")]
    one, two = save(tmp_path / "a", records[:2]), save(tmp_path / "b", records[2:])
    assert main([str(one), str(two), "--no-plots", "--out", str(tmp_path / "c")]) == 0
    text = (tmp_path / "c" / "report.md").read_text()
    assert text.splitlines()[0] == "# eudp, udp against impress and dreambooth on toyworld, linf 8/255"
    assert "3 finished cells" in text
    alone = make_record(protect="none", attack="none")
    alone["arms"] = {"clean": alone["arms"]["clean"]}
    three = save(tmp_path / "d", [alone])
    assert main([str(three), "--no-plots", "--out", str(tmp_path / "e")]) == 0
    page = (tmp_path / "e" / "report.html").read_text()
    assert "<h1>dreambooth on toyworld, nothing protected</h1>" in page
    assert "No protection and no attack was run here" in page
    assert 'class="leaderboard"' not in page


def test_transfer_puts_surrogates_and_victims_side_by_side() -> None:
    """eudp of micro beats that of other by 8 on every victim of micro; nobody made udp on other, nobody attacked far
    with it."""
    seeds = [(str(s), k) for s in range(3) for k in (0, 1)]
    cells = [("eudp", "micro", "micro", 8.0), ("eudp", "other", "micro", 0.0), ("udp", "micro", "micro", 2.0),
             ("eudp", "other", "far", 5.0)]  # fmt: skip
    records = [
        make_record(shifted(k, protected=more + (int(s) - 1) / 10), protect=p, subject=s, seed=k, surrogate=a, victim=v)
        for p, a, v, more in cells
        for s, k in seeds
    ]
    (section,) = transfer(boards(records))
    effects, paired = section.tables
    assert tuple(headers(effects)) == ("protection", "made on", "distance ↑: far", "distance ↑: micro")
    mean = {row[:2]: tuple(cell.split(" ")[0] for cell in row[2:]) for row in rows_of(effects)}
    assert mean == {("eudp", "micro"): ("-", "+38.0"), ("eudp", "other"): ("+35.0", "+30.0"),
                    ("udp", "micro"): ("-", "+32.0")}  # fmt: skip
    (row,) = rows_of(paired)
    alike = "+8.00 (victims do not differ)"
    assert row[:6] == ("eudp of micro - eudp of other", "protected", "distance", alike, "-", "6")


def test_transfer_takes_the_victims_of_every_attack() -> None:
    """An attack that was tried on one easy victim only does not speak for the protection."""
    cells = [(s, a, "none") for s in range(3) for a in ("micro", "other")] + [(3, "micro", "jpeg")]
    records = [
        make_record(shifted(0, protected=10.0 * s), subject=str(s), surrogate=a, attack=attack)
        for s, a, attack in cells
    ]
    effects, paired = transfer(boards(records))[0].tables
    assert [row[2].split(" ")[0] for row in rows_of(effects)] == ["+45.0", "+40.0"]  # 30 and 10 times 0..3, 0..2
    assert rows_of(paired)[0][3:6] == ("0 (victims do not differ)", "-", "3 (1 unpaired)")


def test_one_pair_of_models_is_no_transfer() -> None:
    assert transfer(boards([make_record(), make_record(attack="jpeg"), make_record(label="SD 1.5", victim="sd")])) == []


@pytest.mark.parametrize("other", [{"data": "faces"}, {"task": "lora"}, {"victim": "micro_b"}])
def test_the_seed_sd_never_mixes_data_tasks_or_victims(other):
    records = [make_record(shifted(0)), make_record(shifted(2), seed=1, **other)]
    assert [b.floors["distance"] for b in boards(records)] == [None, None]


def test_noise_of_another_fraction_is_not_on_the_line():
    records = [make_record(), make_record(shifted(0, noise=50.0), subject="1", protected_fraction=0.5)]
    whole = next(b for b in boards(records) if b.names["protected_fraction"] == "1.0")
    assert Standings(whole).noise_line("distance") == [(0.0, 0.0), (8.0, 2.0)]
