"""The report's page: its numbers, what it says of failed and missing cells, that it needs nothing and believes nothing from
outside; and, where a browser is, that it fits a phone and a laptop, sorts and filters."""

from __future__ import annotations

import csv
import json
import re
import shutil
import subprocess
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
from factory import SCORES, make_record, shifted
from PIL import Image

from udpbench.commands.report import main
from udpbench.core.images import write_png
from udpbench.results.record import write
from udpbench.results.report import charts, svg
from udpbench.results.report.boards import boards
from udpbench.results.report.page import heat_map, heat_table, leaderboard
from udpbench.results.report.pictures import pictures
from udpbench.results.report.standings import NO_PROTECTION, WORST, Standings
from udpbench.results.schema import Record

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
KEYS = {arm: f"{i:016x}" for i, arm in enumerate(SCORES)}
EVIL = "<script>alert(1)</script>"


def world(protects: int = 3, attacks: int = 2, subjects: int = 3, **cell: Any) -> list[Record]:
    """Protection p protects 10 p more than the least; attack a takes 10 (a + 1) from all but p0, which a1 cannot harm."""
    found = []
    for p in range(protects):
        for a in range(attacks):
            for s in range(subjects):
                back = 0.0 if (p, a) == (0, 1) else -10.0 * (a + 1)
                scores = shifted(s, protected=10.0 * p, purified=15.0 + 10.0 * p + back + s / 10)
                names = {"protect": f"p{p}", "attack": f"a{a}", "subject": str(s), **cell}
                record = make_record(scores, **names)
                record["perturbation"]["protected"]["dist_lite1"] = 0.1 * (p + 1)
                record["perturbation"]["noise"]["dist_lite1"] = 0.35
                record["stages"][0] |= {"key": f"{p}", "seconds": 10.0**p}
                found.append(record)
    return found


def save(folder: Path, records: list[Record]) -> Path:
    for i, made in enumerate(records):
        write(folder / f"{i:03}.json", made)
    return folder


def page_of(folder: Path, *words: str) -> str:
    assert main([str(folder), "--out", str(folder / "out"), *words]) == 0
    return (folder / "out" / "report.html").read_text()


# -- numbers -----------------------------------------------------------------------------------------------------------


def test_one_row_a_protection_with_every_attack_and_the_worst_case():
    (board,) = boards(world())
    found = Standings(board)
    assert [row.name for row in found.rows] == ["p2", "p1", "p0", "noise (control)", NO_PROTECTION]
    assert found.attacks["distance"] == ["a1", "a0"], "the attack that leaves least comes first"
    p2, _, p0, noise, clean = (row.left["distance"] for row in found.rows)
    assert {attack: round(x.mean, 3) for attack, x in p2.items()} == {"none": 50.0, "a0": 40.1, "a1": 30.1, WORST: 30.1}
    assert p0[WORST].mean == pytest.approx(20.1)
    assert found.rows[2].taken["distance"] == {"a0": 3}
    assert {attack: x.mean for attack, x in noise.items()} == {"none": 2.0}
    assert {attack: x.mean for attack, x in clean.items()} == {"a0": 5.0, "a1": 5.0}
    assert found.visible == "dist_lite1"
    assert found.rows[0].costs == {"seconds": 100.0, "memory": 900.0, "gradients": 600.0}
    table = leaderboard(found, "distance")
    assert [column.text for column in table.columns][:4] == ["no attack", WORST, "a1", "a0"]
    assert [(row.name, row.control) for row in table.rows][2:4] == [("p0", False), ("noise (control)", True)]
    heat = heat_map(found, "distance")
    assert [column.text for column in heat.columns] == ["no attack", "a1", "a0", WORST]
    assert heat.rows[0].cells[0].shade == 1.0
    assert [row.name for row in heat.rows] == ["p2", "p1", "p0", NO_PROTECTION], "what met no attack is no row of it"
    (flat,) = heat_table(board).tables
    assert flat.loc[("p2", "distance")].to_dict() == {
        "no attack": "+50.0",
        "a1": "+30.1",
        "a0": "+40.1",
        WORST: "+30.1",
    }


def test_many_protections_that_met_no_attack_are_no_heat_map():
    (board,) = boards([make_record(protect=f"p{i}", attack="none") for i in range(9)])
    assert heat_map(Standings(board), "distance") is None
    assert heat_table(board) is None


def test_the_cost_of_a_protection_is_not_that_of_the_attack():
    plain, attacked = make_record(attack="none"), make_record()
    plain["counts"], attacked["counts"] = {"unet_image": 600}, {"unet_image": 600, "vae_image": 3000}
    (board,) = boards([attacked, plain])
    assert Standings(board).rows[0].costs["gradients"] == 600


def test_noise_of_every_budget_makes_the_line_and_another_fraction_does_not():
    records = [
        make_record(shifted(0, noise=float(by)), budget=budget) for budget, by in (("linf_8", 0), ("linf_16", 9))
    ]
    records.append(make_record(shifted(0, noise=50.0), protected_fraction=0.5))
    records[1]["perturbation"]["noise"]["rms"] = 16.0
    found = [Standings(board) for board in boards(records)]
    (line,) = {tuple(x.noise_line("distance")) for x in found if x.board.names["protected_fraction"] == "1.0"}
    assert line == ((0.0, 0.0), (8.0, 2.0), (16.0, 11.0))


def test_a_control_that_was_run_as_a_protection_is_one_row_and_a_control():
    noise = {"_target_": "Noise"}
    records = world(1) + world(1, protect="noise", settings=None)
    for record in records[len(records) // 2 :]:
        record["config"] |= {"protect": noise, "noise": noise}
    (board,) = boards(records)
    assert [(row.name, row.control) for row in Standings(board).rows][:2] == [("p0", False), ("noise", True)]


def test_numbers_of_the_figures_are_a_table_of_their_own(tmp_path):
    page_of(save(tmp_path, world()))
    rows = list(csv.DictReader((tmp_path / "out" / "figures.csv").open()))
    (row,) = [r for r in rows if (r["protect"], r["attack"], r["metric"]) == ("p1", WORST, "distance")]
    assert float(row["difference"]) == pytest.approx(20.1)
    assert float(row["low"]) < float(row["difference"]) < float(row["high"])
    assert (row["seconds"], row["dist_lite1"][:3], row["control"], row["victims"]) == ("10.0", "0.2", "False", "3")


def test_numbers_of_axes_are_within_the_drawing():
    marks = [charts.Mark("a", 0.1, 0.00048), charts.Mark("b", 0.3, 0.00058)]
    lines = {"a": [(0.5, 0.00001), (1.0, 0.00029)]}
    labels = "x", "y"
    drawings = charts.scatter(marks, labels, None), charts.forest({"a": marks}, "x", None), charts.curves(lines, labels)
    for drawn in drawings:
        shown = re.findall(r'<text x="([-\d.]+)" y="[-\d.]+" text-anchor="(\w+)">([\d.e-]+)<', drawn)
        assert any(len(number) > 5 for _, _, number in shown)
        for at, anchor, number in shown:
            wide = charts.DIGIT * len(number)
            right = float(at) + (0 if anchor == "end" else wide / 2)
            assert right - wide >= 0
            assert right <= charts.WIDTH + 0.1


def test_charts_have_round_ticks_and_their_own_colours_alone():
    assert svg.Scale([0.0, 0.97], 0, 100).ticks() == [0.0, 0.2, 0.4, 0.6000000000000001, 0.8, 1.0]
    assert svg.Scale([3.0, 400.0], 0, 100, log=True).ticks() == [3.0, 10.0, 30.0, 100.0, 300.0]
    scale = svg.Scale([1.0, 100.0], 0, 100, log=True, room=0)
    assert (scale(1.0), scale(10.0), scale(100.0)) == (0, 50, 100)
    drawn = charts.scatter([charts.Mark(f"m{i}<", 1.0, float(i), i - 1, i + 1) for i in range(30)], ("x", "y"), 1.0)
    assert "m0&lt;" in drawn
    box = (0.0, 0.0, 400.0, 300.0)
    line = charts._covered([(0.0, 150.0), (400.0, 120.0)])
    points = [(100.0 + 9 * i, 140.0 + 7 * (i % 3)) for i in range(20)]
    names = charts.Names(box, line, [])
    drawn_names = [names.beside(point, f"name_{i}") for i, point in enumerate(points)]
    placed = [b for b in names.taken if b[2] - b[0] > 20]
    assert len(placed) == sum(map(bool, drawn_names)) > 9
    assert not any(charts._meet(a, b) for a, b in combinations(placed, 2))
    assert not any(charts._meet(a, b) for a in placed for b in line)
    assert all(box[0] <= b[0] and b[2] <= box[2] and box[1] <= b[1] and b[3] <= box[3] for b in placed)
    marks = [charts.Mark("a", 1.0, 1.0, -500.0, 500.0), charts.Mark("b", 2.0, 2.0, 1.9, 2.1)]
    (a, b) = re.findall(r'cy="([\d.]+)"', charts.scatter(marks, ("x", "y"), None))
    assert float(a) - float(b) > 20, "a wide interval leaves the means apart"
    assert "<style>" in svg.alone(drawn)
    assert "<style>" not in drawn


# -- the page ----------------------------------------------------------------------------------------------------------


def test_failed_and_missing_cells_stand_before_everything_else(tmp_path):
    records = [*world()[1:], make_record(protect="mist", attack="a0", error=f"Traceback\nRuntimeError: {EVIL}\n")]
    text = page_of(save(tmp_path, records))
    first = text.index('class="leaderboard"')
    assert text.index("Failed cells (1)") < text.index("Missing cells (1)") < first
    assert "RuntimeError: &lt;script&gt;" in text
    assert '<th class="name" scope="row">p0</th><td class="name">a0</td><td class="name">0/0</td>' in text
    assert "<h2>Before you read on</h2>" not in page_of(save(tmp_path / "whole", two_seeds()))


def test_many_missing_cells_are_closed_and_counted(tmp_path):
    records = [make_record(protect="p", attack=f"a{i}", subject=s) for i in range(7) for s in "01"[: 1 + (i == 0)]]
    assert "<details open><summary>Missing cells (1)</summary>" in page_of(save(tmp_path / "a", records))
    several = [
        make_record(protect=f"p{i}", attack="a", subject=s, seed=k)
        for i in range(6)
        for s, k in (("0", 0), (f"{i + 1}", 1))
    ]
    several += [make_record(protect=f"p{i}", attack="b", subject="0") for i in range(6)]
    text = page_of(save(tmp_path / "b", several))
    assert "<details><summary>Missing cells (6)</summary>" in text


def test_boards_that_differ_in_models_alone_say_them_in_their_titles(tmp_path):
    records = [make_record(surrogate=name) for name in ("micro", "micro_b", "micro_c")]
    text = page_of(save(tmp_path / "a", records))
    titles = [title for title in re.findall("<h3>(.*?)</h3>", text) if "Transfer" not in title]
    assert len({*titles}) == 3
    assert [title.split(", ")[-2].split(" -&gt; ")[0] for title in titles] == ["micro", "micro_b", "micro_c"]
    (alone,) = re.findall("<h3>(.*?)</h3>", page_of(save(tmp_path / "b", records[:1])))
    assert "purifier" not in alone


def test_every_number_of_a_leaderboard_that_claims_nothing_is_marked():
    """eudp protects by more than the seed SD of 0.71; what is left after a1 is within it."""
    records = []
    for s in range(3):
        for k in range(2):
            for attack, left in (("a0", 5.0), ("a1", -14.9)):
                scores = shifted(k, protected=s, purified=left + 0.1 * s)
                records.append(make_record(scores, subject=str(s), seed=k, attack=attack))
    (board,) = boards(records)
    grid = leaderboard(Standings(board), "distance")
    marked = {
        row.name: {c.text: "†" in cell.text for c, cell in zip(grid.columns, row.cells, strict=True)}
        for row in grid.rows
    }
    assert {name: marked["eudp"][name] for name in ("no attack", WORST, "a0", "a1")} == {
        "no attack": False, WORST: True, "a0": False, "a1": True,
    }  # fmt: skip
    assert marked[NO_PROTECTION]["a0"], "victims do not differ"


def test_what_is_left_on_fewer_victims_stands_beside_the_effect_on_these(tmp_path):
    records = world(1, 2)
    records = [r for r in records if r["cell"]["attack"] == "a0" or r["cell"]["subject"] == "2"]
    for record in records:
        record["arms"]["protected"]["metrics"]["distance"]["value"] += 10 * int(record["cell"]["subject"])
    (board,) = boards(records)
    found = Standings(board)
    grid, heat = leaderboard(found, "distance"), heat_map(found, "distance")
    cells = {c.text: cell for c, cell in zip(grid.columns, grid.rows[0].cells, strict=True)}
    assert cells["no attack"].text.startswith("+40.0"), "30, 40 and 50"
    assert (cells["a1"].text, cells["a1"].more, cells["a1"].shade) == ("+30.2 of +50.0 †", "1 victim", None)
    assert " of " not in cells["a0"].text
    cells = {c.text: cell for c, cell in zip(heat.columns, heat.rows[0].cells, strict=True)}
    assert (cells["a1"].text, cells["a1"].shade) == ("+30.2 of +50.0 (1)", None)
    assert cells["a0"].shade is not None
    assert "+30.2 of +50.0 †" in page_of(save(tmp_path, records))


def two_seeds() -> list[Record]:
    """Nothing to object to."""
    return [make_record(shifted(s + k, protected=0.1 * k), subject=str(s), seed=k) for s in range(3) for k in range(2)]


def test_the_page_needs_nothing_and_runs_nothing_from_outside(tmp_path):
    text = page_of(save(tmp_path, world()), "--title", "A & B")
    assert "<title>A &amp; B</title>" in text
    bare = text.replace('xmlns="http://www.w3.org/2000/svg"', "")
    assert not re.search(r"https?://|<link|@import|url\(|\ssrc=\"(?!data:)", bare)
    assert text.count("<script>") == 1
    assert "default-src 'none'" in text
    assert page_of(tmp_path, "--title", "A & B") == text


def test_whatever_a_record_says_is_text(tmp_path):
    named = {
        "protect": EVIL,
        "attack": f'a"{EVIL}',
        "subject": EVIL,
        "task": f"'{EVIL}",
        "data": "&amp;",
        "victim": EVIL,
    }
    records = [make_record(**{**named, "seed": s}, label=EVIL) for s in range(3)]
    for record in records:
        arm = record["arms"]["clean"]
        arm["metrics"][f"../{EVIL}"] = dict(arm["metrics"]["distance"])
        arm["absent"][EVIL] = EVIL
        record["provenance"]["device"] = EVIL
    text = page_of(save(tmp_path, records))
    assert EVIL not in text.replace("&lt;", "")
    assert text.count("<script>") == 1
    for path in (tmp_path / "out").rglob("*.svg"):
        assert EVIL not in path.read_text()
    assert {path.parent.name for path in tmp_path.rglob("*.svg")} == {"figures"}, "no name leaves the folder"


@pytest.mark.slow
def test_a_large_grid_stays_readable(tmp_path):
    text = page_of(save(tmp_path, world(12, 12, 2)), "--title", "t")
    assert len(text) < 600_000
    assert "too many to list" in text
    assert "data-many" in text
    assert text.count('<td class="name">purified: a3</td>') == 0


# -- pictures ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def store(tmp_path) -> Path:
    """Of every arm the pictures that were made, of the protected one those that were trained on, too."""
    folder = tmp_path / "store"
    for key in KEYS.values():
        for i in range(7):
            write_png(folder / "generate" / key / f"{i}.png", torch.full((3, 16, 16), i / 7))
    write_png(folder / "protect" / ("f" * 16) / "0.png", torch.rand(3, 300, 200))
    return folder


def pictured(**cell: Any) -> Record:
    record = make_record(**cell)
    for arm, part in record["arms"].items():
        part["images"] = f"/elsewhere/store/generate/{KEYS[arm]}"
    record["arms"]["protected"]["pictures"] = f"store/protect/{'f' * 16}"
    return record


def test_pictures_come_from_the_store_and_stay_small(store):
    (board,) = boards([pictured()])
    found = pictures(Standings(board), store, 100_000)
    assert [strip.name for strip in found.strips] == [
        "pretrained", "clean", "noise", "upper_bound", "protected: eudp", "purified: eudp / impress",
        "clean_attacked: impress",
    ]  # fmt: skip
    assert [len(strip.made) for strip in found.strips] == [5] * 7
    assert [len(strip.given) for strip in found.strips] == [0, 0, 0, 0, 1, 0, 0]
    few = pictures(Standings(board), store, 3000)
    assert 0 < len(few.strips) == 7 - few.left_out < 7
    assert few.strips[0].name == "pretrained"
    assert pictures(Standings(board), store / "nowhere", 3000) is None


@pytest.mark.parametrize(
    "told", ["../../secret/0123456789abcdef", "/etc", "generate/..", "generate/0", "", "../" + "0" * 16]
)
def test_no_record_makes_a_page_show_what_is_not_in_the_store(told, store, tmp_path):
    secret = tmp_path / "secret" / "0123456789abcdef"
    write_png(secret / "0.png", torch.zeros(3, 8, 8))
    record = make_record({"clean": SCORES["clean"]})
    record["arms"]["clean"] |= {"images": told, "pictures": str(secret)}
    (board,) = boards([record])
    assert pictures(Standings(board), store, 10_000) is None


def test_a_broken_picture_is_left_out(store):
    (store / "generate" / KEYS["clean"] / "0.png").write_bytes(b"no picture")
    (board,) = boards([pictured()])
    found = pictures(Standings(board), store, 100_000)
    assert {strip.name: len(strip.made) for strip in found.strips}["clean"] == 4


# -- in a browser ------------------------------------------------------------------------------------------------------

HARNESS = """<!doctype html><body style="margin:0"><iframe style="border:0;width:%dpx;height:900px" src="%s"></iframe><pre></pre><script>
const frame = document.querySelector("iframe"), found = {errors: []};
frame.onload = () => {
  const page = frame.contentDocument, root = page.documentElement;
  frame.contentWindow.onerror = told => found.errors.push(told);
  const table = page.querySelector(".leaderboard"), body = table.tBodies[0];
  const names = () => [...body.rows].filter(row => row.offsetParent).map(row => row.cells[0].textContent);
  const press = i => { table.tHead.rows[0].cells[i].querySelector("button").click(); return names(); };
  const enter = (selector, set, event) => {
    const part = table.parentElement.previousElementSibling.querySelector(selector);
    Object.assign(part, set); part.dispatchEvent(new Event(event)); return names();
  };
  const across = () => [root.scrollWidth, root.clientWidth];
  found.width = across();
  found.wide = [...page.querySelectorAll("body *")].filter(x => !x.closest(".wide") && !x.closest("svg") && x.getBoundingClientRect().right > root.clientWidth + 1).map(x => x.outerHTML.slice(0, 200));
  found.ranked = names();
  found.up = press(2); found.up = press(2); found.sort = table.querySelector("[aria-sort]").ariaSort; found.down = press(2);
  found.byName = press(0);
  found.filtered = enter("input[type=search]", {value: "p1 p2"}, "input");
  found.claimed = enter("input[type=checkbox]", {checked: true}, "change");
  enter("input[type=checkbox]", {checked: false}, "change");
  found.all = enter("input[type=search]", {value: ""}, "input").length;
  const columns = () => [...table.tHead.rows[0].cells].filter(cell => cell.offsetParent).map(cell => cell.textContent);
  enter("select", {value: "a3"}, "change"); found.columns = columns();
  page.querySelectorAll("details").forEach(part => { part.open = true; });
  found.opened = across();
  document.querySelector("pre").textContent = "found" + JSON.stringify(found) + "end";
};
</script>"""


def browse(page: Path, tmp_path: Path, *words: str) -> subprocess.CompletedProcess:
    command = [
        *(BROWSER, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"),
        *(
            "--allow-file-access-from-files",
            "--enable-logging=stderr",
            "--virtual-time-budget=5000",
            "--hide-scrollbars",
        ),
    ]
    return subprocess.run([*command, *words, page.as_uri()], capture_output=True, text=True, timeout=60, check=True)


@pytest.mark.slow
@pytest.mark.skipif(
    BROWSER is None, reason="no browser: apt-get install chromium, to look at the page at 390 and 1400 px"
)
@pytest.mark.parametrize("width", [390, 1400])
def test_in_a_browser_the_page_fits_sorts_and_filters(width, store, tmp_path):
    records = [*world(6, 8, 3), *(pictured(protect="p5", attack=f"a{a}", subject="9") for a in range(8))]
    save(
        tmp_path / "records", [*records, make_record(protect="long_name_" * 6, error="Traceback\nKeyError: 'x'\n" * 9)]
    )
    assert main([str(tmp_path / "records"), "--store", str(store), "--out", str(tmp_path)]) == 0
    (tmp_path / "harness.html").write_text(HARNESS % (width, "report.html"))
    done = browse(tmp_path / "harness.html", tmp_path, "--dump-dom")
    assert "CONSOLE" not in done.stderr, done.stderr
    found = json.loads(
        re.search("found({.*})end", done.stdout)[1].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")
    )
    assert found["errors"] == []
    assert found["wide"] == []
    assert found["width"] == found["opened"] == [width, width], "something is wider than the screen"
    ranked = [*(f"p{p}" for p in (5, 4, 3, 2, 1, 0)), "noise (control)", NO_PROTECTION]
    assert found["ranked"] == ranked
    assert found["up"] == [*ranked[5::-1], *ranked[6:]], "rows without a number stay last"
    assert (found["sort"], found["down"]) == ("ascending", ranked)
    assert found["byName"] == sorted(ranked)
    assert found["filtered"] == ["p1", "p2"]
    assert (found["claimed"], found["all"]) == ([], 8)
    assert found["columns"][:4] == ["protection", "no attack", "worst case", "a3"]
    assert not {"a0", "a1"} & {*found["columns"]}
    shot = tmp_path / f"page{width}.png"
    browse(tmp_path / "report.html", tmp_path, f"--window-size={width},1500", f"--screenshot={shot}")
    with Image.open(shot) as picture:
        assert picture.size == (width, 1500)
        assert len(picture.convert("RGB").getcolors(1 << 22) or []) > 100, "there is something to see"
