"""Writing and reading records: what comes back is what was written, and what is wrong is named."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pandas
import pytest
import torch
from factory import make_arm, make_record
from hypothesis import given
from hypothesis import strategies as st

from udpbench.benchmark.run import run
from udpbench.benchmark.store import Store
from udpbench.core.component import check_plain
from udpbench.interfaces import Log
from udpbench.results import record as R
from udpbench.results import schema
from udpbench.results.gather import record_of


def test_what_is_written_comes_back(tmp_path: Path) -> None:
    made = make_record()
    R.write(tmp_path / "a" / "cell.json", made)
    assert R.read_records(tmp_path) == [made]
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["cell.json"]  # nothing left beside it


def test_key_order_does_not_depend_on_the_order_of_making(tmp_path: Path) -> None:
    made = make_record()
    turned = {k: made[k] for k in reversed(made)} | {"arms": dict(reversed(made["arms"].items()))}
    R.write(tmp_path / "a.json", made)
    R.write(tmp_path / "b.json", turned)  # type: ignore[arg-type]
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    assert list(json.loads((tmp_path / "a.json").read_text()))[:3] == ["schema", "status", "cell"]


@pytest.mark.parametrize(
    ("bad", "said"),
    [(float("nan"), "clean distance: value nan is not finite; a missing metric belongs in"),
     (float("inf"), "clean distance: value inf is not finite; a missing metric belongs in"),
     (None, r"arms\.clean\.metrics\.distance\.value must be float, given NoneType"),
     (True, r"arms\.clean\.metrics\.distance\.value must be float, given bool"),
     ("1", r"arms\.clean\.metrics\.distance\.value must be float, given str")],
)  # fmt: skip
def test_a_score_that_is_no_number_is_refused(tmp_path: Path, bad: object, said: str) -> None:
    made = make_record()
    made["arms"]["clean"]["metrics"]["distance"]["value"] = bad  # type: ignore[typeddict-item]
    with pytest.raises(ValueError, match=said):
        R.write(tmp_path / "a.json", made)
    assert not list(tmp_path.iterdir())


NAMES = st.sampled_from("abc")


@given(st.recursive(st.floats(), lambda x: st.lists(x, max_size=3) | st.dictionaries(NAMES, x, max_size=3)))
def test_no_nan_passes_anywhere(value: object) -> None:
    made = make_record(settings={"deep": value})
    if re.search("NaN|Infinity", json.dumps(value)):
        with pytest.raises(ValueError, match=r"cell: config\.deep.* is (nan|inf|-inf)"):
            check_plain(made, "cell")
    else:
        check_plain(made, "cell")


def test_what_json_cannot_hold_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"a\.json: config\.where is a Posix\w*Path; allowed are"):
        R.write(tmp_path / "a.json", make_record(settings={"where": tmp_path}))


FACTS, STAGE = make_record()["facts"], make_record()["stages"][0]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        ({"schema": 3}, r"x\.json: record schema 3 cannot be read; allowed are 1 and 2"),
        ({"schema": None}, "record schema None"),
        ({"arms": []}, r"record\.arms must be dict, given list"),
        ({"cell": {}}, "cell lacks data, subject, budget"),
        ({"status": "done"}, "unknown status 'done'; allowed are ok, failed"),
        ({"status": "failed"}, "status 'failed' does not go with error None"),
        ({"arms": {"dirty": make_arm(1.0, 0.5)}}, "unknown arm 'dirty'; allowed are pretrained"),
        ({"arms": {"clean": {"metrics": {}}}}, "arms.clean lacks absent, key, curve, images"),
        ({"facts": {"budget": None}}, "record.facts lacks preset, edits, embedded, protected_fraction"),
        ({"config": {"task": True}}, r"record\.config\.task must be dict, given bool"),
        ({"config": {"metrics": {"extra": [1]}}}, r"record\.config\.metrics\.extra must be dict, given list"),
        (
            {"config": {"data": {"inner": {"_target_": 1}}}},
            r"record\.config\.data\.inner\._target_ must be str, given int",
        ),
        ({"provenance": {"packages": True}}, r"record\.provenance\.packages must be dict, given bool"),
        ({"provenance": {"commit": 1}}, r"record\.provenance\.commit must be str, given int"),
        ({"counts": {"unet_image": "many"}}, r"record\.counts\.unet_image must be int, given str"),
        ({"counts": {"unet_image": 10**400}}, r"record\.counts\.unet_image is larger than any number"),
        ({"arms": {"clean": make_arm(1.0, 0.5) | {"curve": {"full": {}}}}}, "arm clean has a curve at 'full'"),
        ({"arms": {"clean": make_arm(1.0, 0.5) | {"curve": {"nan": {}}}}}, "arm clean has a curve at 'nan'"),
        ({"arms": {"clean": make_arm(1e308, 0.5)}}, r"clean distance: value 1e\+308 is not finite"),
        ({"facts": FACTS | {"budget": {"kind": "perceptual", "eps": 16, "distance": 0.4}}}, "lacks network, score"),
        ({"stages": [STAGE | {"name": " "}]}, "a stage has no name"),
    ],
)
def test_a_wrong_schema_names_the_file(tmp_path: Path, spoil: dict, message: str) -> None:
    (tmp_path / "x.json").write_text(json.dumps({**make_record(), **spoil}))
    with pytest.raises(ValueError, match=message) as caught:
        R.read_records(tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_metric_is_measured_or_absent_not_both() -> None:
    made = make_record()
    made["arms"]["clean"]["absent"]["distance"] = "too few"
    with pytest.raises(ValueError, match="arm clean has distance both measured and absent"):
        R.check(made, "x")


@pytest.mark.parametrize("text", ['{"schema": 1, "cell"', '{"schema": NaN}', "\xff"])
def test_a_broken_file_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.json").write_bytes(text.encode("latin1"))
    with pytest.raises(ValueError, match=r"x\.json: cannot be read as JSON"):
        R.read_records(tmp_path)


def test_other_json_is_left_alone_and_order_is_by_path(tmp_path: Path) -> None:
    for name, subject in (("b/1.json", "7"), ("a/2.json", "3")):
        R.write(tmp_path / name, make_record(subject=subject))
    (tmp_path / "data.json").write_text('{"instance_prompt": "sks"}')
    assert [r["cell"]["subject"] for r in R.read_records(tmp_path)] == ["3", "7"]


def test_a_folder_without_records_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no record JSON under"):
        R.read_records(tmp_path)
    with pytest.raises(ValueError, match="is not a folder"):
        R.read_records(tmp_path / "nowhere")


def test_long_table_has_a_row_per_arm_and_metric() -> None:
    table = pandas.DataFrame(R.long_rows([make_record(), make_record(subject="1", error="boom")]))
    assert list(table.columns) == list(R.LONG)
    assert len(table) == 7 * 3  # seven arms; distance, similarity, and fid that is absent
    fid = table[table.metric == "fid"]
    assert fid.value.isna().all()
    assert fid.reason.str.startswith("needs 1000").all()
    clean = table[(table.arm == "clean") & (table.metric == "distance")].iloc[0]
    assert (clean.value, clean.better_protected, clean.seed) == (40.0, "up", 0)
    assert (clean.budget_kind, clean.eps, clean.preset) == ("linf", 8.0, "matched")


def test_metrics_are_listed_primary_first_and_must_agree() -> None:
    made = make_record()
    made["arms"]["clean"]["metrics"]["a"] = {"value": 1.0, "n": 1, "better_protected": "down", "primary": False}
    assert list(R.metrics_of([made])) == ["distance", "a", "similarity"]
    other = make_record()
    other["arms"]["clean"]["metrics"]["distance"]["better_protected"] = "down"
    with pytest.raises(ValueError, match="metric distance: better_protected is up in one record and down in another"):
        R.metrics_of([made, other])


def test_reading_records_imports_nothing_heavy() -> None:
    code = "import udpbench.results.record, sys; print(sorted({'torch', 'pandas', 'scipy'} & set(sys.modules)))"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )


KINDS = (
    schema.Record,
    schema.CellNames,
    schema.Facts,
    schema.BudgetFacts,
    schema.ArmScores,
    schema.Score,
    schema.StageCost,
    schema.Provenance,
)


@pytest.mark.parametrize("kind", KINDS)
def test_every_field_and_arm_is_described(kind: type) -> None:
    text = (Path(__file__).parent.parent / "docs" / "records.md").read_text()
    names = set(re.findall(r"`(\w+)`", text))
    assert not set(kind.__annotations__) - names
    assert not {*schema.ARMS, *schema.LONG, *schema.STATUS, *schema.DIRECTIONS} - names


EXPERIMENTS = Path(__file__).parent.parent / "experiments"


@pytest.mark.slow
def test_records_of_schema_1_are_read_with_their_facts_as_fields() -> None:
    def facts(study: str, **cell: object) -> list[dict]:
        found = R.read_records(EXPERIMENTS / study / "records")
        return [r["facts"] for r in found if all(r["cell"].get(k) == v for k, v in cell.items())]

    assert facts("first_light", budget="linf_16")[0] == {
        "budget": {"kind": "linf", "eps": 16.0}, "preset": "matched", "edits": False, "embedded": True,
        "protected_fraction": 1.0,
    }  # fmt: skip
    assert all(found["edits"] for found in facts("impress", task="img2img"))
    assert {found["protected_fraction"] for found in facts("udp", task="ddpm")} == {0.5, 0.8, 1.0}
    (made,) = R.read_records(EXPERIMENTS / "make_run" / "records")
    assert (made["schema"], made["cell"]["purifier"]) == (2, "micro")
    assert next(iter(made["arms"])) == "pretrained"
    assert set(made["perturbation"]) == {"noise", "protected", "purified", "clean_attacked"}
    assert R.score_of(made, "clean", "subject_acc")["better_protected"] == "down"


def test_a_broken_record_of_schema_1_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text('{"schema": 1, "cell": {}}')
    with pytest.raises(ValueError, match=r"x\.json: record of schema 1 cannot be read"):
        R.read_records(tmp_path)


@pytest.mark.parametrize("text", ["{", json.dumps({**make_record(), "counts": {"a": 1}}).replace('"a": 1', '"a": 1.5'),
                                  json.dumps(make_record()).replace("8.0", "1e999")])  # fmt: skip
def test_a_broken_record_is_a_line_with_its_path_and_the_others_are_read(tmp_path: Path, text: str) -> None:
    R.write(tmp_path / "a.json", make_record())
    (tmp_path / "b.json").write_text(text)
    refused: list[str] = []
    assert list(R.read_files(tmp_path, refused=refused)) == [tmp_path / "a.json"]
    (line,) = refused
    assert line.startswith(f"{tmp_path / 'b.json'}: ")
    with pytest.raises(ValueError):
        R.read_files(tmp_path)


def test_a_score_of_equally_many_pictures_says_how_many_those_are(graph, tmp_path: Path) -> None:
    """Six are generated; where the reference has four, precision takes as many of them."""
    made = graph(
        *("protect=none", "arms=[pretrained]", "task.sample_steps=1", "data.train=2", "data.reference=4"),
        *("data.heldout=1", "data.validation=4", "metrics.bundle.kernel_distance.minimum=4"),
        "metrics.bundle.precision_recall.minimum=4",
    )
    store = Store(tmp_path, torch.device("cpu"), Log(), 8)
    scores = record_of(made, store, {}, run(made, store))["arms"]["pretrained"]["metrics"]
    assert {name: scores[name]["n"] for name in ("kd_efflite0", "precision_efflite0", "recall_efflite0")} == {
        "kd_efflite0": 6,
        "precision_efflite0": 4,
        "recall_efflite0": 4,
    }


def test_what_is_no_record_at_all_is_told_and_left_out(tmp_path):
    for text in ("[]", "null", "3"):
        (tmp_path / "x.json").write_text(text)
        with pytest.raises(ValueError, match=r"x\.json: is no record, which is a JSON object"):
            R.read(tmp_path / "x.json")
    (tmp_path / "x.json").unlink()
    R.write(tmp_path / "good.json", make_record())
    (tmp_path / "z.json").symlink_to("/gone")
    (tmp_path / "folder.json").mkdir()
    refused: list[str] = []
    assert list(R.read_files(tmp_path, refused=refused)) == [tmp_path / "good.json"]
    assert [line.partition(":")[0] for line in refused] == [str(tmp_path / "folder.json"), str(tmp_path / "z.json")]
