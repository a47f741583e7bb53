"""What a latent shift has to overcome: the right-hand sides of the TAC programme, from logits only.

A shift s carries every reference sample into class k when (w_k - w_j).s >= r_kj for all j, with

    r_kj = max_i (z_ij - z_ik)          (z: logits, i: samples; the head's bias is already in them)

Row k of the result belongs to the class that is shifted *into*, column j to the rival it must beat.

Three variants:

- full: the maximum over all samples, as the programme is written.
- conditional: only samples *predicted* as j count for rival j. No label is needed.
- quantile: the q-quantile over the samples predicted as j, so that single outliers do not set the
  length of the shift. A quantile over all samples would be wrong: with C classes only about n/C
  samples lie near the constraint of rival j.

Where no sample is predicted as j, the last two use the maximum over all samples for rival j: no
constraint is ever dropped. Their values never exceed those of the full maximum.

Equation (2) of Iwahana et al., "Robust Backdoor Removal by Reconstructing Trigger-Activated Changes
in Latent Representation", https://arxiv.org/abs/2511.08944.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bezoar.errors import InputError

# Samples inspected at either end of each class's logits before a maximum is taken for granted.
_EXTREMES = 64
# Elements of a temporary: what a processor core's cache holds, or 64 MB on an accelerator.
_CPU_CHUNK = 1 << 16
_ACCELERATOR_CHUNK = 1 << 23
# Beyond this many differences (samples x classes^2) the full maximum is no longer the default.
_AFFORDABLE = 50_000_000_000


def prefers_conditional(samples: int, classes: int) -> bool:
    """Whether the conditional variant is the sensible default for this many samples and classes.

    The full maximum compares ``samples * classes**2`` logits in the worst case, about 1e9 a second
    on one CPU core (most are ruled out unseen, so it usually takes a tenth of that); the
    conditional one ``samples * classes``. The full maximum is the definition, so it stays the
    default up to 5e10 comparisons: 50,000 samples at 1,000 classes.

    >>> prefers_conditional(5000, 1000), prefers_conditional(5000, 21_000)
    (False, True)
    """
    return samples * classes * classes > _AFFORDABLE


def right_hand_sides(
    logits: Tensor, *, conditional: bool | None = None, quantile: float | None = None
) -> Tensor:
    """Returns r with r[k, j] = max_i (z_ij - z_ik), shape (classes, classes), zero diagonal.

    Args:
        logits: the network's outputs for the reference samples, shape (samples, classes).
        conditional: True lets only the samples predicted as j count for column j, False takes all
            samples; None decides by ``prefers_conditional``.
        quantile: in (0, 1]; takes this quantile (interpolated linearly) instead of the maximum.
            It is taken among the samples predicted as j, so it implies ``conditional=True``.

    Returns:
        ``float64``, on the device of the logits (on the CPU where that device has no float64).

    Raises:
        InputError: the logits are no finite matrix with a sample and two classes, the quantile lies
            outside (0, 1], or ``conditional=False`` was combined with a quantile.

    >>> import torch
    >>> right_hand_sides(torch.tensor([[3.0, 1.0], [0.0, 4.0]]))
    tensor([[0., 4.],
            [2., 0.]], dtype=torch.float64)
    """
    if logits.ndim != 2 or logits.shape[0] < 1 or logits.shape[1] < 2:
        raise InputError(
            f"logits have shape {tuple(logits.shape)}; expected (samples, classes) with at least "
            "one sample and two classes"
        )
    if quantile is not None and not 0 < quantile <= 1:
        raise InputError(
            f"quantile {quantile} lies outside (0, 1]; 0.95 to 0.99 leaves out single outliers and "
            "1 is the maximum"
        )
    if quantile is not None and conditional is False:
        raise InputError(
            "conditional=False was given together with a quantile; the quantile is taken among the "
            "samples predicted as each class, so leave conditional out or set it to True"
        )
    values = as_float64(logits.detach())
    finite = torch.isfinite(values).all(dim=1)
    if not finite.all():
        raise InputError(
            f"the logits of {int((~finite).sum())} of {len(values)} samples are NaN or infinite; "
            "expected finite numbers, so check the weights and the images"
        )
    if conditional is None:
        conditional = quantile is not None or prefers_conditional(*values.shape)
    if not conditional:
        return _full_maximum(values)
    return _among_predicted(values, 1.0 if quantile is None else quantile)


def as_float64(tensor: Tensor) -> Tensor:
    """``tensor`` in double precision, moved to the CPU when its device has none (Apple's MPS)."""
    if tensor.device.type == "mps":
        tensor = tensor.cpu()
    return tensor.double()


def _among_predicted(values: Tensor, quantile: float) -> Tensor:
    classes = values.shape[1]
    predicted = values.argmax(dim=1)
    order = predicted.argsort(stable=True)
    sizes = torch.bincount(predicted, minlength=classes).tolist()
    groups = torch.tensor_split(values[order], torch.tensor(sizes[:-1]).cumsum(0))
    columns = values.T.contiguous()
    result = values.new_zeros(classes, classes)
    for rival, group in enumerate(groups):
        if len(group):
            gaps = group[:, rival, None] - group  # (samples predicted as the rival, classes)
            result[:, rival] = gaps.amax(dim=0) if quantile == 1 else _quantile(gaps, quantile)
        else:
            result[:, rival] = _pairs_maximum(columns, rival, None)
    return result


def _quantile(gaps: Tensor, quantile: float) -> Tensor:
    """Linear interpolation between order statistics; torch.quantile refuses large inputs."""
    ordered = gaps.sort(dim=0).values
    position = quantile * (len(gaps) - 1)
    low = int(position)
    high = min(low + 1, len(gaps) - 1)
    return torch.lerp(ordered[low], ordered[high], position - low)


def _full_maximum(values: Tensor) -> Tensor:
    """The exact maximum over all samples, without looking at most of them.

    For the pair (k, j), every sample outside the ``m`` largest z_j and the ``m`` smallest z_k has
    z_ij - z_ik <= (m-th largest z_j) - (m-th smallest z_k). Where the best of those 2m samples
    reaches this bound, it is the maximum; only the other pairs are computed over all samples.
    """
    samples, classes = values.shape
    columns = values.T.contiguous()  # (classes, samples)
    result = values.new_full((classes, classes), -torch.inf)
    unsettled = torch.ones_like(result, dtype=torch.bool)
    if samples > 8 * _EXTREMES:
        top, highest = columns.topk(_EXTREMES, dim=1)
        bottom, lowest = columns.topk(_EXTREMES, dim=1, largest=False)
        step = max(1, _chunk(values) // (_EXTREMES * classes))
        for start in range(0, classes, step):
            block = slice(start, start + step)
            # (rivals, samples, classes shifted into), then (classes shifted into, samples, rivals)
            result[:, block] = (top[block, :, None] - values[highest[block]]).amax(dim=1).T
        for start in range(0, classes, step):
            block = slice(start, start + step)
            gaps = (values[lowest[block]] - bottom[block, :, None]).amax(dim=1)
            result[block] = torch.maximum(result[block], gaps)
        unsettled = result < top[:, -1] - bottom[:, -1, None]
    unsettled.fill_diagonal_(False)
    for rival in torch.nonzero(unsettled.any(dim=0)).flatten().tolist():
        targets = torch.nonzero(unsettled[:, rival]).flatten()
        result[targets, rival] = _pairs_maximum(columns, rival, targets)
    return result.fill_diagonal_(0)


def _pairs_maximum(columns: Tensor, rival: int, targets: Tensor | None) -> Tensor:
    """max_i (z_ij - z_ik) for one rival j and the classes k in ``targets`` (None: all of them)."""
    rows = columns if targets is None else columns[targets]
    best = rows.new_full((len(rows),), -torch.inf)
    step = max(512, _chunk(rows) // len(rows))
    for start in range(0, columns.shape[1], step):
        block = slice(start, start + step)
        best = torch.maximum(best, (columns[rival, block] - rows[:, block]).amax(dim=1))
    return best


def _chunk(values: Tensor) -> int:
    return _CPU_CHUNK if values.device.type == "cpu" else _ACCELERATOR_CHUNK
