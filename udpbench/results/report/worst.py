"""The worst case for the owner: a thief who takes the best of the attacks that were run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence, Set
from operator import itemgetter
from statistics import fmean

import numpy as np

from udpbench.results.intervals import Interval, Key, paired_interval
from udpbench.results.record import grouped
from udpbench.results.report.boards import Board, claim_text
from udpbench.results.report.render import Section, table
from udpbench.results.schema import Record
from udpbench.results.stats import differences

NONE = "none"  # the protected pictures as they are

_TEXT = (
    "What the thief is still worse off than with clean pictures, s(purified) - s(clean), if he takes the attack that "
    "leaves least. An attack's own damage counts against it. Which attack, is chosen for each subject on the other "
    "subjects (of one subject: for each seed on the other seeds), so that chance in a victim's own score does not "
    "choose for it. none: the protected pictures as they are. His price are all attacks, with a victim for each. "
    "It is of as many victims as any attack met, and over the attacks that all of these met; the others are left out: "
    "of other victims they would say something else. † no claim: the interval does not lie above the floor, or "
    "is of one subject."
)


def worst_case(board: Board) -> Section | None:
    """Each protection on the metrics that rank; None where no protection met two attacks or there is one victim."""
    rows, without = [], []
    records = [record for record in board.records if "protected" in record["arms"]]
    for protect, part in sorted(grouped(records, lambda record: record["cell"]["protect"]).items()):
        for metric in board.ranked_by:
            met = left_by_attack(part, metric)
            left = most_met(met)
            found = worst(left, board.rng(protect, metric, kind="worst"), board.sizes[metric])
            if len(met) < 3 or len(set().union(*met.values())) < 2:
                continue
            if found is None:
                without.append(f"{protect} ({metric})")
                continue
            taken = ", ".join(f"{attack} ({n})" for attack, n in sorted(found[1].items()))
            row = {"protection": protect, "metric": metric, "attacks": str(len(left) - 1)}
            row |= {"worst case": claim_text(found[0], board.floors[metric]), "taken (victims)": taken}
            rows.append(row | {"attacks left out": ", ".join(sorted(met.keys() - left.keys())) or "-"})
    if not rows and not without:
        return None
    text = [
        _TEXT,
        *([f"No worst case, for no two victims met the same attacks: {', '.join(without)}."] if without else []),
    ]
    return Section("Worst case", 4, text, [table(rows, ("protection", "metric"))] if rows else [], in_latex=True)


def left_by_attack(records: Sequence[Record], metric: str) -> dict[str, dict[Key, float]]:
    """Attack -> victim -> s - s(clean) after it; ``NONE``: of the protected pictures as they are. ``records``: those of
    one protection."""
    left = {NONE: differences(records, "protected", "clean", metric)}
    for attack, mine in sorted(grouped(records, lambda record: record["cell"]["attack"]).items()):
        left |= {attack: found} if (found := differences(mine, "purified", "clean", metric)) else {}
    return left


def most_met(left: Mapping[str, Mapping[Key, float]]) -> dict[str, Mapping[Key, float]]:
    """``left`` without the attacks that would take victims from the worst case: of as many victims as any attack met,
    those that all of them met. Of several such sets of victims the one that most attacks met."""
    met = {attack: found.keys() & left[NONE].keys() for attack, found in left.items() if attack != NONE}

    def counts(victims: Set[Key]) -> tuple[int, int]:
        return len(victims), sum(victims <= others for others in met.values())

    most = max(met.values(), key=counts, default=left[NONE].keys())
    return {attack: found for attack, found in left.items() if most <= found.keys()}


def worst(
    left: Mapping[str, Mapping[Key, float]], rng: np.random.Generator, size: float = 0.0
) -> tuple[Interval, Counter[str]] | None:
    """What the attack that leaves least leaves, and how many victims it is each attack; None without an attack or with
    one victim. ``size`` as of ``paired_interval``."""
    chosen = choices(left) if len(left) > 1 else {}
    if not chosen:
        return None
    found = paired_interval({victim: left[attack][victim] for victim, attack in chosen.items()}, rng, size=size)
    return found, Counter(chosen.values())


def choices(left: Mapping[str, Mapping[Key, float]]) -> dict[Key, str]:
    """Victim -> the attack that leaves least on the victims of other subjects (of one subject, on its other seeds);
    ``left``: attack -> victim -> what is left. Of victims that met every attack."""
    victims = sorted(set.intersection(*(set(found) for found in left.values())))
    by = 0 if len({subject for subject, _ in victims}) > 1 else 1
    units = grouped(victims, itemgetter(by))  # subjects, that count alike however many seeds they have; or seeds
    means = {
        attack: {unit: fmean(found[victim] for victim in part) for unit, part in units.items()}
        for attack, found in left.items()
    }
    chosen: dict[Key, str] = {}
    for unit, part in units.items() if len(units) > 1 else ():
        others = [other for other in units if other != unit]
        _, attack = min((fmean(mean[other] for other in others), attack) for attack, mean in means.items())
        chosen |= dict.fromkeys(part, attack)
    return chosen
