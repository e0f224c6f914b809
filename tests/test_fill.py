"""What stands behind a text's tables: attacks compared, what was learnt, what was changed, and the marks that ask for them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from factory import make_record, shifted

from udpbench.commands.report import main
from udpbench.results.record import write
from udpbench.results.report import arms, compare
from udpbench.results.report.boards import Board, boards
from udpbench.results.report.fill import filled, made
from udpbench.results.report.render import Section, headers, markdown_table
from udpbench.results.schema import Record

ROOT = Path(__file__).parent.parent
TEXTS = [path for path in sorted(ROOT.glob("experiments/*/*.md")) if "<!-- table " in path.read_text()]


def grid() -> list[Record]:
    """Four subjects under two attacks; impress leaves 15 less than the protection had, jpeg 5 more."""
    found = []
    for s in range(4):
        for attack, left in (("impress", 0.0), ("jpeg", 20.0)):
            scores = shifted(s, purified=left + 0.1 * s + (0.001 * (s - 1.5) if left else 0.0))
            found.append(make_record(scores, subject=str(s), attack=attack))
    return [*found, make_record(shifted(1.0), subject="0", seed=1)]  # clean victims of two seeds: a floor


def cells(section: Section | None) -> list[tuple[str, ...]]:
    """The rows of a section's table, index first."""
    assert section is not None
    (table,) = section.tables
    return [tuple(map(str, row)) for row in table.reset_index().itertuples(index=False, name=None)]


@pytest.fixture
def board() -> Board:
    (found,) = boards(grid())
    return found


@pytest.fixture
def folder(tmp_path) -> Path:
    for i, record in enumerate(grid()):
        write(tmp_path / "records" / f"{i}.json", record)
    return tmp_path


def left(records: list[Record], metric: str = "distance") -> dict[tuple[str, str], list[str]]:
    """(a - b, protection) -> [difference, half-width, victims, verdict] of attacks compared."""
    (found,) = boards(records)
    table = compare.attacks(replace(found, shown=(metric,))).tables[0].droplevel("metric")
    return {index: list(row) for index, row in zip(table.index, table.to_numpy())}


def test_attacks_are_compared_by_what_they_leave():
    found = left(grid()[:-1])
    means = {pair: float(row[0].split(" ")[0]) for (pair, _), row in found.items()}
    assert means == {"impress - none": -14.8, "jpeg - none": 5.15, "impress - jpeg": -20.0}  # of three digits
    assert {protect for _, protect in found} == {"eudp"}
    assert {row[2] for row in found.values()} == {"4"}
    down = left(grid()[:-1], "similarity")["impress - none", "eudp"]
    assert down[0].startswith("-0.150 ")  # -(0.55 - 0.40): better protected is down


def test_attacks_of_other_protections_are_not_mixed():
    other = [make_record(shifted(0.0, purified=40.0), subject=str(s), protect="udp", attack="jpeg") for s in range(4)]
    found = left([*grid(), *other])
    assert {protect: row[0].split(" ")[0] for (pair, protect), row in found.items() if pair == "jpeg - none"} == {
        "eudp": "+5.15",
        "udp": "+25.0",
    }


def test_the_report_says_which_attack_gives_back(board):
    section = compare.attacks(board)
    assert section is not None
    said = {row[0]: row[-1] for row in cells(section)}
    assert said == {
        "impress - none": "gives back",
        "jpeg - none": "increases the effect",
        "impress - jpeg": "impress gives back more",
    }
    assert "0.15 of these 3 intervals" in section.text[1]
    (without,) = boards([make_record(attack="none", subject=str(s)) for s in range(2)])
    for record in without.records:
        del record["arms"]["purified"]
    assert compare.attacks(without) is None


def test_what_clean_victims_learnt(board):
    section = arms.learning(board)
    assert section is not None
    (row,) = cells(section)
    # pretrained 100 + s, clean 40 + s, upper bound 20 + s: three quarters of the window each
    assert (row[0], row[1], *row[-3:]) == ("distance", "5", "75 % (75 % to 75 %)", "0", "0")
    for arm, score in (
        ("upper_bound", 130.0),
        ("clean", 95.0),
    ):  # one victim's upper_bound is no better than no training
        board.records[-1]["arms"][arm]["metrics"]["distance"]["value"] = score
    (row,) = cells(arms.learning(board))
    assert row[-1] == "1"
    assert row[-3] == "75 % (75 % to 75 %)"
    for record in board.records:
        del record["arms"]["upper_bound"]
    assert arms.learning(board) is None


def test_what_was_done_to_the_pictures(board):
    board.records[0]["perturbation"]["protected"]["rms"] = 7.25
    section = arms.pictures(board)
    assert section is not None
    rows = {row[0]: dict(zip(headers(*section.tables), row)) for row in cells(section)}
    assert set(rows) == {"noise", "protected: eudp"}
    assert rows["protected: eudp"]["rms"].startswith("5.65 ± ")  # one of five is 2 more: 5.25 + 2 / 5
    assert rows["noise"]["psnr"] == "-"


def test_every_victim_has_a_row_for_every_arm(board):
    board.records[0]["arms"]["clean"]["curve"] = {"0.5": {"distance": 50.0}, "1": {"distance": 40.0}}
    section = arms.victims(board)
    assert section.text == ["Several scores: at 0.5x, 1x the training steps."]
    rows = cells(section)
    assert headers(*section.tables) == ["subject", "seed", "arm", "distance* ↑"]
    assert [row[-1] for row in rows[:3]] == ["100", "50.0, 40.0", "42.0"]
    assert [row[:3] for row in rows[:3]] == [("0", "0", "pretrained"), ("0", "0", "clean"), ("0", "0", "noise")]
    assert len(rows) == 5 * 7 + 4 * 2  # the second attack adds two arms; the fifth victim has one attack
    assert len({row[:3] for row in rows}) == len(rows)


def test_a_mark_is_filled_and_stays_filled(folder):
    text = folder / "text.md"
    text.write_text("Before\n<!-- table effects scores=similarity attack=jpeg -->\nold\n<!-- end -->\nafter\n")
    assert main(["--fill", str(text)]) == 0
    once = text.read_text()
    assert once.startswith("Before\n<!-- table effects scores=similarity attack=jpeg -->\nSeed SD")
    assert once.endswith("|\n<!-- end -->\nafter\n")
    assert "old" not in once
    assert "impress" not in once
    assert "distance" not in once
    assert "similarity: none, for the seeds agree (df 1, 1 subject)" in once, (
        "the floor takes clean victims of every attack"
    )
    assert filled(text) == once


def test_boards_that_differ_become_one_table(folder):
    for i, share in enumerate((0.5, 0.8)):
        write(folder / "records" / f"more{i}.json", make_record(subject="0", protected_fraction=share))
    lines = made("arms scores=distance text=no", folder).splitlines()
    assert lines[0].startswith("| protected_fraction | arm | victims | distance")
    assert {line.split("|")[1].strip() for line in lines[2:]} == {"0.5", "0.8", "1.0"}
    assert "protected_fraction" not in made("arms protected_fraction=1.0", folder)
    assert "protected_fraction" in made("arms budget=linf_8/255", folder)


def test_a_table_of_one_budget_names_it_where_the_folder_has_several(folder):
    assert "Budget" not in made("attacks", folder)
    write(folder / "records" / "other.json", make_record(subject="0", budget="linf_4"))
    assert made("attacks budget=linf_8/255", folder).startswith("Budget: linf 8/255.\n\nWhat is left")
    assert "Budget" not in made("attacks budget=linf_8/255 text=no", folder)
    both = made("attacks", folder)
    assert "Budget:" not in both
    assert "| linf 4/255 |" in both


def test_a_mark_without_an_end_loses_nothing(folder, capsys):
    text = folder / "text.md"
    text.write_text("<!-- table arms -->\nprose\n<!-- table attacks -->\n<!-- end -->\n")
    before = text.read_text()
    assert main(["--fill", str(text)]) == 2
    assert "table arms: has no <!-- end --> before the next table" in capsys.readouterr().err
    assert text.read_text() == before


@pytest.mark.parametrize(
    ("words", "told"),
    [("lists", "unknown kind 'lists'; allowed are effects, "), ("arms colour=red", "unknown name 'colour'; allowed are records, "),
     ("arms scores=beauty", "unknown score 'beauty'; allowed are distance, linf"), ("arms task=dance*", "has task=dance*"), ("arms text=No", "text 'No'; allowed are yes, no"), ("learning subject=9", "has subject=9"), ("arms records=nowhere", "nowhere"), ("arms budget=linf_4/255", "has budget=linf_4/255")],
)  # fmt: skip
def test_a_wrong_mark_is_told_in_one_line(folder, capsys, words, told):
    text = folder / "text.md"
    text.write_text(f"<!-- table {words} -->\n<!-- end -->\n")
    before = text.read_text()
    assert main(["--fill", str(text)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {text}: table {words}: ")
    assert told in line
    assert text.read_text() == before


def test_a_cell_with_two_results_fills_no_table(folder, capsys):
    other = grid()[0]
    other["arms"]["purified"]["metrics"]["distance"]["value"] = 7.0
    write(folder / "records" / "z.json", other)
    text = folder / "text.md"
    text.write_text("<!-- table arms -->\n<!-- end -->\n")
    assert main(["--fill", str(text)]) == 2
    told = f"purified distance is 55 in {folder / 'records' / '0.json'} and 7 in {folder / 'records' / 'z.json'}"
    assert told in capsys.readouterr().err


def test_a_text_without_marks_is_refused(tmp_path, capsys):
    (tmp_path / "x.md").write_text("nothing")
    assert main(["--fill", str(tmp_path / "x.md")]) == 2
    assert "there is no <!-- table KIND" in capsys.readouterr().err


def test_a_table_s_cells_cannot_break_it(board):
    (table,) = arms.victims(board).tables
    assert all(line.count(" | ") == len(headers(table)) - 1 for line in markdown_table(table).splitlines())


@pytest.mark.slow
@pytest.mark.parametrize("path", TEXTS, ids=[path.parent.name for path in TEXTS])
def test_tables_are_those_of_the_records(path):
    assert filled(path) == path.read_text(), f"say: python -m udpbench report --fill {path.relative_to(ROOT)}"


@pytest.mark.slow
def test_the_figure_in_a_text_is_that_of_the_records(tmp_path):
    folder = ROOT / "experiments/protections"
    assert main([str(folder / "records"), "--out", str(tmp_path)]) == 0
    made_now = (tmp_path / "figures" / "board1_kd_efflite0-visibility.svg").read_text()
    assert (folder / "visibility.svg").read_text() == made_now, "copy it there"
