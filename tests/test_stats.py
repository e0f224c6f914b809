"""Differences, comparisons and flags of small records whose answers are known."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from factory import SCORES, make_arm, make_record, shifted

from udpbench.results import flags
from udpbench.results import stats as S
from udpbench.results.intervals import seed_sd
from udpbench.results.report import compare
from udpbench.results.report.boards import Board, boards
from udpbench.results.report.compare import comparisons
from udpbench.results.report.render import Section
from udpbench.results.report.write import flag_section
from udpbench.results.schema import Record
from udpbench.results.words import interval_text, recovery_text, significant


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def test_a_sign_is_the_direction_of_better_protection() -> None:
    assert (S.sign("up"), S.sign("down")) == (1, -1)
    with pytest.raises(ValueError, match="unknown 'higher'; allowed are up, down"):
        S.sign("higher")


def test_differences_pair_within_the_record() -> None:
    records = [make_record(shifted(10.0 * i), subject=str(i)) for i in range(3)]
    assert S.differences(records, "protected", "clean", "distance") == {(str(i), 0): 30.0 for i in range(3)}
    assert S.differences(records, "purified", "clean_attacked", "similarity")["0", 0] == pytest.approx(0.15)
    assert S.differences(records, "noise_rms", "clean", "distance") == {}


def eudp_and_udp() -> list[Record]:
    records = []
    for s in range(3):
        for k in range(2):
            for attack in ("none", "jpeg"):
                who = {"subject": str(s), "seed": k, "attack": attack}
                records.append(make_record(shifted(s + 0.1 * k, protected=4.9 + k + 0.1 * s), protect="eudp", **who))
                records.append(make_record(shifted(s + 0.1 * k), protect="udp", **who))
    return records


def compared(records: list[Record], make: Callable[[Board], Section | None] = comparisons) -> dict[tuple, list[str]]:
    """(a - b, arm or protection, metric) -> [difference, half-width, victims, verdict], of records of one board."""
    (board,) = boards(records)
    section = make(replace(board, shown=("distance", "similarity")))
    if section is None:
        return {}
    return {index: list(row) for index, row in zip(section.tables[0].index, section.tables[0].to_numpy())}


def test_protections_are_paired_on_the_same_victims() -> None:
    found = compared(eudp_and_udp())
    distance, _, victims, verdict = found["eudp - udp", "protected", "distance"]
    assert distance.startswith("+5.50 [")
    assert victims == "6"  # the attack is no reason to count a victim twice
    assert verdict == "eudp protects better"
    assert found["eudp - udp", "protected", "similarity"][0] == "0 (victims do not differ)"
    named = [make_record(**{**r["cell"], "protect": {"eudp": "z"}.get(r["cell"]["protect"], "udp")},
             scores={arm: (part["metrics"]["distance"]["value"], part["metrics"]["similarity"]["value"])
                     for arm, part in r["arms"].items()}) for r in eudp_and_udp()]  # fmt: skip
    assert compared(named)["udp - z", "protected", "distance"][0].startswith("-5.50 [")


def test_protections_are_compared_with_the_noise_arm_and_after_attacks() -> None:
    found = compared(eudp_and_udp())
    mean = SCORES["protected"][0] + 5.5 - SCORES["noise"][0]
    assert found["eudp - noise", "protected", "distance"][0].startswith(f"+{mean:.1f} [")
    alike = "+0.380 (victims do not differ)"  # better protected: down
    assert found["eudp - noise", "protected", "similarity"][0] == alike
    assert {of for names, of, _ in found if names == "eudp - udp"} == {"protected", "purified: jpeg", "purified: none"}
    assert {of for names, of, _ in found if names == "eudp - noise"} == {"protected"}  # noise is never attacked


def test_protections_with_too_many_pairs_to_list_are_compared_with_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare, "MOST", 0)
    assert {(names, of) for names, of, _ in compared(eudp_and_udp())} == {
        ("eudp - noise", "protected"),
        ("udp - noise", "protected"),
    }


def test_comparisons_keep_conditions_apart_and_count_the_unpaired() -> None:
    records = [make_record(protect="eudp"), make_record(protect="eudp", subject="1"), make_record(protect="udp")]
    assert compared(records)["eudp - udp", "protected", "distance"][2] == "1 (1 unpaired)"
    others = [make_record(protect=p, label="SD 1.5", owner_prompt="data") for p in ("eudp", "udp")]
    tables = [comparisons(board).tables[0] for board in boards([*records, *others])]
    of = [table.loc[("eudp - udp", "protected", "distance"), "victims"] for table in tables]
    assert of == ["1", "1 (1 unpaired)"]


def test_a_sound_cell_raises_no_flag() -> None:
    assert flags.of_record(make_record()) == []


def spoilt(**arms: float) -> Record:
    return make_record({arm: (arms.get(arm, d), s) for arm, (d, s) in SCORES.items()})


def windowless(clean: float) -> Record:
    """Without a window on the distance; ``clean``: what the clean victim has of the similarity, another primary score."""
    record = make_record(SCORES | {"upper_bound": (100.0, 0.95), "clean": (40.0, clean)})
    for part in record["arms"].values():
        part["metrics"]["similarity"]["primary"] = True
    return record


def larger(arm: str, n: int) -> Record:
    record = make_record()
    record["arms"][arm] = make_arm(*SCORES[arm], n=n)
    return record


def unranked() -> Record:
    record = make_record()
    for part in record["arms"].values():
        part["metrics"]["distance"]["primary"] = False
    return record


@pytest.mark.parametrize(
    ("record", "flag"),
    [
        (spoilt(clean=77.0), "victim did not learn: clean covers 29% of the pretrained-upper bound window on distance"),
        (spoilt(clean=76.32), "victim did not learn: clean covers 29.6% of the pretrained-upper bound window on dist"),
        (spoilt(clean=76.0004), "victim did not learn: clean covers 29.9995% of the pretrained-upper bound window on "),
        (spoilt(clean=100.2), "victim did not learn: clean covers 0% of the pretrained-upper bound window on distance"),
        (
            windowless(clean=0.11),
            "victim did not learn: clean covers 1% of the pretrained-upper bound window on similar",
        ),
        (windowless(clean=0.50), "no window: upper bound is no better than pretrained on distance"),
        (spoilt(upper_bound=100.0), "no window: upper bound is no better than pretrained on distance"),
        (spoilt(protected=100.1), "saturated: protected is worse for the thief than pretrained on distance"),
        (
            spoilt(clean_attacked=64.1),
            "attack ruins clean data: it costs 30% of the pretrained-upper bound window on distance",
        ),
        (
            {**make_record(), "perturbation": {"protected": {"linf": 9.0}}},
            "budget exceeded: protected measures linf 9/255, allowed 8/255",
        ),
        ({**make_record(), "perturbation": {"noise": {"linf": 9.0}}}, "budget exceeded: noise measures linf 9/255"),
        (
            {
                **make_record(budget="rms_4.5"),
                "perturbation": {"noise": {"rms": 4, "rms_max": 5}},
            },
            "budget exceeded: noise measures rms_max 5/255, allowed 4.5/255",
        ),
        ({**make_record(), "provenance": {"dirty": True}}, "dirty tree: not as in the recorded commit"),
        (
            larger("upper_bound", 1000),
            "sets of different sizes: pretrained 256, clean 256, noise 256, protected 256, purified 256, ",
        ),
        (unranked(), "no primary score could be measured"),
        (
            {**make_record(), "stages": [{**make_record()["stages"][0], "commit": "0123-dirty"}]},
            "dirty tree: done by code that is in no commit: protect",
        ),
    ],
)
def test_flags(record: Record, flag: str) -> None:
    (found,) = flags.of_record(record)
    assert found.startswith(flag)


def test_flags_at_their_limits_are_not_raised() -> None:
    assert flags.of_record(spoilt(clean=76.0, clean_attacked=76.0)) == []  # exactly 30 % learnt
    assert flags.of_record(spoilt(protected=100.0)) == []
    assert flags.of_record({**make_record(), "perturbation": {"protected": {"linf": 8.0}}}) == []


def test_flags_of_a_group() -> None:
    other = make_record(subject="0", seed=1)
    other["stages"][0]["device"] = "cuda"
    assert flags.cross_device([make_record(), other]) == "cross-device comparison: cpu, cuda"
    assert flags.no_seed_sd([None, 0.5]) is None
    assert flags.no_seed_sd([None]) == flags.NO_SEED_SD
    assert flags.no_seed_sd([None], edits=True) == flags.NO_NOISE
    assert flags.few_subjects([make_record(), other]) == "few subjects: intervals rest on 1"
    assert (
        flags.few_subjects([make_record(subject="", seed=k) for k in (0, 1)])
        == "one data set: intervals rest on its seeds"
    )
    whole = [make_record(subject=str(s), seed=k) for s in range(3) for k in range(2)]
    assert flags.of_group(whole, {"distance": 0.5}) == []
    assert flags.of_group(whole, {"distance": None}) == [flags.NO_SEED_SD]


def test_without_what_the_attack_does_to_clean_pictures_there_is_no_residual_and_it_says_why() -> None:
    scores = {arm: pair for arm, pair in SCORES.items() if arm != "clean_attacked"}
    found = S.summarise([make_record(scores, seed=k) for k in range(3)], "distance", 0.1, np.random.default_rng(0))
    assert found.residual is None
    assert found.recovery.reason == "n/a: no arm clean_attacked"


def test_an_effect_has_one_interval_whatever_else_is_asked_of_it() -> None:
    """Beside an attack, whose recovery resamples too, and without one."""
    attacked = [
        make_record(shifted(s % 3, protected=1.7 * s), subject=str(s), seed=k) for s in range(7) for k in (0, 1)
    ]
    alone = [make_record({a: v for a, v in SCORES.items() if a != "purified"}) for _ in attacked]
    for plain, record in zip(alone, attacked, strict=True):
        plain["cell"] = record["cell"]
        plain["arms"] = {a: part for a, part in record["arms"].items() if a != "purified"}
    one, two = (S.summarise(r, "distance", 0.1, np.random.default_rng(0)) for r in (attacked, alone))
    assert one.recovery.interval is not None
    assert one.effect == two.effect
    assert one.effect is not None
    assert one.effect.method == "bootstrap"


DOCS = Path(__file__).parent.parent / "docs"


def test_records_of_several_versions_are_told_and_compared_with_their_own_clean_arms() -> None:
    """A new version of the task moves every arm by 20: no protection is better for that."""
    records = [make_record(protect="eudp", subject=s) for s in "012"]
    newer = [make_record(shifted(20.0, protected=1.0 + int(s)), protect="udp", subject=s) for s in "012"]
    made = [(record, 1) for record in records] + [(record, 2) for record in newer]
    for record, version in made:
        record["arms"]["clean"]["key"] = f"clean{version}"
        parts = {"task": {"version": version}, "protect": {"version": version}}
        record["provenance"]["parts"] = parts  # type: ignore[typeddict-unknown-key]
    (board,) = boards([*records, *newer])
    told = flags.mixed_versions(board.records)
    assert told == "made differently: versions of task dreambooth 1, 2; several keys of one victim's clean"
    (row,) = [row for row in flag_section([board]).tables[0].index if row[2] == told]
    assert (row[1], row[3]) == ("all", "all")
    assert compared(board.records)["eudp - udp", "protected", "distance"][0].startswith("-2.00 [")
    assert flags.mixed_versions(records) is None


def test_devices_are_compared_over_the_whole_board() -> None:
    records = [make_record(protect=name, subject=s) for name in ("eudp", "udp") for s in "012"]
    for record in records[3:]:
        record["stages"][0]["device"] = "cuda"
    (board,) = boards(records)
    rows = [row[1:] for row in flag_section([board]).tables[0].index if row[2].startswith("cross-device")]
    assert rows == [("all", "cross-device comparison: cpu, cuda", "all")]


def test_every_flag_is_explained() -> None:
    """By the function that raises it; nothing is explained that there is not."""
    named = set(re.findall(r"\| `(\w+)` \|", (DOCS / "beware.md").read_text()))
    group = {flags.cross_device, flags.mixed_versions, flags.no_seed_sd, flags.few_subjects}
    assert named == {check.__name__ for check in (*flags.OF_RECORD, *group)}


def test_the_worked_example_of_the_statistics_is_what_the_functions_say() -> None:
    text = (DOCS / "statistics.md").read_text()
    rows = re.findall(r"^\| ([abc]) \| (\d) \| (.*) \|$", text, flags=re.MULTILINE)
    records = []
    for subject, seed, cells in rows:
        arms = zip(("clean", "protected", "purified", "clean_attacked"), map(float, cells.split(" | ")), strict=True)
        records.append(make_record({arm: (score, 0.0) for arm, score in arms}, subject=subject, seed=int(seed)))
    floor = seed_sd(S.values(records, "clean", "distance"))
    found = S.summarise(records, "distance", floor, rng())
    assert (len(records), found.claimed) == (6, True)
    said = re.findall(r"\*\*([^*]+)\*\*", text.split("## A worked example")[1])
    assert said == [
        significant(floor), interval_text(found.effect), interval_text(found.residual), recovery_text(found.recovery),
    ]  # fmt: skip
