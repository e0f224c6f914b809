"""The worst case over attacks: who is chosen for whom, and that a victim's own luck does not choose."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from factory import SCORES, make_record

from udpbench.results.report.attacked import attack_costs
from udpbench.results.report.boards import boards
from udpbench.results.report.choose import choose
from udpbench.results.report.page import leaderboard, on_metrics
from udpbench.results.report.standings import WORST, Standings
from udpbench.results.report.worst import choices, most_met, worst_case


def test_the_choice_is_made_on_the_other_subjects():
    left = {
        "none": {("0", 0): 30, ("1", 0): 30},
        "jpeg": {("0", 0): 5, ("1", 0): 20},
        "blur": {("0", 0): 12, ("1", 0): 10},
    }
    assert choices(left) == {("0", 0): "blur", ("1", 0): "jpeg"}
    one = {attack: {("0", seed): value for seed, value in enumerate(found.values())} for attack, found in left.items()}
    assert choices(one) == {("0", 0): "blur", ("0", 1): "jpeg"}
    assert choices({"none": {("0", 0): 1.0}}) == {}
    seeds = {"jpeg": {("1", k): 0.0 for k in range(3)}, "blur": {("1", k): 5.0 for k in range(3)}}
    again = {attack: {("0", 0): 0.0, ("2", 0): x} | seeds[attack] for attack, x in (("jpeg", 10.0), ("blur", 4.0))}
    assert choices(again)["0", 0] == "blur", "a subject that was run with more seeds weighs no more"
    missed = left | {"late": {("0", 0): 1.0}}
    assert choices(missed) == {}, "victims that did not meet every attack are left out"


def test_attacks_that_are_all_alike_gain_nothing_from_being_many():
    """The least of twenty equal attacks would look 1.9 standard deviations better; chosen on others it does not."""
    rng = np.random.default_rng(0)
    left = {f"a{k:02d}": {(str(s), 0): float(rng.normal()) for s in range(400)} for k in range(20)}
    chosen = choices(left)
    assert abs(np.mean([left[attack][victim] for victim, attack in chosen.items()])) < 0.15
    assert np.mean([min(found[victim] for found in left.values()) for victim in chosen]) < -1.5


def test_an_attack_that_ruins_pictures_is_not_the_worst_case():
    records = []
    for subject in "01":
        for attack, purified, clean_attacked in (("jpeg", 55.0, 45.0), ("blur", 90.0, 90.0)):
            scores = SCORES | {"purified": (purified, 0.5), "clean_attacked": (clean_attacked, 0.5)}
            records.append(make_record(scores, subject=subject, attack=attack))
    (board,) = boards(records)
    section = worst_case(board)
    (row,) = section.tables[0].reset_index().to_dict("records")
    assert row["taken (victims)"] == "jpeg (2)"
    assert row["worst case"].startswith("+15.0")
    assert row["attacks"] == "2"
    (alone,) = boards([record for record in records if record["cell"]["attack"] == "jpeg"])
    assert worst_case(alone) is None


def test_the_worst_case_is_of_as_many_victims_as_any_attack_met():
    records = [make_record(subject=subject, attack=attack) for subject in "012" for attack in ("jpeg", "blur")]
    records.append(make_record(subject="0", attack="diffpure"))
    (board,) = boards(records)
    (row,) = worst_case(board).tables[0].reset_index().to_dict("records")
    assert (row["attacks"], row["taken (victims)"]) == ("2", "blur (3)")
    assert Standings(board).has_worst("distance")
    (board,) = boards([*records, make_record(subject="1", attack="diffpure")])
    (row,) = worst_case(board).tables[0].reset_index().to_dict("records")
    assert (row["attacks"], row["taken (victims)"]) == ("2", "blur (3)"), "a third victim counts more than an attack"
    assert row["attacks left out"] == "diffpure"
    (board,) = boards([*records, *(make_record(subject=subject, attack="diffpure") for subject in "12")])
    (row,) = worst_case(board).tables[0].reset_index().to_dict("records")
    assert (row["attacks"], row["attacks left out"]) == ("3", "-")


def test_of_attacks_that_met_other_victims_those_count_that_most_met_together():
    def met(**victims: str) -> set[str]:
        left = {"none": {(s, 0): 9.0 for s in "0123456"}}
        left |= {attack: {(s, 0): 1.0 for s in some} for attack, some in victims.items()}
        return most_met(left).keys() - {"none"}

    assert met(a="012", b="345", c="012") == {"a", "c"}
    assert met(a="012", b="345", c="345") == {"b", "c"}
    assert met(a="0123", b="012", c="012") == {"a"}
    assert met(a="012", b="789") == {"a"}, "victims without a protected score are none"
    assert met() == set()


def test_the_worst_case_is_below_every_attack_that_it_is_over():
    """An attack that was run on the victim that is easy to protect only takes no other victims from it."""
    records = []
    for subject, effect in zip("0123", (10.0, 20.0, 30.0, 90.0), strict=True):
        for attack, left in (("jpeg", 0.9), ("blur", 0.8), ("diffpure", 0.2)):
            if attack == "diffpure" and subject in "01":
                continue
            scores = SCORES | {"protected": (40 + effect, 0.5), "purified": (40 + left * effect, 0.5)}
            records.append(make_record(scores, subject=subject, attack=attack))
    (board,) = boards(records)
    (row, *_) = Standings(board).rows
    left = row.left["distance"]
    assert set(row.over["distance"]) == {"jpeg", "blur"}
    assert left[WORST].mean == left["blur"].mean == pytest.approx(30.0)
    grid = leaderboard(Standings(board), "distance")
    cells = dict(zip((column.text for column in grid.columns), grid.rows[0].cells, strict=True))
    assert cells[WORST].more.endswith(", 2 attacks")
    assert cells[WORST].hint == "attacks taken (victims): blur (4); left out, for fewer victims met them: diffpure"
    assert cells[WORST].shade == pytest.approx(30 / 37.5)
    assert (cells["diffpure"].text, cells["diffpure"].shade) == ("+12.0 of +60.0 †", None), "of 30 and 90"
    assert cells["diffpure"].more.endswith("], 2 victims")
    assert (cells["blur"].text, cells["blur"].shade) == ("+30.0 †", pytest.approx(30 / 37.5))


def test_attacks_that_no_victim_met_together_hide_no_worst_case():
    met = {"blur": "012", "jpeg": "345", "webp": "0123"}
    records = [make_record(subject=subject, attack=attack) for attack, subjects in met.items() for subject in subjects]
    (board,) = boards(records)
    (row,) = worst_case(board).tables[0].reset_index().to_dict("records")
    assert (row["attacks"], row["taken (victims)"]) == ("1", "webp (4)")
    assert Standings(board).has_worst("distance")
    (board,) = boards([make_record(subject="0", attack="blur"), make_record(subject="1", attack="jpeg")])
    section = worst_case(board)
    assert section.text[1] == "No worst case, for no two victims met the same attacks: eudp (distance)."
    assert not section.tables


def test_the_attacks_have_one_order_whatever_noise_controls_met():
    """After jpeg less is left of the protection, and much of noise."""
    records = []
    for attack, left, of_noise in (("blur", 60.0, 41.0), ("jpeg", 50.0, 99.0)):
        for subject in "01":
            records.append(make_record(SCORES | {"purified": (left, 0.5)}, attack=attack, subject=subject))
            control = {"protect": {"_target_": "Noise"}, "noise": {"_target_": "Noise"}}
            scores = SCORES | {"purified": (of_noise, 0.5)}
            records.append(make_record(scores, attack=attack, subject=subject, protect="noise", settings=control))
    records.append(make_record(protect="noise", attack="grayscale", settings=control))
    (board,) = boards(records)
    assert Standings(board).attacks["distance"] == ["jpeg", "blur", "grayscale"]
    assert list(attack_costs(board).tables[0].index) == Standings(board).attacks["distance"]


def test_an_attack_that_is_given_a_protection_s_pictures_has_a_damage_for_each():
    records = []
    for protect, damage in (("eudp", 44.0), ("udp", 48.0)):
        for subject in "01":
            scores = SCORES | {"clean_attacked": (damage, 0.7)}
            records.append(make_record(scores, protect=protect, subject=subject, attack="bridge"))
            records[-1]["arms"]["clean_attacked"]["key"] = protect
    (board,) = boards(records)
    section = attack_costs(board)
    assert section.tables[0]["distance ↑ damage"]["bridge"] == "+6.00 (victims do not differ) (mean of 2)"
    assert section.text[1].startswith("(mean of n)")
    (grid,) = (on_metrics(Standings(board), 1, plots=False)[0].leaderboard,)
    (row,) = (row for row in grid.rows if row.name == "no protection")
    assert "(mean of 2)" in row.cells[[column.of for column in grid.columns].index("bridge")].more
    alike = [record for record in records if record["cell"]["protect"] == "udp"]
    assert attack_costs(boards(alike)[0]).tables[0]["distance ↑ damage"]["bridge"] == "+8.00 (victims do not differ)"


def _stage(name: str, key: str, seconds: float) -> dict[str, object]:
    return {"name": name, "key": key, "seconds": seconds, "peak_mb": 100 * seconds, "cached": True}


def test_an_attack_has_its_damage_and_its_costs():
    records = []
    for subject in "01":
        record = make_record(subject=subject, attack="jpeg")
        record["stages"] += [
            _stage("attack jpeg on eudp", subject, 2.0),
            _stage("attack jpeg on clean", f"c{subject}", 4.0),
        ]
        record["stages"] += [
            _stage("train eudp", f"e{subject}", 50.0),
            _stage("train jpeg on eudp", f"t{subject}", 9.0),
        ]
        records.append(record)
    (board,) = boards(records)
    (row,) = attack_costs(board).tables[0].reset_index().to_dict("records")
    assert row["attack"] == "jpeg"
    assert row["distance ↑ damage"].startswith("+5.0"), "clean 40, clean_attacked 45"
    assert (row["purify (s)"], row["purify (MB)"], row["train (s)"]) == ("3.00", "300", "9.00")
    (alone,) = boards(
        [make_record({"clean": (40.0, 0.8), "protected": (70.0, 0.4)}, subject=s, attack="none") for s in "01"]
    )
    assert attack_costs(alone) is None


def test_an_attack_is_beaten_by_the_cheaper_one_that_leaves_least_of_the_same_protections():
    def record(attack: str, seconds: float, purified: float, subject: str, protect: str = "eudp"):
        scores = SCORES | {"purified": (purified, 0.5)}
        made = make_record(scores, subject=subject, attack=attack, protect=protect)
        made["stages"].append(_stage(f"attack {attack} on {protect}", f"{attack}{subject}{protect}", seconds))
        return made

    records = [
        record(attack, seconds, left, subject)
        for subject in "01"
        for attack, seconds, left in (
            ("diffpure", 9.0, 60.0),
            ("blur", 1.0, 55.0),
            ("jpeg", 1.0, 50.0),
            ("webp", 1.0, 45.0),
        )
    ]
    records.append(record("impress", 9.0, 70.0, "0", "glaze"))
    (board,) = boards(records)
    rows = attack_costs(board).tables[0].reset_index().set_index("attack")
    assert list(rows.index) == ["webp", "jpeg", "blur", "diffpure", "impress"], "the one first that leaves least"
    beaten = rows["distance ↑ beaten by"]
    assert beaten["diffpure"] == "webp: +15.0 (victims do not differ) †", "no spread: no claim"
    (alone,) = boards([record for record in records if record["cell"]["subject"] == "0"])
    beaten_once = attack_costs(alone).tables[0]["distance ↑ beaten by"]
    assert beaten_once["diffpure"] == "webp: +15.0 (1 victim) †", "one victim has no interval: no claim"
    assert list(beaten[["webp", "jpeg", "blur"]]) == ["-"] * 3, "none of them is cheaper than another"
    assert beaten["impress"] == "-", "no other attack met this protection"
    assert rows["distance ↑ left"]["webp"].startswith("+5.0"), "clean 40, purified 45"


def test_attacks_with_a_purifier_of_their_own_stand_beside_the_others():
    def record(attack: str, **own: str):
        settings = {"model": {"name": "micro"}, **({"purifier": {"name": own["purifier"]}} if own else {})}
        return make_record(attack=attack, settings=settings, **own)

    made = [
        record("jpeg"),
        record("diffpure", purifier="micro_pixel"),
        record("impress"),
        record("impress", purifier="micro_c"),
    ]
    (board,) = boards(choose({Path(str(i)): r for i, r in enumerate(made)}).ok)
    assert sorted({r["cell"]["attack"] for r in board.records}) == [
        "diffpure",
        "impress",
        "impress (purifier micro_c)",
        "jpeg",
    ]
    assert board.title.endswith("micro -> micro, purifier micro or the attack's own")
    (plain,) = boards([record("jpeg")])
    assert plain.title.endswith("micro -> micro, purifier micro")
