"""From evidence to one of three verdicts. There is no fourth, and none of them says "clean".

* backdoor found: a class is so unusual that backdoor-free models show it in less than 1 % of scans,
  one witness alone finds it that unusual, too, and what that witness recovered works on images it
  was not computed from, of at least two classes, through more than the features that separate these
  classes anyway;
* suspicious: a class lies outside what backdoor-free models show (5 %), without that proof;
* nothing found: neither, which proves nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

import msgspec

from bezoar.combining import Combined, combine, corrected_p_values
from bezoar.errors import InputError
from bezoar.methods.method import Evidence
from bezoar.proving import FEWEST_IMAGES, FEWEST_SOURCES, Proof
from bezoar.wording import p_in_words, within_a_sentence

Prove = Callable[[Evidence, int], Proof | None]
"""Tries on held-out images what a witness recovered for a class; None where that is nothing."""


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
        carried: smallest share of held-out images that a recovered trigger must carry into the
            class for *backdoor found*: of each of at least two other classes (``proving``).
        natural: a recovered perturbation explained to at least this share by the features that
            separate the classes anyway is no proof.

    Raises:
        InputError: a p-value outside of (0, 1), or a share outside of [0, 1].
    """

    suspicious: float = 0.05
    found: float = 0.01
    carried: float = 0.8
    natural: float = 0.75

    def __post_init__(self) -> None:
        for name in ("suspicious", "found"):
            if not 0 < getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}; expected it in (0, 1)")
        for name in ("carried", "natural"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{name} is {getattr(self, name)}; expected it in [0, 1]")


@dataclass(frozen=True)
class Judgement:
    """A verdict and what decided it; classes are indices.

    Attributes:
        verdict: one of the three.
        suspects: flagged classes, most suspicious first.
        ranking: all classes, most suspicious first.
        p_values: for each class, corrected for the number of classes and of witnesses.
        combined: how these came about.
        reasons: the figures behind it: what each witness says of each suspect, led by the one that
            decides it.
        deciding: for each class, the index of the witness that proves it, or else of the one that
            finds it most unusual.
        proven: the suspects that make it *backdoor found*, most suspicious first.
        proofs: (witness, class) → what its trigger does, of the suspects that it finds unusual.
    """

    verdict: Verdict
    suspects: tuple[int, ...]
    ranking: tuple[int, ...]
    p_values: tuple[float, ...]
    combined: Combined
    reasons: tuple[str, ...]
    deciding: tuple[int, ...]
    proven: tuple[int, ...]
    proofs: dict[tuple[int, int], Proof] = field(default_factory=dict)


def judge(
    evidence: Sequence[Evidence],
    classes: Sequence[str],
    levels: Levels | None = None,
    *,
    prove: Prove | None = None,
) -> Judgement:
    """Combines the witnesses (``combining``) and weighs what they recovered.

    A class is proven by *one* witness: to that witness it is unusual enough, and what that witness
    recovered works. A working trigger alone proves nothing, since backdoor-free models have some,
    too.

    Args:
        evidence: one for each witness, at least one; all over the same classes.
        classes: the class names.
        levels: the limits of the verdicts.
        prove: tries recovered triggers class by class; without it, the witnesses' own shares over
            all classes decide.
    """
    levels = levels or Levels()
    count = len(classes)
    combined = combine(evidence)
    corrected = [  # (witnesses, classes)
        corrected_p_values(e, factor)
        for e, factor in zip(evidence, combined.corrections, strict=True)
    ]
    p_values = combined.p_values
    proofs: dict[tuple[int, int], Proof] = {}

    def unusual(k: int) -> tuple[float, float]:
        scores = [e.scores[k] for e in evidence if e.scores[k] == e.scores[k]]
        return p_values[k], min(scores, default=float("inf"))

    def by_p_value(k: int) -> list[int]:
        return sorted(range(len(evidence)), key=lambda w: corrected[w][k])

    ranking = sorted(range(count), key=unusual)
    suspects = [k for k in ranking if p_values[k] <= levels.suspicious]
    deciding = [by_p_value(k)[0] for k in range(count)]
    proven = []
    reasons: list[str] = []
    for k in suspects:
        said: dict[int, str] = {}  # witness → what it says of the class
        for w in by_p_value(k):
            p = corrected[w][k]
            if p > levels.suspicious:
                continue
            proof = None if prove is None else prove(evidence[w], k)
            if proof is not None:
                proofs[w, k] = proof
            looked = combined.correction_in_words(w)
            told = _reasons(evidence[w], k, (p, p_values[k]), classes, levels, looked, proof)
            said[w] = " ".join(told + _proof_reasons(proof, levels, classes))
            usual = max(p, p_values[k]) > levels.found
            if not usual and k not in proven and _carries(evidence[w], k, levels, proof):
                proven.append(k)
                deciding[k] = w
        reasons += [said[w] for w in sorted(said, key=lambda w: w != deciding[k])]
    if proven:
        verdict = Verdict.BACKDOOR_FOUND
    elif suspects:
        verdict = Verdict.SUSPICIOUS
    else:
        verdict = Verdict.NOTHING_FOUND
        first = ranking[0]
        reasons.append(
            f"No class stands out: the most unusual one is {classes[first]} with "
            f"{p_in_words(p_values[first])}, and {levels.suspicious:g} would be suspicious."
        )
    return Judgement(
        verdict,
        tuple(suspects),
        tuple(ranking),
        p_values,
        combined,
        tuple(reasons),
        tuple(deciding),
        tuple(proven),
        proofs,
    )


def _carries(evidence: Evidence, k: int, levels: Levels, proof: Proof | None = None) -> bool:
    share = evidence.carried_into(k)
    works = share is not None and share >= levels.carried
    if proof is None:
        return works
    return proof.works and proof.natural is not None and proof.natural < levels.natural


def _proof_reasons(proof: Proof | None, levels: Levels, classes: Sequence[str]) -> list[str]:
    """From how many classes a trigger works, and how natural that is."""
    if proof is None:
        return []
    told: list[str] = []
    percent = f"{100 * levels.carried:.0f} %"
    if not proof.counted:
        told.append("No image of another class is left to try it on that it was not made from.")
    elif len(proof.sources) < FEWEST_SOURCES:
        from_class = "".join(f", {classes[j]}" for j in proof.sources)
        told.append(
            f"It carries {percent} of the images of {len(proof.sources)} other "
            f"class{'' if len(proof.sources) == 1 else 'es'}{from_class}; {FEWEST_SOURCES} are "
            "needed, for two classes may just look alike."
        )
    elif not proof.works:
        told.append(
            f"It carries {percent} of the images of {len(proof.sources)} other classes, of which "
            f"fewer than {FEWEST_SOURCES} have {FEWEST_IMAGES} held-out images or more: among "
            f"{len(classes)} classes that may be chance."
        )
    if proof.works and proof.natural is None:
        told.append(
            "No image shows what the class itself is like, so that it cannot be told from a "
            "natural likeness of the classes, which is no proof; give images of that class."
        )
    elif proof.natural is not None and proof.natural >= levels.natural:
        told.append(
            f"It works to {100 * proof.natural:.0f} % through the features that separate these "
            f"classes anyway; from {100 * levels.natural:.0f} % on that may be a natural likeness "
            "and is no proof."
        )
    return told


def _reasons(
    evidence: Evidence,
    k: int,
    p_values: tuple[float, float],
    classes: Sequence[str],
    levels: Levels,
    looked: str,
    proof: Proof | None,
) -> list[str]:
    """What one witness says about a suspect: how unusual it is, and whether that works.

    ``p_values`` are the witness's, to which the combination did what ``looked`` says, and that of
    all witnesses together.
    """
    told = evidence.told
    p, together = p_values
    unit = told.unit and f" {told.unit}"
    score = evidence.scores[k]
    deviation = f", {-score:.1f} {told.scores}" if told.scores and math.isfinite(score) else ""
    judged = told.judged.format(classes=len(classes))
    reasons = [
        f"{evidence.method}, class {classes[k]}: {within_a_sentence(evidence.statistic)} is "
        f"{evidence.values[k]:.3g}{unit}{deviation} ({p_in_words(p)}, {judged}{looked})."
    ]
    share = evidence.carried_into(k)
    if share is None or (proof is not None and not proof.counted):
        return reasons
    carried = (
        f"Recovered from {told.known}, that {told.carrier} carries {100 * share:.0f} % of "
        f"{told.rest} into class {classes[k]}; {100 * levels.carried:.0f} % are "
    )
    enough = share >= levels.carried
    some = proof is not None and proof.works
    if enough:
        reasons.append(f"{carried}needed and reached for a proof.")
    elif some:
        assert proof is not None  # noqa: S101 (``some``)
        reasons.append(
            f"{carried}needed for a proof, of all or of some classes: they are reached of "
            f"{len(proof.sources)}."
        )
    else:
        reasons.append(f"{carried}needed for a proof.")
    return reasons + (_too_usual(p, together, levels) if enough or some else [])


def _too_usual(p: float, together: float, levels: Levels) -> list[str]:
    """Which p-value keeps a trigger that works from being a finding."""
    if p > levels.found:
        return [
            f"A finding needs p <= {levels.found:g} of the method that recovered it, too; that is "
            "not reached."
        ]
    if together > levels.found:
        return [
            f"A finding needs p <= {levels.found:g} of all methods together, too; "
            f"{p_in_words(together)}."
        ]
    return []
