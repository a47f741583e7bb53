"""From evidence to one of three verdicts. There is no fourth, and none of them says "clean".

* backdoor found: a class is so unusual that backdoor-free models show it in less than 1 % of scans,
  and the recovered perturbation works on images it was not computed from;
* suspicious: a class lies outside what backdoor-free models show (5 %), without that proof;
* nothing found: neither, which proves nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import msgspec

from bezoar.methods.method import Evidence


class Verdict(StrEnum):
    """What a scan says about a model."""

    BACKDOOR_FOUND = "backdoor found"
    SUSPICIOUS = "suspicious"
    NOTHING_FOUND = "nothing found"


class Levels(msgspec.Struct, frozen=True, kw_only=True):
    """When a verdict is given.

    Attributes:
        suspicious: largest p-value of a suspicious class (family-wise false-alarm rate).
        found: largest p-value of a class for *backdoor found*.
        carried: smallest share of held-out images of other classes that the recovered perturbation
            must carry into the class for *backdoor found*.
    """

    suspicious: float = 0.05
    found: float = 0.01
    carried: float = 0.8


@dataclass(frozen=True)
class Judgement:
    """A verdict and what decided it; classes are indices."""

    verdict: Verdict
    suspects: tuple[int, ...]
    ranking: tuple[int, ...]
    p_values: tuple[float, ...]
    reasons: tuple[str, ...]


def judge(
    evidence: Sequence[Evidence], classes: Sequence[str], levels: Levels | None = None
) -> Judgement:
    """Combines the witnesses: each class keeps its smallest p-value times their number.

    Args:
        evidence: one for each witness, at least one; all over the same classes.
        classes: the class names.
        levels: the limits of the verdicts.
    """
    levels = levels or Levels()
    witnesses = len(evidence)
    count = len(classes)
    p_values = [min(1.0, witnesses * min(e.p_values[k] for e in evidence)) for k in range(count)]

    def unusual(k: int) -> tuple[float, float]:
        scores = [e.scores[k] for e in evidence if e.scores[k] == e.scores[k]]
        return p_values[k], min(scores, default=float("inf"))

    ranking = sorted(range(count), key=unusual)
    suspects = [k for k in ranking if p_values[k] <= levels.suspicious]
    proven = []
    reasons = []
    for k in suspects:
        witness = min(evidence, key=lambda e: e.p_values[k])
        reasons.append(
            f"Class {classes[k]}: {witness.statistic[0].lower()}{witness.statistic[1:]} is "
            f"{witness.values[k]:.3g}, {-witness.scores[k]:.1f} standard deviations below the "
            f"other classes ({_p(p_values[k])}, corrected for having picked the smallest of "
            f"{count})."
        )
        if witness.carried is None:
            continue
        share = witness.carried[k]
        enough = share >= levels.carried
        reasons.append(
            f"Recovered from half of the images, that shift carries {100 * share:.0f} % of the "
            f"other half into class {classes[k]}; {100 * levels.carried:.0f} % are "
            f"{'needed and reached' if enough else 'needed'} for a proof."
        )
        if enough and p_values[k] > levels.found:
            reasons.append(f"A finding needs p <= {levels.found:g}, too; that is not reached.")
        if enough and p_values[k] <= levels.found:
            proven.append(k)
    if proven:
        verdict = Verdict.BACKDOOR_FOUND
    elif suspects:
        verdict = Verdict.SUSPICIOUS
    else:
        verdict = Verdict.NOTHING_FOUND
        first = ranking[0]
        reasons.append(
            f"No class stands out: the most unusual one is {classes[first]} with "
            f"{_p(p_values[first])}, and {levels.suspicious:g} would be suspicious."
        )
    return Judgement(verdict, tuple(suspects), tuple(ranking), tuple(p_values), tuple(reasons))


def _p(value: float) -> str:
    return "p < 0.0001" if value < 1e-4 else f"p = {value:.2g}"
