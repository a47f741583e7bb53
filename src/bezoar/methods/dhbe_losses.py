"""What the players of DHBE minimise: gaps between logits, and priors on synthetic images.

    D    = mean_{B,C} |T(x) - S(x)|                        ``gap``, distillation
    R    = mean_{B,C} |S(x) - S(x_p)|                      ``sensitivity``, to a pattern
    L_S  = D + lambda R                                    student
    L_G  = -D + alpha_1 TV_1(x) + alpha_2 TV_2(x)          sample generator
    L_Gp = -R                                              pattern generator

All on raw logits, without temperature or softmax. TV_1 and TV_2 measure how rough an image is in
four directions: to the right, down, and along both diagonals.

Source: Yan et al. 2023, arXiv 2306.08009; its overview figure has D and R, the two roughness terms
and the constant branch of R stand in the released code. From elsewhere (ours here): the terms that
keep synthetic images spread over the classes and decided, from DAFL (Chen et al. 2019, arXiv
1904.01186), and a TV_2 whose size does not depend on batch and resolution.

Known failures: nothing bounds -D, which rewards logits of any size; TV_2 as published grows like
sqrt(B H W). Everything is computed in ``float32`` at least, whatever format the logits have.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from bezoar.errors import InputError

_PUBLISHED_NUMBERS = 256 * 32 * 32  # B H W, for which alpha_2 was chosen


def gap(first: Tensor, second: Tensor) -> Tensor:
    """The mean absolute difference of logits (n, C), a scalar: D of teacher and student.

    Gradients flow into both; what has to stay constant is for the caller to detach: the teacher's
    logits in the student's step, nothing in the sample generator's (released code).

    Raises:
        InputError: the shapes differ.
    """
    if first.shape != second.shape:
        raise InputError(
            f"logits have the shapes {tuple(first.shape)} and {tuple(second.shape)}; expected the "
            "same images and the same classes"
        )
    return (_wide(first) - _wide(second)).abs().mean()


def sensitivity(clean: Tensor, stamped: Tensor, *, squared: bool = False) -> Tensor:
    """R: how far a pattern moves the logits (n, C), a scalar; the clean ones are constants.

    ``squared`` takes the mean of squares (ours), where few large moves count for more than many
    small ones: a trigger moves a logit far, any pattern moves most of them a little.

    So the student cannot lower R by moving its answers to clean images towards those to stamped
    ones (released code; the paper's figure draws R symmetrically). In the pattern generator's step
    the clean logits do not depend on the pattern, and this is the same number and gradient.
    """
    if squared:
        return F.mse_loss(_wide(stamped), _wide(clean.detach()))
    return gap(clean.detach(), stamped)


def total_variation(images: Tensor) -> Tensor:
    """TV_1 of images (n, c, h, w), a scalar: mean absolute differences, summed over directions.

    Raises:
        InputError: the images are less than two pixels high or wide.
    """
    return torch.stack([difference.abs().mean() for difference in _differences(images)]).sum()


def total_variation_norm(images: Tensor, *, as_published: bool = True) -> Tensor:
    """TV_2 of images (n, c, h, w), a scalar: norms of the whole batch, summed over directions.

    Args:
        images: a batch of at least one, two pixels high and wide or more.
        as_published: neither squared nor averaged, so that it grows like sqrt(n h w) and a weight
            fits one batch size and resolution only. Otherwise (ours) times sqrt(256 · 32² /
            (n h w)): the published number for 256 images of 32x32, and about the same for others.

    Raises:
        InputError: the images are less than two pixels high or wide.
    """
    norms = [torch.linalg.vector_norm(difference) for difference in _differences(images)]
    numbers = len(images) * images.shape[2] * images.shape[3]
    scale = 1.0 if as_published else math.sqrt(_PUBLISHED_NUMBERS / numbers)
    return scale * torch.stack(norms).sum()


def class_imbalance(logits: Tensor) -> Tensor:
    """How unevenly logits (n, C) fall on the classes: ln C - H(mean_B softmax), a scalar in nats.

    0 (to rounding) where the batch as a whole is spread evenly over the classes, ln C where all of
    it is of one class. The information entropy loss of DAFL, in nats and with a floor at 0; not
    part of DHBE, whose sample generator may put nearly a whole batch into one class.
    """
    count, classes = logits.shape
    # In logarithms to the end: entropies from probabilities have no finite slope where one is 0.
    logs = _wide(logits).log_softmax(1).logsumexp(0) - math.log(count)
    return math.log(classes) + (logs.exp() * logs).sum()


def indecision(logits: Tensor) -> Tensor:
    """Mean cross-entropy of logits (n, C) to their own largest one, a scalar in nats.

    The one-hot loss of DAFL; not part of DHBE. 0 where every image is plainly of some class.
    """
    return F.cross_entropy(_wide(logits), logits.argmax(1))


def _differences(images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of neighbours: to the right, down, and along both diagonals."""
    if images.ndim != 4 or min(images.shape[2:]) < 2:
        raise InputError(
            f"images have shape {tuple(images.shape)}; expected (images, channels, height, width) "
            "with at least two pixels in height and width, as neighbours are compared"
        )
    x = _wide(images)
    return (
        x[:, :, :, :-1] - x[:, :, :, 1:],
        x[:, :, :-1] - x[:, :, 1:],
        x[:, :, 1:, :-1] - x[:, :, :-1, 1:],
        x[:, :, :-1, :-1] - x[:, :, 1:, 1:],
    )


def _wide(values: Tensor) -> Tensor:
    """In ``float32`` at least: a mean of thousands of ``bfloat16`` numbers has two digits."""
    return values.to(torch.promote_types(values.dtype, torch.float32))
