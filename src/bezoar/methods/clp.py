"""CLP, channel Lipschitzness pruning: channels that amplify unusually much go; no image is needed.

Idea: a trigger is a small change that a few channels blow up. How much channel c of a convolution
and the norm behind it can amplify is bounded by

    sigma_c = ||reshape(W_c, C_in x k^2)||_2 |gamma_c| / sqrt(var_c + eps)

(the spectral norm), and a channel is pruned, gamma_c = beta_c = 0, when it lies far above the
others of its layer: sigma_c > mean + u std.

Paper: Zheng et al. 2022, "Data-free Backdoor Removal based on Channel Lipschitzness", ECCV, arXiv
2208.03111. Only its abstract could be reached: formula and u = 3 follow the official code. That
code pairs a BatchNorm with the convolution that comes before it in the order of the modules, right
for Conv-BN networks, wrong for pre-activation blocks and shortcuts, and it has no eps, so that one
dead channel makes a whole layer NaN.

Ours: norm and convolution are paired by tracing (``Units.norm_producers``). What the formula does
not cover is judged by what is there: a norm without running variance by ||W_c||_2 |gamma_c|, a norm
behind a sum (pre-activation) by |gamma_c| / sqrt(var_c + eps) alone, a layer that no norm follows
by ||W_c||_2 alone, with its bias in the place of beta. The record says which was which.

Among n values none can lie more than (n - 1) / sqrt(n) sample deviations above the mean. With u = 3
a layer of ten channels or fewer can therefore never lose one; the record names such layers.

Data: none. Layers: any with norms, convolutions or hidden linear layers. Known failures: backdoors
that are spread over many channels; narrow layers, where one outlier also widens the std; the norm
of the reshaped matrix bounds the convolution only loosely; nothing tells what was pruned by
mistake, since no image is there.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn

from bezoar.classifier import Classifier
from bezoar.errors import InputError
from bezoar.images import ImageSet
from bezoar.methods.method import Method, Needs, Repair, methods
from bezoar.training import Progress, no_progress
from bezoar.unit_tracing import Site
from bezoar.units import Units, find_units

_WHAT = "measuring channels"
_ROUNDING = 1e-9  # of the mean: channels that are all the same have no outlier
_SWEEP = tuple(10 - step / 2 for step in range(21))  # mildest first; BackdoorBench logs the same u


@methods.register("clp")
class CLP(Method, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Channels with an unusual Lipschitz bound, pruned.

    Attributes:
        u: how many standard deviations above the mean of its layer a channel may lie.
        unpaired: norms that no single convolution feeds are judged by their own ``scale``, or stay
            as they are (``skip``).
    """

    name: ClassVar[str] = "clp"
    title: ClassVar[str] = "Channel Lipschitzness pruning"
    paper: ClassVar[str] = "Zheng et al. 2022, arXiv 2208.03111"
    needs: ClassVar[Needs] = "nothing"
    layers: ClassVar[str] = "any with norms, convolutions or hidden linear layers, best Conv-BN"
    cost: ClassVar[str] = "none: a few singular values"
    sweeps: ClassVar[bool] = True

    u: float = 3.0
    unpaired: Literal["scale", "skip"] = "scale"

    def __post_init__(self) -> None:
        if not 0 <= self.u < math.inf:
            raise InputError(f"u is {self.u}; expected a number of deviations, 0 or more")

    @classmethod
    def published(cls) -> Self:
        """The official code's u = 3, on norms with a convolution of their own.

        Where the official code pairs a norm with a convolution that does not feed it, this leaves
        the norm alone.
        """
        return cls(u=3.0, unpaired="skip")

    def remove(
        self,
        classifier: Classifier,
        clean: ImageSet | None = None,
        *,
        seed: int = 0,  # noqa: ARG002 (nothing is drawn)
        progress: Progress = no_progress,
    ) -> Repair:
        """Returns a pruned copy. Nothing is drawn: every ``seed`` gives the same.

        Of ``clean`` only the size of the images is read, for a classifier that does not know it.

        Raises:
            InputError: the input size of ``classifier`` is not known, or there is no layer with
                channels.
        """
        started = time.perf_counter()
        units = find_units(classifier, None if clean is None else clean.shape)
        layers: list[Layer] = []
        skipped = [*units.skipped]
        for index, (site, part) in enumerate(zip(units.sites, units.slices, strict=True)):
            layer = measured(classifier.network, site, part)
            if layer is None:
                skipped.append((site.name, "attention heads are no channels"))
            elif layer.measure in _UNPAIRED and self.unpaired == "skip":
                skipped.append((site.name, "a norm that no single convolution feeds"))
            else:
                layers.append(layer)
            progress(_WHAT, (index + 1) / (len(units.sites) + 1))
        skipped += _parts_of_sums(classifier, units)
        kept = _kept(units, layers, self.u)

        def written(kept: Tensor) -> Classifier:
            made = units.write(classifier, kept, kept)
            made.network.eval()
            return made

        def others() -> Iterator[tuple[str, Classifier]]:
            seen = {tuple(kept.tolist())}
            for u in _SWEEP:
                other = _kept(units, layers, u)
                if tuple(other.tolist()) not in seen:
                    seen.add(tuple(other.tolist()))
                    yield f"u = {u:g}", written(other)

        counts = [int((_kept(units, layers, u) == 0).sum()) for u in _SWEEP]
        record = {
            "u": self.u,
            "units": len(units),
            "pruned": [units.label(i) for i in torch.nonzero(kept == 0).flatten().tolist()],
            "layers": [layer.as_record(self.u) for layer in layers],
            "skipped_layers": [list(item) for item in skipped],
            "flags": _flags(kept, layers, self.u),
            "curves": [
                {"name": "pruned channels", "x_name": "u", "x": list(_SWEEP), "y": counts},
            ],
            "seconds": {"total": time.perf_counter() - started},
        }
        progress("CLP", 1.0)
        return Repair(written(kept), record, alternatives=others)


# -- the bound -------------------------------------------------------------------------------------


def spectral_norms(weight: Tensor) -> Tensor:
    """||reshape(W_c)||_2 of each output channel: the largest singular value, (n,), float64.

    Args:
        weight: (n, C_in, ...) of a convolution, each channel a matrix C_in x (all positions); or
            (n, C_in) of a linear layer, each channel a vector.
    """
    matrices = weight.detach().cpu().double().reshape(len(weight), weight.shape[1], -1)
    if matrices.shape[1] < matrices.shape[2]:
        matrices = matrices.mT
    # The largest eigenvalue of the small square W^T W (9 x 9 for 3x3 filters) is its square.
    squares: Tensor = torch.linalg.eigvalsh(matrices.mT @ matrices)[:, -1]
    return squares.clamp(min=0).sqrt()


def outliers(sigma: Tensor, u: float) -> Tensor:
    """Which of the bounds (n,) lie above mean + u std (the sample's); (n,), bool."""
    if len(sigma) < 2:
        return torch.zeros(len(sigma), dtype=torch.bool)
    mean = sigma.mean()
    return sigma - mean > u * sigma.std() + _ROUNDING * mean


def highest_possible(n: int) -> float:
    """How many sample deviations above the mean the largest of n values can lie, at most."""
    return (n - 1) / math.sqrt(n)


# -- layers ----------------------------------------------------------------------------------------

_UNPAIRED = ("norm alone", "scale alone")


@dataclass(frozen=True)
class Layer:
    """The bounds of a layer's channels.

    Attributes:
        name: its site's.
        measure: what they were computed from.
        sigma: (n,), float64.
        part: the numbers of its units.
    """

    name: str
    measure: str
    sigma: Tensor
    part: slice

    def as_record(self, u: float) -> dict[str, Any]:
        """The figures; the deviation is None where all channels are the same."""
        n, mean = len(self.sigma), float(self.sigma.mean())
        std = float(self.sigma.std()) if n > 1 else 0.0
        return {
            "layer": self.name,
            "measure": self.measure,
            "channels": n,
            "mean": mean,
            "std": std,
            "highest_deviation": (float(self.sigma.max()) - mean) / std if std else None,
            "highest_possible": highest_possible(n),
            "pruned": torch.nonzero(outliers(self.sigma, u)).flatten().tolist(),
        }


def measured(network: nn.Module, site: Site, part: slice) -> Layer | None:
    """The bounds of a site's channels from what there is; None for attention heads."""
    if site.kind == "heads":
        return None
    name = site.scales[0].parameter
    own = network.get_parameter(name).detach()
    if site.kind != "norm":
        return Layer(site.name, "weights alone", spectral_norms(own), part)
    sigma, variance = own.cpu().double().abs(), False
    norm = network.get_submodule(name.rpartition(".")[0])
    var = getattr(norm, "running_var", None)
    if isinstance(var, Tensor) and var.shape == own.shape:
        variance = True
        sigma = sigma / (var.detach().cpu().double() + getattr(norm, "eps", 1e-5)).sqrt()
    if site.producer is None:
        return Layer(site.name, _UNPAIRED[0] if variance else _UNPAIRED[1], sigma, part)
    sigma = sigma * spectral_norms(network.get_parameter(site.producer))
    return Layer(site.name, "weights and norm" if variance else "weights and scale", sigma, part)


def _kept(units: Units, layers: list[Layer], u: float) -> Tensor:
    """The factors (units,): 0 for an outlier."""
    kept = torch.ones(len(units))
    for layer in layers:
        kept[layer.part][outliers(layer.sigma, u)] = 0
    return kept


def _parts_of_sums(classifier: Classifier, units: Units) -> list[tuple[str, str]]:
    """Convolutions and hidden layers that were not judged: a norm follows, but after a sum."""
    judged = {site.scales[0].parameter for site in units.sites} | {*units.norm_producers.values()}
    return [
        (site.name, "no norm takes its channels one to one; it is a part of a sum")
        for site in find_units(classifier, sites="all").sites
        if site.scales[0].parameter not in judged
    ]


def _flags(kept: Tensor, layers: list[Layer], u: float) -> list[str]:
    """What the user should know before trusting the repair."""
    flags = []
    narrow = [layer.name for layer in layers if highest_possible(len(layer.sigma)) <= u]
    alone = [layer.name for layer in layers if layer.measure in _UNPAIRED]
    if bool(kept.all()):
        flags.append(
            f"Nothing was pruned: no channel lies {u:g} standard deviations above its layer. The "
            "network is as it was."
        )
    if narrow:
        flags.append(
            f"{len(narrow)} of {len(layers)} layers have too few channels for one to lie {u:g} "
            f"standard deviations above the others ({_some(narrow)})."
        )
    if alone:
        flags.append(
            f"{len(alone)} of {len(layers)} layers are norms behind a sum and were judged by their "
            f"scale alone, which is not the paper's measure ({_some(alone)})."
        )
    return flags


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
