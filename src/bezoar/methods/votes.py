"""Where a recovered trigger sends the images of each class, and how that is to be read.

One majority vote over all images names a class for every trigger, and a wrong one for a trigger
that sends each class elsewhere. Here the votes stay apart by source: a K x K table of counts.

The paper and the official code of BTI-DBF (Xu et al., ICLR 2024, OpenReview Tw9wemV6cb) take the
majority of all images and do not test it. The table and its reading are ours.

A reading says what the *found trigger* does, never that there is a backdoor: a network without one
has universal perturbations, which send almost every image to one class as well, and a change
towards the nearest class looks like a mapping. Whether a model is suspicious is judged elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from bezoar.errors import InputError
from bezoar.methods.neural_cleanse_triggers import NUMBERS, Logits

Kind = Literal["one target", "several targets", "all-to-all", "no target"]

NAMED = 3  # so many mappings are spelled out in a sentence


@dataclass(frozen=True)
class Votes:
    """The answers to stamped images, by the class that the images show.

    Attributes:
        answers: int64 counts (K, K) on the CPU; row: source class, column: answer to the image with
            the trigger.
    """

    answers: Tensor

    def shares(self) -> Tensor:
        """For each class, the share (K,) of images of *other* sources that are answered with it.

        0 where there is no image of another source.
        """
        return _from_others(self.answers) / _of_others(self.answers).clamp(min=1)

    def as_record(self) -> dict[str, Any]:
        """The plain form that records hold; of the counts only those above 0."""
        places = self.answers.nonzero().tolist()
        counts = [[source, k, int(self.answers[source, k])] for source, k in places]
        return {"classes": len(self.answers), "counts": counts}


@dataclass(frozen=True)
class Reading:
    """What the votes come to.

    Attributes:
        kind: see ``reading``.
        targets: the classes that the trigger leads to, those of most sources first.
        sources: for each target, the source classes that go there as a whole.
    """

    kind: Kind
    targets: tuple[int, ...]
    sources: tuple[tuple[int, ...], ...]

    def sentence(self, classes: Sequence[str]) -> str:
        """The reading in words, with the names of the classes."""
        if self.kind == "no target":
            return "The recovered trigger leads to no class that stands out."
        if self.kind == "one target":
            return (
                "The recovered trigger leads to one class: most images of the other classes are "
                f"answered with {classes[self.targets[0]]}."
            )
        told = [
            f"{', '.join(classes[s] for s in sources[:NAMED])}"
            f"{f' and {len(sources) - NAMED} more' * (len(sources) > NAMED)} → {classes[target]}"
            for target, sources in zip(self.targets, self.sources, strict=True)
        ]
        more = f"; and {len(told) - NAMED} more" * (len(told) > NAMED)
        named = "; ".join(told[:NAMED]) + more
        if self.kind == "several targets":
            return f"The recovered trigger leads to {len(told)} classes: {named}."
        return (
            "The recovered trigger has no single target (all-to-all): it sends most images of "
            f"{sum(map(len, self.sources))} classes to {len(told)} different ones: {named}."
        )

    def as_record(self, classes: Sequence[str]) -> dict[str, Any]:
        """The plain form that records hold, with the sentence."""
        return {
            "kind": self.kind,
            "targets": list(self.targets),
            "sources": [list(sources) for sources in self.sources],
            "sentence": self.sentence(classes),
        }


def count_votes(
    logits: Logits,
    stamp: Callable[[Tensor], Tensor],
    images: Tensor,
    labels: Tensor | None,
    classes: int,
) -> Votes:
    """Counts the answers to stamped images by source.

    Args:
        logits: the network; eval mode is the caller's to set.
        stamp: images (n, c, h, w) in [0, 1] → the same with the trigger.
        images: (n, c, h, w) in [0, 1], not among those that the trigger comes from.
        labels: (n,), their classes. An image whose answer without the trigger is another one does
            not count. None takes that answer for its class.
        classes: K.

    Raises:
        InputError: the labels have another number, or lie outside the K classes.
    """
    if labels is not None and len(labels) != len(images):
        raise InputError(f"there are {len(labels)} labels for {len(images)} images; give one each")
    if labels is not None and len(labels) and not 0 <= int(labels.min()) <= labels.max() < classes:
        raise InputError(
            f"the labels go from {int(labels.min())} to {int(labels.max())}; expected 0 to "
            f"{classes - 1}"
        )
    counts = torch.zeros(classes * classes, dtype=torch.long)
    step = max(1, NUMBERS // images[0].numel()) if len(images) else 1
    for start in range(0, len(images), step):
        part = images[start : start + step]
        with torch.no_grad():
            source, answer = logits(part).argmax(1), logits(stamp(part)).argmax(1)
        if labels is not None:
            kept = source == labels[start : start + step].to(source.device)
            source, answer = source[kept], answer[kept]
        counts += torch.bincount(source * classes + answer, minlength=classes**2).cpu()
    return Votes(counts.view(classes, classes))


def reading(votes: Votes, *, level: float = 0.05) -> Reading:
    """Reads a table of votes by these rules (ours), in this order; K is the number of classes.

    A source *goes to* a class k other than itself if more than half of its images are answered
    with k, and that many hardly ever are by chance: (K - 1) P(Bin(images, 1 / K) >= those) is at
    most ``level``. Sources with too few images for that even if all agree say nothing.

    1. **One target** k: at least half of the images of other sources are answered with k; that is
       significantly more than for the class with the second largest share (two counts X, Y among N
       and M images: K P(Bin(X + Y, N / (N + M)) >= X) <= ``level``); and the sources that go to
       other classes, if any, are as scattered as chance has them.
    2. **No target**: fewer than half of the sources that can tell go anywhere, or no more of them
       than single tests at ``level`` let pass.
    3. **All-to-all**: the sources go to at least K / 2 distinct classes.
    4. **Several targets**: the sources go to so few distinct classes as random destinations hardly
       ever do (P(at most so many distinct ones) <= ``level``). Targets are the classes that more
       than one source goes to. Also what is 1. but for its last condition.
    5. **No target**: everything else.

    Raises:
        InputError: ``level`` lies outside (0, 1).
    """
    if not 0 < level < 1:
        raise InputError(f"the level of a reading is {level}; expected a number between 0 and 1")
    count = len(votes.answers)
    gone, able = _destinations(votes.answers, level)
    sources = sum(map(len, gone.values()))
    leader = _leader(votes, level)
    if leader is not None:
        rest = [len(found) for target, found in gone.items() if target != leader]
        if _at_most_distinct(len(rest), sum(rest), count - 2) > level:
            return Reading("one target", (leader,), (gone.get(leader, ()),))
    elif 2 * sources < able or _at_least(sources, able, level) > level:
        return Reading("no target", (), ())
    elif 2 * len(gone) >= count:
        return _told("all-to-all", gone)
    elif _at_most_distinct(len(gone), sources, count - 1) > level:
        return Reading("no target", (), ())
    shared = {k: found for k, found in gone.items() if len(found) > 1 or k == leader}
    if leader is not None:
        shared.setdefault(leader, ())
    return _told("several targets", shared) if len(shared) > 1 else Reading("no target", (), ())


def _told(kind: Kind, gone: dict[int, tuple[int, ...]]) -> Reading:
    order = sorted(gone, key=lambda target: (-len(gone[target]), target))
    return Reading(kind, tuple(order), tuple(gone[target] for target in order))


def _from_others(answers: Tensor) -> Tensor:
    """For each class, how many images of other sources are answered with it: (K,)."""
    return answers.sum(0) - answers.diagonal()


def _of_others(answers: Tensor) -> Tensor:
    """For each class, how many images there are of other sources: (K,)."""
    return answers.sum() - answers.sum(1)


def _destinations(answers: Tensor, level: float) -> tuple[dict[int, tuple[int, ...]], int]:
    """For each class the sources that go there, and how many sources have images enough to tell."""
    count = len(answers)
    gone: dict[int, tuple[int, ...]] = {}
    able = 0
    for source, row in enumerate(answers.tolist()):
        images = sum(row)
        if (count - 1) * _at_least(images, images, 1 / count) > level:
            continue
        able += 1
        most, k = max((votes, k) for k, votes in enumerate(row) if k != source)
        if 2 * most > images and (count - 1) * _at_least(most, images, 1 / count) <= level:
            gone[k] = (*gone.get(k, ()), source)
    return gone, able


def _leader(votes: Votes, level: float) -> int | None:
    """The class with the largest share, if that is half or more and well above the second one."""
    shares = votes.shares()
    first, second = shares.argsort(descending=True, stable=True)[:2].tolist()
    if shares[first] < 0.5:
        return None
    x, y = _from_others(votes.answers)[[first, second]].tolist()
    n, m = _of_others(votes.answers)[[first, second]].tolist()
    p = len(shares) * _at_least(x, x + y, n / (n + m))
    return first if p <= level else None


def _at_least(hits: int, draws: int, chance: float) -> float:
    """P(Bin(draws, chance) >= hits) for a chance in (0, 1]: the sum of its terms."""
    if hits <= 0 or chance >= 1:
        return 1.0
    yes, no = math.log(chance), math.log1p(-chance)
    ways = [
        math.lgamma(draws + 1) - math.lgamma(i + 1) - math.lgamma(draws - i + 1)
        for i in range(hits, draws + 1)
    ]  # logarithms
    return math.fsum(math.exp(w + i * yes + (draws - i) * no) for i, w in enumerate(ways, hits))


def _at_most_distinct(distinct: int, draws: int, options: int) -> float:
    """P(``draws`` random choices among ``options`` hit at most so many distinct ones).

    1 where fewer than two options or draws leave nothing to compare.
    """
    if options < 2 or draws < 2:
        return 1.0
    hit = [1.0] + [0.0] * distinct  # hit[d]: chance of exactly d distinct ones so far
    for _ in range(draws):
        hit = [
            hit[d] * d / options + (hit[d - 1] * (options - d + 1) / options if d else 0.0)
            for d in range(distinct + 1)
        ]
    return math.fsum(hit)
