"""The one training loop: victims for tests and demos, and every fine-tuning stage.

SGD with momentum on a device-resident ``ImageSet``, batched augmentation on the device,
``bfloat16`` where the processor has it. What is minimised is an argument.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Literal

import msgspec
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bezoar.augmentation import crop_and_flip
from bezoar.classifier import Classifier
from bezoar.device import training_precision
from bezoar.errors import InputError
from bezoar.images import ImageSet

Loss = Callable[[Classifier, Tensor, Tensor, torch.Generator], Tensor]
"""(classifier, images (n, c, h, w) in [0, 1], labels (n,), generator) → scalar loss."""

Progress = Callable[[str, float], None]
"""Called with what is being done and the share that is finished, in [0, 1]."""

_NORMS = (nn.modules.batchnorm._BatchNorm,)


def no_progress(_what: str, _share: float) -> None:
    """The progress callback of whoever does not want one."""


class Recipe(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How to train.

    Attributes:
        epochs: passes over the images.
        batch_size: images in a step.
        learning_rate: the highest one.
        schedule: ``cosine`` falls from it to 0; ``one-cycle`` rises for a fifth, then falls
            linearly to 0; ``constant`` stays.
        momentum: of SGD (Nesterov).
        weight_decay: on all parameters.
        clip_norm: largest gradient norm; 0 does not clip.
        crop_padding: pixels of random shift; 0 does not shift.
        flip: random horizontal flips; wrong for digits and signs.
        batch_norm: ``train`` normalises with each batch, ``eval`` keeps the running statistics.
        bfloat16: multiply in ``bfloat16`` where the processor does that faster.
    """

    epochs: int = 10
    batch_size: int = 128
    learning_rate: float = 0.01
    schedule: Literal["cosine", "one-cycle", "constant"] = "cosine"
    momentum: float = 0.9
    weight_decay: float = 5e-4
    clip_norm: float = 0.0
    crop_padding: int = 0
    flip: bool = False
    batch_norm: Literal["train", "eval"] = "train"
    bfloat16: bool = False

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}; expected at least 1")
        for name in ("learning_rate", "momentum", "weight_decay", "clip_norm", "crop_padding"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise InputError(f"{name} is {getattr(self, name)}; expected 0 or more")


class History(msgspec.Struct, kw_only=True):
    """What happened: one value for each epoch, and the seconds of training alone."""

    loss: list[float] = []
    accuracy: list[float] = []
    seconds: float = 0.0


def cross_entropy(
    classifier: Classifier, images: Tensor, labels: Tensor, _generator: torch.Generator
) -> Tensor:
    """The ordinary loss."""
    return F.cross_entropy(classifier(images), labels)


def fit(
    classifier: Classifier,
    images: ImageSet,
    recipe: Recipe,
    *,
    seed: int,
    loss: Loss = cross_entropy,
    parameters: Iterable[nn.Parameter] | None = None,
    validation: ImageSet | None = None,
    before_epoch: Callable[[int], None] | None = None,
    progress: Progress = no_progress,
    what: str = "training",
) -> History:
    """Trains ``classifier.network`` in place on ``images`` and leaves it in eval mode.

    Args:
        classifier: whose network is trained; give a copy if the original must stay.
        images: labelled training images.
        recipe: how.
        seed: of the order, the augmentation and what the loss draws.
        loss: what is minimised.
        parameters: which ones train; by default all.
        validation: labelled images whose accuracy is recorded after each epoch (not timed).
        before_epoch: called with the number of the epoch, from 0, before it begins.
        progress: called after each epoch.
        what: the name of this work for ``progress``.

    Raises:
        InputError: no labels, a label the network has no logit for, or the recipe let the loss
            or the weights grow beyond all finite numbers.
    """
    labels = images.require_labels(what)
    network, device = classifier.network, classifier.device
    classifier.trace(images.shape)
    if len(labels) and int(labels.max()) >= classifier.num_classes:
        raise InputError(
            f"label {int(labels.max())} needs {int(labels.max()) + 1} classes and the network has "
            f"{classifier.num_classes}"
        )
    trained = list(network.parameters() if parameters is None else parameters)
    optimizer = torch.optim.SGD(
        trained,
        recipe.learning_rate,
        momentum=recipe.momentum,
        weight_decay=recipe.weight_decay,
        nesterov=recipe.momentum > 0,
    )
    generator = torch.Generator().manual_seed(seed)
    history = History()
    steps_in_epoch = max(1, -(-len(images) // recipe.batch_size))
    total = recipe.epochs * steps_in_epoch
    step = 0
    layout = {"memory_format": torch.channels_last} if device.type != "mps" else {}
    network.to(**layout)  # type: ignore[call-overload]  # torch's stub lacks memory_format
    resident = images.to(device)
    forked = torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])
    with forked, _requiring_gradients(trained):
        torch.manual_seed(seed)  # dropout and the like draw from the global generator
        for epoch in range(recipe.epochs):
            started = time.perf_counter()
            if before_epoch is not None:
                before_epoch(epoch)
            _set_mode(network, recipe)
            losses: list[Tensor] = []
            for batch, batch_labels in resident.batches(recipe.batch_size, generator=generator):
                leftover = len(batch) == 1 < recipe.batch_size
                if leftover and recipe.batch_norm == "train" and step:
                    continue  # batch statistics of one image are no statistics
                assert batch_labels is not None  # noqa: S101 (require_labels above)
                if recipe.crop_padding or recipe.flip:
                    batch = crop_and_flip(
                        batch, padding=recipe.crop_padding, flip=recipe.flip, generator=generator
                    )
                batch = batch.contiguous(memory_format=torch.channels_last)
                for group in optimizer.param_groups:
                    group["lr"] = recipe.learning_rate * _rate(recipe, step, total)
                with training_precision(device, recipe.bfloat16):
                    value = loss(classifier, batch, batch_labels, generator)
                optimizer.zero_grad(set_to_none=True)
                value.backward()  # type: ignore[no-untyped-call]  # torch's stub lacks the type
                if recipe.clip_norm:
                    nn.utils.clip_grad_norm_(trained, recipe.clip_norm)
                optimizer.step()
                losses.append(value.detach().float())
                step += 1
            mean_loss = float(torch.stack(losses).mean()) if losses else 0.0
            history.seconds += time.perf_counter() - started
            if not math.isfinite(mean_loss):
                raise _diverged(what, f"the loss is {mean_loss} in epoch {epoch + 1}", recipe)
            history.loss.append(mean_loss)
            if validation is not None:
                answers = classifier.logits(validation).argmax(1)
                truth = validation.require_labels(what).to(answers.device)
                history.accuracy.append(float((answers == truth).float().mean()))
            progress(what, (epoch + 1) / recipe.epochs)
    network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]  # as above
    network.eval()
    if not all(bool(torch.isfinite(parameter).all()) for parameter in trained):
        raise _diverged(what, "the weights are not finite numbers after the last epoch", recipe)
    return history


@contextlib.contextmanager
def _requiring_gradients(parameters: list[nn.Parameter]) -> Iterator[None]:
    """Networks that were loaded for inference often have their parameters frozen."""
    flags = [parameter.requires_grad for parameter in parameters]
    for parameter in parameters:
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        for parameter, flag in zip(parameters, flags, strict=True):
            parameter.requires_grad_(flag)


def _diverged(what: str, how: str, recipe: Recipe) -> InputError:
    return InputError(
        f"{what} diverged: {how}; use a smaller learning rate than {recipe.learning_rate:g}"
    )


def _set_mode(network: nn.Module, recipe: Recipe) -> None:
    network.train()
    if recipe.batch_norm == "eval":
        for module in network.modules():
            if isinstance(module, _NORMS):
                module.eval()


def _rate(recipe: Recipe, step: int, total: int) -> float:
    share = step / total
    if recipe.schedule == "cosine":
        return 0.5 * (1 + float(torch.cos(torch.tensor(share * torch.pi))))
    if recipe.schedule == "one-cycle":
        return min(share / 0.2, (1 - share) / 0.8)
    return 1.0
