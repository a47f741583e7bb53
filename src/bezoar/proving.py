"""Does what a witness recovered work, and is it more than what the classes look like anyway?

*Works*: on held-out images, it carries at least 80 % of those of a source class into the target
class, for at least two source classes. A backdoor of one source class alone cannot be told from two
classes that look alike, so it is never proven. Nor are sources with one or two held-out images,
among many classes of which some are carried by chance, unless 80 % of the images of all classes
together are.

*Natural*: two classes differ in some features in every network, and a strong change that adds just
those features carries images across without any backdoor. With u = w_k - w_j the direction of the
head from source j to target k, s the mean change of the features under the trigger and n = mean
f(images of k) - mean f(images of j) the natural one, each feature i brings u_i s_i and u_i n_i
towards k. The share of its work that is done by the features that separate the classes anyway:

    natural_jk = sum_i min(a_i, b_i),    a = (u s)^+ / sum (u s)^+,    b = (u n)^+ / sum (u n)^+

1: the very same features; 0: others. The mean over the source classes is told, and compared with
that of networks without a backdoor. The question is that of EX-RAY (Liu et al., CCS 2022, arXiv
2103.08820), which answers it by exchanging features between stamped and natural images; this closed
form for the last layer is ours.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bezoar.classifier import Classifier
from bezoar.device import evaluation_batch
from bezoar.images import ImageSet
from bezoar.methods import Evidence
from bezoar.methods.method import HELD_OUT
from bezoar.methods.neural_cleanse_triggers import pixels_of

CARRIED = 0.8  # share of the held-out images of a class that makes it a source
FEWEST_SOURCES = 2
FEWEST_IMAGES = 3  # held-out images of a source that counts by itself


@dataclass(frozen=True)
class Proof:
    """What a recovered trigger or shift does on held-out images.

    Attributes:
        sources: classes of which it carries at least ``needed`` of the held-out images.
        counted: held-out images of other classes; 0 where there is none, or none was held out.
        carried: share of these that it carries.
        natural: share of its work that is done by the features that separate the classes anyway, in
            [0, 1]; None where no class is a source, or no image tells what the target class is
            like: that cannot be answered then, and is no proof.
        firm: how many of ``sources`` have at least ``FEWEST_IMAGES`` held-out images.
        needed: 80 %, if the levels of the verdict say nothing else.
    """

    sources: tuple[int, ...]
    counted: int
    carried: float
    natural: float | None
    firm: int
    needed: float = CARRIED

    @property
    def works(self) -> bool:
        """Whether it works on enough classes."""
        enough = self.firm if self.carried < self.needed else len(self.sources)
        return enough >= FEWEST_SOURCES

    def as_record(self) -> dict[str, Any]:
        """The figures."""
        return {
            "sources": list(self.sources),
            "counted": self.counted,
            "carried": self.carried,
            "natural": self.natural,
            "firm": self.firm,
            "works": self.works,
        }


class Prover:
    """Tries what witnesses recovered on the images that they held out; runs none until asked.

    Args:
        classifier: the suspect, traced.
        clean: the images of the scan; without labels, the network's answers stand for them.
        seed: of the scan.
        needed: share, in [0, 1], of a class's held-out images that makes it a source.
    """

    def __init__(
        self, classifier: Classifier, clean: ImageSet, *, seed: int, needed: float = CARRIED
    ) -> None:
        self.classifier, self.clean, self.needed = classifier, clean, needed
        _, self.held_out = clean.split(1 - HELD_OUT, seed=seed)  # as the witnesses divide them

    @functools.cached_property
    def _all(self) -> tuple[Tensor, Tensor]:
        return self.classifier.survey(self.clean)

    @functools.cached_property
    def _answers(self) -> Tensor:
        return self._all[0].argmax(1)

    @functools.cached_property
    def _rest(self) -> tuple[Tensor, Tensor]:
        return self.classifier.survey(self.held_out)

    def prove(self, evidence: Evidence, k: int) -> Proof | None:
        """The proof for class ``k``; None where nothing was recovered for it."""
        found, shifts = evidence.recovered, evidence.perturbations
        led = found is not None and k in found.classes
        if not led and (shifts is None or not bool(shifts[k].isfinite().all())):
            return None
        kept = evidence.record.get("configuration", {}).get("held_out", HELD_OUT)
        if kept < HELD_OUT or not len(self.held_out):
            return Proof((), 0, 0.0, None, 0, self.needed)
        logits, features = self._rest
        if led:
            return self._proof(logits, features, *self._stamped(evidence, k), k)
        assert shifts is not None  # noqa: S101 (above)
        shift = shifts[k].to(features)
        moved = logits + shift @ self.classifier.head.weight.T
        return self._proof(logits, features, moved, features + shift, k)

    def _stamped(self, evidence: Evidence, k: int) -> tuple[Tensor, Tensor]:
        """Logits and features of the held-out images with the trigger of class ``k``."""
        classifier, found = self.classifier, evidence.recovered
        assert found is not None  # noqa: S101 (``prove``)
        pixels, _ = pixels_of(self.held_out, classifier)
        head = classifier.head
        parts = torch.split(pixels, evaluation_batch(classifier.device))
        with classifier.evaluating(), torch.no_grad():
            features = torch.cat([classifier.features(found.stamp(part, k)) for part in parts])
        return features @ head.weight.T + head.bias, features

    def _proof(
        self, logits: Tensor, features: Tensor, moved: Tensor, shifted: Tensor, k: int
    ) -> Proof:
        before = logits.argmax(1)
        others = before != k
        # The shortest shift puts the hardest image exactly on the border: a tie counts as carried.
        inside = moved[:, k] >= moved.amax(1) - 1e-5 * moved.abs().amax().clamp(min=1)
        sources = [
            j
            for j in sorted(set(before[others].tolist()))
            if float(inside[before == j].float().mean()) >= self.needed
        ]
        weight, change, centre = self.classifier.head.weight, shifted - features, self._centre(k)
        centres = {j: self._centre(j) for j in sources}
        shares = [
            natural_share(weight[k] - weight[j], change[before == j].mean(0), centre - own)
            for j, own in centres.items()
            if centre is not None and own is not None
        ]
        return Proof(
            tuple(sources),
            int(others.sum()),
            float(inside[others].float().mean()) if bool(others.any()) else 0.0,
            sum(shares) / len(shares) if shares else None,
            sum(int((before == j).sum()) >= FEWEST_IMAGES for j in sources),
            self.needed,
        )

    def _centre(self, k: int) -> Tensor | None:
        """The mean features of the images that are answered with ``k``.

        Of those that show ``k`` where none is answered so; None if there are none either.
        """
        features = self._all[1]
        own = features[self._answers == k]
        if not len(own) and self.clean.labels is not None:
            own = features[(self.clean.labels == k).to(features.device)]
        return own.mean(0) if len(own) else None


def natural_share(direction: Tensor, change: Tensor, natural: Tensor) -> float:
    """The share of a change's work that is done by the features that separate two classes anyway.

    Args:
        direction: (d,), from the source's to the target's row of the head.
        change: (d,), mean change of the features under the trigger.
        natural: (d,), mean features of the target less those of the source.

    >>> u = torch.tensor([1.0, 1.0, 0.0])
    >>> natural_share(u, torch.tensor([2.0, 0.0, 9.0]), torch.tensor([1.0, 1.0, 0.0]))
    0.5
    """
    work, usual = (direction * change).clamp(min=0), (direction * natural).clamp(min=0)
    if not bool(work.sum() > 0) or not bool(usual.sum() > 0):
        return 0.0
    return float(torch.minimum(work / work.sum(), usual / usual.sum()).sum())
