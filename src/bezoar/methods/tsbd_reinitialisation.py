"""TSBD's first stage: weights that change much as clean images are unlearned become zero.

    NWC_i = sum_j |w_hat_ij - w_ij|

is the weight change of neuron i, w_hat being the unlearned network. The n neurons of the largest
NWC are taken, and of all *their* weights the share m that changed most is set to 0 in the original.

Paper: Lin et al. 2024, arXiv 2405.20291, as its released code does it. Ours: neurons are the units
of any network, so that a depthwise convolution counts with the layer that feeds it and hidden
linear layers have neurons, too; a change ``relative`` to those of the neuron's own layer, since
sums of different layers cannot be compared (a filter with more inputs has the larger one, and means
favour layers of few inputs); and a weight that did not change stays.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor, nn

from bezoar.classifier import Classifier
from bezoar.images import ImageSet
from bezoar.methods.moved_weights import TINY
from bezoar.methods.recalibration import recalibrate
from bezoar.methods.tsbd_shortcuts import shortcuts
from bezoar.units import Units

Measure = Literal["relative", "sum"]

_BATCH = 100  # images that new BatchNorm statistics are taken from at a time


class Reinitialisation:
    """The networks with zeros, one for each n.

    Args:
        classifier: the original, traced; it stays as it is.
        units: its convolutions and hidden linear layers.
        unlearned: a copy that has unlearned.
        images: clean images for the statistics of BatchNorms, which zeros shift.
        measure: what orders the neurons.
        m: the share of their weights that goes.

    Attributes:
        left_out: names of the weights of shortcuts, whose neurons stay.
        order: numbers of the units that count, the largest change first.
        nwc: their changes, in that order.
    """

    def __init__(
        self,
        classifier: Classifier,
        units: Units,
        unlearned: Classifier,
        images: ImageSet,
        *,
        measure: Measure,
        m: float,
    ) -> None:
        self._classifier, self._units, self._images, self._m = classifier, units, images, m
        self._changes = weight_changes(units, classifier.network, unlearned.network)
        self.left_out = shortcuts(classifier)
        nwc = neuron_changes(self._changes, measure)
        self.order = ranked(units, nwc, self.left_out)
        self.nwc = nwc[self.order]

    def neurons(self, n: float) -> Tensor:
        """The numbers of the units that the share ``n`` is."""
        return self.order[: int(n * len(self.order))]

    def zeros(self, n: float) -> int:
        """How many weights become 0."""
        return zeroed(self._classifier, self._units, self._changes, self.neurons(n), self._m)[1]

    def built(self, n: float) -> Classifier:
        """The network with its zeros, and with the statistics that it has with them."""
        neurons = self.neurons(n)
        made, _ = zeroed(self._classifier, self._units, self._changes, neurons, self._m)
        recalibrate(made.network, _batches(made, self._images))
        return made


def weight_changes(units: Units, original: nn.Module, unlearned: nn.Module) -> list[Tensor]:
    """Of each site |w_hat - w|, (its units, weights of a unit), float32, on the CPU.

    Args:
        units: convolutions and linear layers of ``original``.
        original: the suspect's network.
        unlearned: a copy of it that has unlearned.
    """
    changes = []
    for site in units.sites:
        pairs = [
            (unlearned.get_parameter(slot.parameter), original.get_parameter(slot.parameter))
            for slot in site.scales
        ]
        rows = [
            (new.detach().cpu().float() - old.detach().cpu().float()).abs().reshape(site.size, -1)
            for new, old in pairs
        ]
        changes.append(torch.cat(rows, 1))
    return changes


def neuron_changes(changes: list[Tensor], measure: Measure) -> Tensor:
    """NWC of all units, (n,): the sums of their changes, or these over the mean of their layer.

    In a layer that did not change at all both are 0.
    """
    sums = [rows.sum(1) for rows in changes]
    if measure == "relative":
        sums = [nwc / nwc.mean().clamp(min=TINY) for nwc in sums]
    return torch.cat(sums)


def zeroed(
    classifier: Classifier, units: Units, changes: list[Tensor], neurons: Tensor, m: float
) -> tuple[Classifier, int]:
    """A copy in which the weights of ``neurons`` that changed most are 0, and how many these are.

    Args:
        classifier: the original.
        units: its units.
        changes: see ``weight_changes``.
        neurons: numbers of units.
        m: the share of all weights of these units, in [0, 1]; equal changes go together.
    """
    twin = classifier.copy()
    chosen = torch.zeros(len(units), dtype=torch.bool)
    chosen[neurons] = True
    pooled = torch.cat([rows[chosen[p]].flatten() for rows, p in _parts(units, changes)])
    count = int(m * len(pooled))
    if not count:
        return twin, 0
    least = pooled.kthvalue(len(pooled) - count + 1).values
    gone = 0
    for site, (rows, part) in zip(units.sites, _parts(units, changes), strict=True):
        goes = (rows >= least) & (rows > 0) & chosen[part].unsqueeze(1)  # (units, weights)
        gone += int(goes.sum())
        sizes = [twin.network.get_parameter(s.parameter).numel() for s in site.scales]
        columns = [size // site.size for size in sizes]
        for slot, mask in zip(site.scales, torch.split(goes, columns, 1), strict=True):
            weight = twin.network.get_parameter(slot.parameter)
            with torch.no_grad():
                weight.masked_fill_(mask.reshape(weight.shape).to(weight.device), 0)
    return twin, gone


def ranked(units: Units, nwc: Tensor, left_out: set[str]) -> Tensor:
    """The numbers of the units that count, the largest change of all (n,) first.

    Where all of them are left out, none is.
    """
    counts = torch.zeros(len(units), dtype=torch.bool)
    for site, part in zip(units.sites, units.slices, strict=True):
        counts[part] = site.scales[0].parameter not in left_out
    order = nwc.argsort(descending=True, stable=True)
    return order[counts[order]] if bool(counts.any()) else order


def _batches(classifier: Classifier, images: ImageSet) -> Iterator[Tensor]:
    """Normalised batches; a last one of a single image, which has no statistics, is left out."""
    for batch, _ in images.batches(_BATCH, device=classifier.device):
        if len(batch) > 1:
            yield classifier.normalise(batch)


def _parts(units: Units, changes: list[Tensor]) -> list[tuple[Tensor, slice]]:
    return list(zip(changes, units.slices, strict=True))
