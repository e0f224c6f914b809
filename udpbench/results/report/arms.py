"""What arms scored, what was done to their pictures, and what clean victims learnt."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pandas as pd
from pandas import DataFrame, Series

from udpbench.benchmark.arms import ARMS
from udpbench.results import flags
from udpbench.results.agreement import equal
from udpbench.results.record import score_of
from udpbench.results.report.boards import Board
from udpbench.results.report.render import Section, table
from udpbench.results.schema import Record
from udpbench.results.stats import sign, victim
from udpbench.results.table import thiefs_best
from udpbench.results.words import SIGNS, metric_text, percent, significant, spread_text

LISTED = 8  # names in a sentence; more are counted

SAME = ["name", "subject", "seed", "kind", "step", "metric"]  # rows that agree in these say the same number

_CLEAN = ("clean", "clean_key")


def numbers(board: Board) -> DataFrame:
    """One row per arm, victim and number, arms in the order of tables.

    Columns: arm, protect, ``name`` (see ``arm_name``), subject, seed, ``kind``, ``step`` (multiplier), metric, value;
    of scores ``clean``, that of the same record's clean arm, and ``clean_key``, the key of that arm.
    Kinds: "score"; "curve", the scores along the training; "best", the thief's best; "change", what the arm's training
    pictures measure against clean. An absent metric has no value. A number that several records hold counts once: the
    first.
    """
    found = _every(board)
    measured_first = found.iloc[found["value"].isna().to_numpy().argsort(kind="stable")]
    return measured_first.drop_duplicates(SAME).sort_index()


def _every(board: Board) -> DataFrame:
    rows = [row for record in board.records for row in _rows(record)]
    found = DataFrame(rows, columns=["place", "arm", "protect", *SAME, "value", *_CLEAN])
    found = found.astype({"value": float, "clean": float})
    return found.sort_values(["place", "name"], kind="stable", ignore_index=True)


def arm_name(arm: str, **cell: Any) -> str:
    """An arm with the names of the cell on which it depends: "noise", "purified: eudp / jpeg"."""
    of = " / ".join(str(cell[name]) for name in ARMS[arm].depends)
    return f"{arm}: {of}" if of else arm


def _rows(record: Record) -> Iterator[tuple[Any, ...]]:
    for place, arm in enumerate(ARMS):
        if arm not in record["arms"]:
            continue
        part = record["arms"][arm]
        head = (place, arm, record["cell"]["protect"], arm_name(arm, **record["cell"]), *victim(record))
        for m, score in part["metrics"].items():
            yield *head, "score", 1.0, m, score["value"], *_clean(record, m)
        others: list[tuple[Any, ...]] = [("score", 1.0, m, None) for m in part["absent"]]
        others += [("curve", float(x), m, v) for x, at in part["curve"].items() for m, v in at.items()]
        others += [("best", float(x), m, v) for m, (x, v) in thiefs_best(record, arm).items()]
        others += [("change", 1.0, m, v) for m, v in record["perturbation"].get(arm, {}).items()]
        yield from ((*head, *number, None, None) for number in others)


def _clean(record: Record, metric: str) -> tuple[float | None, str | None]:
    """The score and the key of a record's clean arm."""
    score = score_of(record, "clean", metric)
    return (None, None) if score is None else (score["value"], record["arms"]["clean"]["key"])


def arm_means(board: Board) -> Section:
    """Mean ± standard deviation over victims of every arm and metric."""
    found = numbers(board).query("kind == 'score'")
    shown = [m for m in board.shown or board.metrics if m in board.metrics]
    text = [f"Mean ± standard deviation over victims; * primary; {SIGNS}."]
    if odd := _disagreeing(board):
        listed = ", ".join(odd[:LISTED]) + (f" and {len(odd) - LISTED} more" if len(odd) > LISTED else "")
        text.append(
            f"Records do not agree on the scores of {listed} for the same victim (another device, version or setting, "
            "or an attack that is given other pictures for each protection); the first is shown."
        )
    absent = {(m, why) for r in board.records for part in r["arms"].values() for m, why in part["absent"].items()}
    text += [f"Absent: {metric} ({why})." for metric, why in sorted(absent)]
    return Section("Arms", 4, text, [_spread(found, {m: metric_text(m, board.metrics[m]) for m in shown})])


def _spread(found: DataFrame, columns: Mapping[str, str]) -> DataFrame:
    """Arms by metrics: mean ± standard deviation over victims, with their number where it is less than the arm's;
    ``columns``: metric -> header."""
    victims = found.drop_duplicates(["name", "subject", "seed"]).groupby("name", sort=False).size()
    measured = found.dropna(subset="value").groupby(["name", "metric"])["value"]
    fewer = (n := measured.size())[n < n.index.get_level_values("name").map(victims)]
    cells = measured.agg(spread_text).add(" (" + fewer.astype(str) + ")", fill_value="").unstack()
    cells = cells.reindex(index=victims.index, columns=list(columns)).rename(columns=columns).fillna("-")
    cells.insert(0, "victims", victims.astype(str))
    return cells.rename_axis(index="arm", columns=None)


def _disagreeing(board: Board) -> list[str]:
    """Arms, with what they depend on, that have two scores for one victim, apart by more than rounding."""
    values = _every(board).query("kind == 'score'").groupby(SAME, sort=False)["value"].agg(["min", "max"]).dropna()
    odd = values[[not equal(*ends) for ends in values.to_numpy()]]
    return list(dict.fromkeys(odd.index.get_level_values("name")))


def victims(board: Board) -> Section:
    """Every arm of every victim by itself, at every step multiplier that was scored."""
    found = numbers(board)
    curve = found.query("kind == 'curve'").sort_values("step", kind="stable")
    points = pd.concat([curve, found.query("kind == 'score'")], ignore_index=True)
    columns = ["subject", "seed", "place", "name", "metric"]
    points = points[(points["kind"] == "curve") | ~points.duplicated(columns)]  # a curve holds the score, too
    cells = points.groupby(columns)["value"].agg(_listed).unstack().reindex(columns=board.ranked_by).fillna("-")
    cells = cells.sort_index(level="subject", key=lambda x: x.str.len(), sort_remaining=False, kind="stable")
    cells = cells.droplevel("place").rename_axis(index={"name": "arm"}, columns=None)
    steps = ", ".join(f"{x:g}x" for x in sorted(set(curve["step"])))
    text = [f"Several scores: at {steps} the training steps."] if steps else []
    return Section("Victims", 4, text, [cells.rename(columns=lambda m: metric_text(m, board.metrics[m]))])


def _listed(found: Series) -> str:
    return ", ".join(map(significant, found.dropna())) or "-"


def pictures(board: Board) -> Section | None:
    """How much protections and attacks changed the pictures; None where nothing did.

    ``board.shown`` chooses among these measures, too.
    """
    found = numbers(board).query("kind == 'change'")
    measures = [m for m in board.shown if m in set(found["metric"])] or sorted(set(found["metric"]))
    text = "Mean ± standard deviation over victims; linf, rms in units of 1/255, psnr in dB."
    return Section("Pictures", 4, [text], [_spread(found, {m: m for m in measures})]) if measures else None


def learning(board: Board) -> Section | None:
    """How far clean victims get in the window between no training and a perfect victim; None without any such arm."""
    found, rows = numbers(board).query("kind == 'score'"), []
    for metric in board.ranked_by:
        every = found[found["metric"] == metric].pivot_table("value", ["subject", "seed"], "arm")
        at = every.reindex(columns=list(flags.WINDOW)).dropna()
        if at.empty:
            continue
        signed = sign(board.metrics[metric]["better_protected"]) * at
        covered = flags.covered(signed[flags.has_window(signed)])
        spread = f" ({percent(covered.min())} to {percent(covered.max())})" if len(covered) > 1 else ""
        row = {"metric": metric, "victims": str(len(at)), **{arm: significant(at[arm].mean()) for arm in flags.WINDOW}}
        row["window covered, mean (least to most)"] = f"{percent(covered.mean())}{spread}" if len(covered) else "-"
        row[f"under {percent(flags.LEARNT)}"] = str((covered < flags.LEARNT).sum())
        rows.append(row | {"no window": str(len(at) - len(covered))})
    text = (
        "How far clean victims get from pretrained (no training) to upper bound (a perfect victim); under "
        f"{percent(flags.LEARNT)} a victim says nothing of a protection."
    )
    return Section("Learning", 4, [text], [table(rows, ("metric",))]) if rows else None


def curves(board: Board) -> Section | None:
    """Mean scores at the step multipliers and at the thief's best one; None if no record has a curve."""
    found = numbers(board)
    found = found[found["metric"].isin(board.ranked_by)]
    rows = []
    for (name, metric), part in found.query("kind == 'curve'").groupby(["name", "metric"], sort=False):
        means = part.groupby("step")["value"].mean()
        best = found.query("kind == 'best' and name == @name and metric == @metric")
        stops = ", ".join(f"{x:g}x" for x in sorted(set(best["step"])))
        row = {"arm": name, "metric": metric, "victims": str(len(part[["subject", "seed"]].drop_duplicates()))}
        row |= {f"{step:g}x steps": significant(mean) for step, mean in means.items()}
        rows.append(row | {"thief's best": f"{significant(best['value'].mean())} (at {stops})" if stops else "-"})
    parts = [part for record in board.records for part in record["arms"].values() if part["curve"]]
    validated = all(part.get("curve_validation") for part in parts)
    where = "validation references" if validated else "the reported references, which flatters the thief"
    text = [f"Means over victims. The thief's best stop is chosen on {where}, victim by victim."]
    return Section("Training length", 4, text, [table(rows, ("arm", "metric"))]) if rows else None


def curve_points(board: Board, metric: str) -> dict[str, list[tuple[float, float]]]:
    """Arm's name -> (step multiplier, mean score), for a plot."""
    found = numbers(board).query("kind == 'curve' and metric == @metric")
    means = found.groupby(["name", "step"], sort=False)["value"].mean().sort_index(level="step", sort_remaining=False)
    return {name: list(means[name].items()) for name in found["name"].unique()}
