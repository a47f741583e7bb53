"""Units of any network: masked, perturbed and pruned by one factor each (ours).

A unit is a scale channel of a norm, an output channel of a convolution, a hidden unit of an MLP,
or an attention head. Its *scale factor* multiplies slices of weights, and its *shift factor* slices
of biases (the beta of a norm):

    network(x; theta * factor),    factor = 1: the network itself, 0: the unit pruned

This is the mask of RNP (Li et al. 2023, arXiv:2305.14876, on the scales of BatchNorm), the
perturbation of ANP (Wu and Wang 2021, arXiv:2110.14430: scale m + d, shift 1 + x), and pruning.
The product is a function of the factors (``other_weights``): it can be differentiated,
nothing is attached to the network, and ``write`` puts it into the weights of a copy, so that the
state dict keeps its names and loads in the user's own code.

Depthwise convolutions share the units of the layer that makes their input; both weights get the
factor. The norm scales come after the statistics, so a mask never changes a neighbour in the same
group. Known limits: masking a convolution or a linear layer leaves its bias (and the norm behind
it) unless ``shift`` says otherwise; the gates of squeeze-and-excitation are ordinary units; what
`bezoar.unit_tracing` cannot follow is missing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.func import vmap
from torch.nn.utils import parametrize

from bezoar.classifier import BATCH, Classifier
from bezoar.errors import InputError
from bezoar.network_tensors import named_tensors
from bezoar.other_weights import logits_with
from bezoar.unit_tracing import Kind, Site, Slot, UnitTrace

KINDS: tuple[Kind, ...] = ("norm", "conv", "linear", "heads")
Choice = Kind | Literal["auto", "all"]


class Units:
    """The units of a network, numbered from 0 in the order of the forward pass.

    Attributes:
        sites: the layers they lie in.
        slices: the numbers of each site's units.
        site_of: (n,), the index of each unit's site.
        skipped: (name, reason) of layers that have no units although one might expect them.
        norm_producers: norm's site name → weight of the layer that feeds it one to one.
    """

    def __init__(self, sites: Sequence[Site], skipped: Sequence[tuple[str, str]] = ()) -> None:
        self.sites = tuple(sites)
        self.skipped = tuple(skipped)
        sizes = torch.tensor([site.size for site in self.sites], dtype=torch.int64)
        ends = sizes.cumsum(0).tolist()
        self.slices = tuple(
            slice(end - s.size, end) for s, end in zip(self.sites, ends, strict=True)
        )
        self.site_of = torch.arange(len(self.sites)).repeat_interleave(sizes)
        self.norm_producers = {s.name: s.producer for s in self.sites if s.producer is not None}

    def __len__(self) -> int:
        return len(self.site_of)

    def __iter__(self) -> Iterator[str]:
        """The labels of all units."""
        return (f"{site.name}[{index}]" for site in self.sites for index in range(site.size))

    def __repr__(self) -> str:
        return f"Units({len(self)} in {len(self.sites)} sites)"

    def label(self, unit: int) -> str:
        """What unit ``unit`` is called: "layer1.0.bn1[7]"."""
        site = int(self.site_of[unit])
        return f"{self.sites[site].name}[{unit % len(self) - self.slices[site].start}]"

    def tensors(
        self, network: nn.Module, scale: Tensor, shift: Tensor | None = None
    ) -> dict[str, Tensor]:
        """The parameters that the factors change, by name, each in its own dtype.

        Args:
            network: the one that the units were found in, or a copy of it.
            scale: (n,), one factor for each unit; differentiable.
            shift: (n,), the factors of the biases; by default they stay.

        Raises:
            InputError: a factor's shape is not (n,).
        """
        state = named_tensors(network)
        products: dict[str, Tensor] = {}
        for factors, kind in ((scale, "scales"), (shift, "shifts")):
            if factors is None:
                continue
            if factors.shape != (len(self),):
                raise InputError(
                    f"the factors have shape {tuple(factors.shape)}; expected ({len(self)},), one "
                    "for each unit"
                )
            for site, part in zip(self.sites, self.slices, strict=True):
                slot: Slot
                for slot in getattr(site, kind):
                    weight = products.get(slot.parameter, state[slot.parameter])
                    products[slot.parameter] = weight * _along(factors[part], slot, weight)
        return products

    def logits(
        self, classifier: Classifier, images: Tensor, scale: Tensor, shift: Tensor | None = None
    ) -> Tensor:
        """Logits (b, classes) of images (b, c, h, w) in [0, 1] under the factors (n,).

        The network runs in its current mode. In training mode norms use the statistics of the
        batch, and the running ones stay as they were.
        """
        changed = self.tensors(classifier.network, scale, shift)
        return logits_with(classifier, images, changed)

    def logits_of_many(
        self,
        classifier: Classifier,
        images: Tensor,
        scales: Tensor,
        shifts: Tensor | None = None,
        *,
        batched: bool | None = None,
    ) -> Tensor:
        """Logits (k, b, classes) under each of k masks.

        Args:
            classifier: in eval mode.
            images: (b, c, h, w) in [0, 1].
            scales: (k, n).
            shifts: (k, n), or None.
            batched: all masks in one forward pass (``torch.func.vmap``), or one after another;
                by default whichever is faster.

        Raises:
            InputError: the network is in training mode, or a shape is not as above.
        """
        if any(module.training for module in classifier.network.modules()):
            raise InputError(
                "several masks at once need the network in eval mode; it is in training mode: "
                "call this inside classifier.evaluating()"
            )
        for factors in (scales,) if shifts is None else (scales, shifts):
            if factors.shape != (len(scales), len(self)):
                raise InputError(
                    f"the factors have shape {tuple(factors.shape)}; expected "
                    f"({len(scales)}, {len(self)}), one row for each mask"
                )
        # On a CPU the loop is never slower. Measured with one thread, 8 masks, 100 images of 32x32,
        # seconds of loop / vmap without gradients and with them (torch 2.13):
        #   wrn-16-1  norm 1.07 / 1.83, 2.16 / 2.77   conv 1.05 / 1.18, 2.86 / 2.84
        #   resnet-8  norm 1.13 / 1.42, 2.71 / 4.22   conv 1.17 / 1.32, 4.20 / 6.21
        # On other devices small networks wait for their kernels to start, of which one pass has
        # fewer; that has not been measured.
        if batched is None:
            batched = images.device.type != "cpu"
        if not batched:
            rows = [None] * len(scales) if shifts is None else shifts
            pairs = zip(scales, rows, strict=True)
            return torch.stack([self.logits(classifier, images, *pair) for pair in pairs])
        given = (scales,) if shifts is None else (scales, shifts)
        return vmap(
            lambda *factors: self.logits(classifier, images, *factors),
            chunk_size=max(1, BATCH // len(images)),
        )(*given)

    def write(
        self, classifier: Classifier, scale: Tensor, shift: Tensor | None = None
    ) -> Classifier:
        """A copy with the products in its weights; exact zeros where a factor is 0."""
        twin = classifier.copy()
        state = named_tensors(twin.network)
        with torch.no_grad():
            for name, product in self.tensors(twin.network, scale, shift).items():
                state[name].copy_(product)
        return twin


def find_units(
    classifier: Classifier,
    shape: tuple[int, int, int] | None = None,
    *,
    sites: Choice | Sequence[Kind] = "auto",
) -> Units:
    """Finds the units by one forward pass on two random images, in eval mode.

    Args:
        classifier: any network; its last linear layer has no units.
        shape: (c, h, w) of its images; by default what ``classifier.trace`` saw.
        sites: kinds of units; "all"; or "auto": all norms and heads, and those convolutions and
            hidden linear layers whose output no affine norm scales again.

    Raises:
        InputError: the network has no such units, or ``sites`` is no such choice.

    >>> network = nn.Sequential(nn.Flatten(), nn.Linear(12, 6), nn.ReLU(), nn.Linear(6, 5))
    >>> units = find_units(Classifier(network, mean=0.5, std=0.25, input_size=(2, 2)), (3, 2, 2))
    >>> len(units), units.label(4), units.sites[0].kind
    (6, '1[4]', 'linear')
    """
    chosen = _kinds(sites)
    if shape is not None:
        classifier.trace(shape)
    network, head = classifier.network, classifier.head.name
    generator = torch.Generator().manual_seed(0)
    probe = torch.rand((2, *classifier.input_shape), generator=generator).to(classifier.device)
    trace = UnitTrace({id(tensor): name for name, tensor in named_tensors(network).items()}, head)
    # Cached, a parametrised weight is one and the same tensor in the pass and afterwards.
    with classifier.evaluating(), torch.no_grad(), parametrize.cached():
        with trace:
            classifier(probe)
        skipped = _skipped(network, trace)
    found = trace.sites()
    kept = [site for site in found if site.kind in chosen]
    if sites == "auto":
        normed = trace.normed()
        kept = [
            site
            for site in kept
            if site.kind in ("norm", "heads") or site.scales[0].parameter not in normed
        ]
    if not kept:
        raise InputError(_nothing(chosen, found, skipped))
    return Units(kept, skipped)


def _kinds(sites: Choice | Sequence[Kind]) -> tuple[Kind, ...]:
    given = (sites,) if isinstance(sites, str) else tuple(sites)
    if given in (("auto",), ("all",)):
        return KINDS
    kinds = tuple(kind for kind in KINDS if kind in given)
    if not given or len(kinds) != len(set(given)):
        raise InputError(
            f"sites is {sites!r}; expected 'auto', 'all', or kinds of {', '.join(KINDS)}"
        )
    return kinds


def _along(factors: Tensor, slot: Slot, weight: Tensor) -> Tensor:
    """The factors in the weight's dtype, repeated, and shaped to lie along the slot's axis."""
    factors = factors.to(weight)
    if slot.repeats > 1:
        factors = factors.unsqueeze(1).expand(-1, slot.repeats).reshape(-1)
    return factors.reshape(-1, *[1] * (weight.ndim - 1 - slot.dim))


def _skipped(network: nn.Module, trace: UnitTrace) -> list[tuple[str, str]]:
    """Layers without units, by the names of the modules where these can be told."""
    computed: dict[int, str] = {}
    for path, module in network.named_modules():
        held = vars(module).items()  # weights that a hook of weight_norm or spectral_norm left
        computed |= {id(value): f"{path}.{name}" for name, value in held}
        for name in getattr(module, "parametrizations", ()):
            computed[id(getattr(module, name))] = f"{path}.{name}"
    owners = {id(b): name.rpartition(".")[0] for name, b in network.named_buffers()}
    reasons = {
        computed.get(id(weight), function).removesuffix(".weight"): (
            "its weight is computed anew at every call (a parametrisation); make it a plain "
            "parameter first"
        )
        for function, weight in trace.computed
    } | {
        owners.get(id(mean), function): "a norm without a scale (affine=False)"
        for function, mean in trace.plain_norms
    }
    return list(reasons.items())


def _nothing(
    kinds: Sequence[Kind], found: Sequence[Site], skipped: Sequence[tuple[str, str]]
) -> str:
    counts = [
        f"{sum(site.size for site in found if site.kind == kind)} of kind {kind!r}"
        for kind in KINDS
        if any(site.kind == kind for site in found)
    ]
    passed = "; ".join(f"{name}: {reason}" for name, reason in skipped[:5])
    return (
        f"the network has no units of the kinds {', '.join(kinds)}; it has "
        + (", ".join(counts) or "none at all besides its last linear layer")
        + (f" (passed over: {passed})" if passed else "")
        + "; choose other sites, or a method that needs no units"
    )
