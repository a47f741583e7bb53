"""One p-value for each class from several witnesses, held against networks without a backdoor.

Each witness w gives a class k a p-value p_wk, corrected for having picked among the classes. They
look at the same network, so they are not independent, and the mean that bears this is the harmonic
one (Wilson 2019, PNAS 116:1195):

    H_k = W / sum_w 1 / p_wk

A single witness that is sure makes H_k = W p_wk, as Bonferroni's correction would; several that
agree on a class come to less. H is no p-value yet. What a scan reports is

    p_k = min(1, c H_k),    c = max(1, max_i (i / (n + 1)) / H_(i))

with H_(1) <= H_(2) <= ... the smallest H of each of n networks without a backdoor, looked at by the
same witnesses (as in a scan, without those that could not look at one), and i up to a fifth of
them: the smallest factor with which, in that tail, no more of them get a p-value than it says.
``benchmarks/scan_null.py`` measures them and writes ``data/scan_null.json``. That p-values below
1 / (n + 1) mean what they say is an extrapolation: that H, as for uniform p-values, shrinks as fast
as the share of networks. Networks of more than 100 classes are a null of their own, since with many
classes some tests have heavier tails than their theory.

Witnesses that were not measured together, or not with these settings, share the level instead
(Bonferroni): W min_w c_w p_wk. There, and where one witness looks alone, c_w is 1 unless the null
networks contradict that witness: for a test that holds, c exceeds x in one of x cases (Daniels'
theorem), so from ``CONTRADICTED`` on its p-values are multiplied by the c that was measured of it.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bezoar.methods import Evidence, methods
from bezoar.packaged import packaged
from bezoar.reference_classes import SOME
from bezoar.statistics import LEAST, harmonic_mean, harmonic_means

NULL = "data/scan_null.json"  # written by benchmarks/scan_null.py
TAIL = 0.2  # the share of the null networks that the factor is read from
MANY = 100  # classes; beyond it, networks are held against their like alone
CONTRADICTED = 10.0  # a factor that one in ten tests exceeds although they hold

# Settings that change no p-value: which class is removed, which ones are compared (as many as at
# the null networks), and on which network a trigger is inverted once the p-values are there.
_FREE = ("target_class", "classes", "inverted_network")


@dataclass(frozen=True)
class Combined:
    """The p-values of all classes, and how they came about.

    Attributes:
        p_values: one for each class.
        corrections: for each witness, what its own p-values are multiplied by before a level is
            put on them: 1 where each stands for itself and no network contradicts it.
        contradicted: the witnesses, by name, whose own p-values networks without a backdoor
            contradict.
        factor: c; None where the witnesses were not measured together.
        networks: how many networks without a backdoor it was measured on.
    """

    p_values: tuple[float, ...]
    corrections: tuple[float, ...]
    contradicted: tuple[str, ...] = ()
    factor: float | None = None
    networks: int = 0

    @property
    def witnesses(self) -> int:
        """How many looked."""
        return len(self.corrections)

    def correction_in_words(self, witness: int) -> str:
        """What is added to a p-value of one witness that is told, where it was corrected."""
        factor = self.corrections[witness]
        if factor == 1:
            return ""
        shared = self.factor is None and self.witnesses > 1
        if shared and factor == self.witnesses:
            return f", times {self.witnesses} for as many methods"
        several = f"{self.witnesses} methods and " if shared else ""
        return f", times {factor:.3g} for {several}what networks without a backdoor show"

    def in_words(self) -> str:
        """How the p-values were made, in one sentence."""
        larger = ""
        if self.contradicted:
            larger = (
                f"; those of {' and '.join(self.contradicted)} are multiplied by what networks "
                "without a backdoor of as many classes ask for"
            )
        if self.witnesses == 1:
            return (
                f"One witness looked; its p-values are corrected for the number of classes{larger}."
            )
        if self.factor is None:
            return (
                f"The {self.witnesses} witnesses share the false-alarm rate: each p-value is the "
                f"smallest of theirs times {self.witnesses}{larger}."
            )
        return (
            f"The p-values of {self.witnesses} witnesses are combined by their harmonic mean, "
            f"times {self.factor:.2g}, which was measured on {self.networks} networks without a "
            "backdoor."
        )


def combine(evidence: Sequence[Evidence]) -> Combined:
    """The p-values of all classes from at least one witness."""
    rows = [e.p_values for e in evidence]
    names = tuple(sorted(e.method for e in evidence))
    together = len(rows) > 1 and all(map(as_measured, evidence))
    smallest = null_smallest(names, many=len(rows[0]) > MANY) if together else ()
    if not smallest:
        return _sharing(evidence)
    factor = tail_factor(smallest)
    joint = [min(1.0, factor * h) for h in harmonic_means(rows)]
    # The factor bears with a witness that is contradicted; what it says by itself does not.
    alone = tuple(map(_factor_alone, evidence))
    return Combined(tuple(joint), alone, factor=factor, networks=len(smallest))


def _sharing(evidence: Sequence[Evidence]) -> Combined:
    """The smallest p-value of each class, with the level shared among the witnesses."""
    alone = [_factor_alone(e) for e in evidence]
    corrections = tuple(len(evidence) * factor for factor in alone)
    rows = [corrected_p_values(e, c) for e, c in zip(evidence, corrections, strict=True)]
    joint = tuple(map(min, zip(*rows, strict=True)))
    contradicted = tuple(e.method for e, f in zip(evidence, alone, strict=True) if f > 1)
    return Combined(joint, corrections, contradicted)


def corrected_p_values(evidence: Evidence, factor: float) -> list[float]:
    """A witness's p-value of each class times its correction, at most 1."""
    return [min(1.0, factor * p) for p in evidence.p_values]


def _factor_alone(evidence: Evidence) -> float:
    """The c of one witness where the null networks contradict it, else 1."""
    if not as_measured(evidence):
        return 1.0
    smallest = null_smallest((evidence.method,), many=len(evidence.p_values) > MANY)
    factor = tail_factor(smallest) if smallest else 1.0
    return factor if factor >= CONTRADICTED else 1.0


def as_measured(evidence: Evidence) -> bool:
    """Whether a witness looked with its default settings, as at the null networks.

    Where it looked at some classes alone, whether these were as many as a scan chooses.
    """
    name = evidence.method
    if name not in methods.names():
        return False
    default = methods.get(name)().configuration()
    given = evidence.record.get("configuration", default)
    if given.get("classes") is not None and len(given["classes"]) != SOME:
        return False
    return all(given.get(key) == value for key, value in default.items() if key not in _FREE)


def tail_factor(smallest: Sequence[float]) -> float:
    """The factor c from the smallest H of each null network.

    >>> tail_factor([i / 101 for i in range(1, 101)])  # uniform p-values need no factor
    1.0
    >>> round(tail_factor([0.001] + [0.5] * 9), 1)  # one of ten far too small
    90.9
    """
    ordered, n = sorted(smallest), len(smallest)
    reached = [
        (i / (n + 1)) / max(LEAST, h)
        for i, h in enumerate(ordered, 1)
        if i == 1 or i / (n + 1) <= TAIL
    ]
    return max(1.0, *reached)


@functools.cache
def null_smallest(names: tuple[str, ...], *, many: bool) -> tuple[float, ...]:
    """The smallest H of each null network that all these witnesses were asked about.

    Those that could not look at a network are left out there, as in a scan; none of them may have
    been unable to look at every network.

    Args:
        names: of the witnesses, sorted; each once.
        many: of the networks with more than 100 classes, or of the others.
    """
    if len(set(names)) < len(names):  # the same witness with other settings was not measured
        return ()
    networks = [
        network
        for network in _networks()
        if set(names) <= {*network["p"], *network["could not look"]}
        if many == (network["classes"] > MANY)
    ]
    if any(all(name not in network["p"] for network in networks) for name in names):
        return ()
    looked = [network for network in networks if set(names) & set(network["p"])]
    return tuple(smallest_of(n["p"], names, n["classes"]) for n in looked)


def smallest_of(
    p_values: Mapping[str, Mapping[str, float]], names: Iterable[str], classes: int
) -> float:
    """The smallest H over the classes.

    Args:
        p_values: witness → class, as text → p-value; classes that are missing count as 1,
            witnesses that are missing not at all.
        names: of the witnesses that count.
        classes: how many there are.
    """
    rows = [p_values[name] for name in names if name in p_values]
    return min(harmonic_mean(row.get(str(k), 1.0) for row in rows) for k in range(classes))


@functools.cache
def _networks() -> tuple[dict[str, Any], ...]:
    return tuple(packaged(NULL)["networks"])
