"""A scanned network: the triggers of its most unusual class, be that the target or not."""

from __future__ import annotations

from typing import NamedTuple

from measured_models import Measured

from bezoar.given import HELD_OUT
from bezoar.images import ImageSet
from bezoar.scanning import Finding, scan
from bezoar.surviving import Survivors


class MostUnusual(NamedTuple):
    """What a scan says of a network, and the images as ``clean`` divides them."""

    first: int
    known: ImageSet
    held_out: ImageSet
    finding: Finding
    survivors: Survivors


def most_unusual(one: Measured, seed: int) -> MostUnusual:
    """Scans a network; ``first`` is its most unusual class, suspected or not."""
    known, held_out = one.clean.split(1 - HELD_OUT, seed=seed)
    finding = scan(one.classifier, one.clean, seed=seed)
    first = finding.ranking[0]
    survivors = Survivors(one.classifier, finding.evidence, (first,), known, held_out, seed=seed)
    return MostUnusual(first, known, held_out, finding, survivors)
