"""What attacks do to clean pictures, and what they cost."""

from __future__ import annotations

from collections.abc import Sequence

from udpbench.results.record import grouped
from udpbench.results.report.boards import ARROW, Board
from udpbench.results.report.choose import under
from udpbench.results.report.render import Section, table
from udpbench.results.report.standings import NO_PROTECTION, Standings
from udpbench.results.schema import Record
from udpbench.results.words import interval_text, mean_text

_TEXT = (
    "Damage to clean pictures is s(clean_attacked) - s(clean): + is worse for the thief. Costs are those of purifying "
    "a victim's pictures and of training on them, with what the attack does there: seconds, and the peak memory of the "
    "process; means over the stages that are known."
)


def attack_costs(board: Board) -> Section | None:
    """A row for each attack; None where nothing was attacked."""
    attacked = [r for r in board.records if r["arms"].keys() & {"purified", "clean_attacked"}]
    damage = next((row.left for row in Standings(board).rows if row.name == NO_PROTECTION), {})
    rows = []
    for attack, part in sorted(grouped(attacked, lambda record: record["cell"]["attack"]).items()):
        row = {"attack": attack}
        for metric in board.ranked_by:
            named = f"{metric} {ARROW[board.metrics[metric]['better_protected']]} damage"
            row[named] = interval_text(damage.get(metric, {}).get(attack))
        rows.append(row | _cost(part, "attack", "purify") | _cost(part, "train", "train"))
    return Section("Attacks: damage and cost", 4, [_TEXT], [table(rows, ("attack",))], in_latex=True) if rows else None


def _cost(records: Sequence[Record], kind: str, verb: str) -> dict[str, str]:
    """Of the distinct stages of the records of one attack; ``kind`` as of ``under``."""
    named = [(under(kind, r["cell"]["protect"], r["cell"]["attack"]), r["stages"]) for r in records]
    distinct = {s["key"]: s for names, stages in named for s in stages if s["name"] in names}.values()
    seconds, memory = (mean_text(stage[name] for stage in distinct) for name in ("seconds", "peak_mb"))
    return {f"{verb} (s)": seconds, f"{verb} (MB)": memory}
