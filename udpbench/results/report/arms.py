"""What arms scored, what was done to their pictures, and what clean victims learnt."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, stdev

from udpbench.results import flags
from udpbench.results.record import ARMS, Record, score_of
from udpbench.results.report.boards import Board
from udpbench.results.report.document import Section, Table
from udpbench.results.stats import values, victim
from udpbench.results.table import ARROW, significant

_SHARED = ("pretrained", "clean", "noise", "upper_bound")  # the same whatever protects and attacks


def arm_rows(board: Board) -> list[tuple[str, str, list[Record]]]:
    """(what to call it, arm, its records).

    Shared arms once, the others once for each protection and attack they depend on.
    """
    found: dict[tuple[int, str], tuple[str, str, list[Record]]] = {}
    for record in board.records:
        protect, attack = record["cell"]["protect"], record["cell"]["attack"]
        said = {
            "protected": f": {protect}",
            "noise_rms": f": {protect}",
            "clean_attacked": f": {attack}",
            "purified": f": {protect} / {attack}",
        }
        for arm in record["arms"]:
            name = arm + said.get(arm, "")
            found.setdefault((ARMS.index(arm), name), (name, arm, []))[2].append(record)
    return [found[key] for key in sorted(found)]


def arm_means(board: Board) -> Section:
    """Mean ± standard deviation over victims of every arm and metric."""
    shown = [m for m in board.shown or board.metrics if m in board.metrics]
    rows = []
    for name, arm, records in arm_rows(board):
        scores = [list(values(records, arm, m).values()) for m in shown]
        rows.append((name, str(len({victim(r) for r in records})), *(_spread(x) for x in scores)))
    text = ["Mean ± standard deviation over victims; * primary; arrows: what the owner wants."]
    odd = [arm for arm in _SHARED if _disagree(board, arm)]
    if odd:
        text.append(
            f"Records do not agree on the scores of {', '.join(odd)} for the same victim (other device or settings); "
            "the first is shown."
        )
    text += [f"Absent: {line}." for line in _absent(board)]
    return Section("Arms", 4, tuple(text), (Table(("arm", "victims", *_heads(board, shown)), tuple(rows)),))


def _heads(board: Board, metrics: Sequence[str]) -> list[str]:
    infos = [(m, board.metrics[m]) for m in metrics]
    return [f"{m}{'*' if info['primary'] else ''} {ARROW[info['better_protected']]}" for m, info in infos]


def victims(board: Board) -> Section:
    """Every arm of every victim by itself, at every multiple of the training steps that was scored."""
    rows = []
    for place, (name, arm, records) in enumerate(arm_rows(board)):
        for (subject, seed), record in {victim(r): r for r in reversed(records)}.items():
            scores = (_along(record, arm, m) for m in board.ranked_by)
            rows.append(((len(subject), subject, seed, place), (subject, str(seed), name, *scores)))
    multiples = sorted({m for r in board.records for part in r["arms"].values() for m in part["curve"]}, key=float)
    headers = ("subject", "seed", "arm", *_heads(board, board.ranked_by))
    text = [f"Several scores: at {', '.join(f'{m}x' for m in multiples)} the training steps."] if multiples else []
    return Section("Victims", 4, tuple(text), (Table(headers, tuple(row for _, row in sorted(rows)), left=3),))


def _along(record: Record, arm: str, metric: str) -> str:
    curve = record["arms"][arm]["curve"]
    points = [curve[m][metric] for m in sorted(curve, key=float) if metric in curve[m]]
    if not points and (score := score_of(record, arm, metric)) is not None:
        points = [score["value"]]
    return ", ".join(map(significant, points)) or "-"


def pictures(board: Board) -> Section | None:
    """How much protections and attacks changed the pictures; None where nothing did.

    ``board.shown`` chooses among these measures, too.
    """
    every = sorted({k for r in board.records for part in r["perturbation"].values() for k in part})
    measures = [k for k in board.shown if k in every] or every
    rows = []
    for name, arm, records in arm_rows(board):
        found = {victim(r): r["perturbation"][arm] for r in reversed(records) if arm in r["perturbation"]}
        if found:
            cells = ([part[k] for part in found.values() if k in part] for k in measures)
            rows.append((name, str(len(found)), *(_spread(x) for x in cells)))
    text = "Mean ± standard deviation over victims; linf, rms in levels of 255, psnr in dB."
    return Section("Pictures", 4, (text,), (Table(("arm", "victims", *measures), tuple(rows)),)) if rows else None


def learning(board: Board) -> Section | None:
    """How far clean victims get in the window between no training and a perfect victim; None without any such arm."""
    rows = []
    for metric in board.ranked_by:
        wants = board.metrics[metric]["better_protected"]
        found: dict[tuple[str, int], dict[str, float]] = {}
        for record in board.records:
            at = {arm: s["value"] for arm in _WINDOW if (s := score_of(record, arm, metric)) is not None}
            if len(at) == len(_WINDOW):
                found.setdefault(victim(record), at)
        if found:
            means = [significant(fmean(at[arm] for at in found.values())) for arm in _WINDOW]
            having = [at for at in found.values() if flags.has_window(wants, at)]
            shares = [flags.window_share(at["pretrained"], at["upper_bound"], at["clean"]) for at in having]
            few = sum(share < flags.LEARNT for share in shares)
            covered = _range(shares) if shares else "-"
            rows.append((metric, str(len(found)), *means, covered, str(few), str(len(found) - len(having))))
    covered = "window covered, mean (least to most)"
    headers = ("metric", "victims", *_WINDOW, covered, f"under {flags.LEARNT:.0%}", "no window")
    text = (
        "How far clean victims get from pretrained (no training) to upper bound (a perfect victim); under "
        f"{flags.LEARNT:.0%} a victim says nothing of a protection.",
    )
    return Section("Learning", 4, text, (Table(headers, tuple(rows)),)) if rows else None


_WINDOW = ("pretrained", "clean", "upper_bound")


def _range(shares: Sequence[float]) -> str:
    mean, low, high = (f"{x:.0%}" for x in (fmean(shares), min(shares), max(shares)))
    return f"{mean} ({low} to {high})" if len(shares) > 1 else mean


def _spread(x: list[float]) -> str:
    if not x:
        return "-"
    return f"{significant(fmean(x))} ± {significant(stdev(x), 2)}" if len(x) > 1 else significant(x[0])


def _disagree(board: Board, arm: str) -> bool:
    seen: dict[tuple[str, tuple[str, int]], float] = {}
    for record in (r for r in board.records if arm in r["arms"]):
        for metric, score in record["arms"][arm]["metrics"].items():
            if seen.setdefault((metric, victim(record)), score["value"]) != score["value"]:
                return True
    return False


def _absent(board: Board) -> list[str]:
    found = {(m, why) for r in board.records for part in r["arms"].values() for m, why in part["absent"].items()}
    return [f"{metric} ({why})" for metric, why in sorted(found)]
