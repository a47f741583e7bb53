"""The one training loop: victims for tests and demos, and every fine-tuning stage.

SGD with momentum on a device-resident ``ImageSet``, batched augmentation on the device,
``bfloat16`` where the processor has it. What is minimised is an argument.
"""

from __future__ import annotations

import contextlib
import functools
import math
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bezoar.augmentation import crop_and_flip
from bezoar.classifier import Classifier
from bezoar.device import seeded, to_plain_layout, training_precision, with_gradients
from bezoar.errors import InputError
from bezoar.images import ImageSet
from bezoar.recipe import History, Recipe
from bezoar.resuming import Checkpoint, TrainingState

__all__ = ["BatchHook", "History", "Loss", "Progress", "Rate", "Recipe", "fit", "no_progress"]

Loss = Callable[[Classifier, Tensor, Tensor, torch.Generator], Tensor]
"""(classifier, images (n, c, h, w) in [0, 1], labels (n,), generator) → scalar loss."""

Progress = Callable[[str, float], None]
"""Called with what is being done and the share that is finished, in [0, 1]."""

Rate = Callable[[int, int], float]
"""(steps that are done, steps in all) → factor of the recipe's learning rate in the next step."""

_NORMS = (nn.modules.batchnorm._NormBase,)  # all that can have running statistics


def no_progress(_what: str, _share: float) -> None:
    """The progress callback of whoever does not want one."""


class BatchHook:
    """What an attacker (or an experiment) does in each step; by default nothing.

    A hook may train a module of its own beside the network: images that leave ``batch`` with a
    graph collect gradients there, and ``after_backward`` steps its own optimizer.
    """

    def batch(
        self, images: Tensor, labels: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Changes a batch before augmentation.

        Args:
            images: shape (n, c, h, w) in [0, 1], on the network's device.
            labels: shape (n,).
            generator: of all draws, on the CPU.

        Returns:
            As many images and labels.
        """
        return images, labels

    def penalty(self, classifier: Classifier) -> Tensor | None:
        """A scalar that is added to the loss of this batch."""
        return None

    def after_backward(self) -> None:
        """Called when the gradients are there and the network has made its step."""

    def facts(self) -> dict[str, Any]:
        """Settings of its own that tell this training from others, JSON-able."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """What a resumed training needs of this hook: tensors and plain values."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes the state back."""


@with_gradients()
def fit(
    classifier: Classifier,
    images: ImageSet,
    recipe: Recipe,
    *,
    seed: int,
    loss: Loss | None = None,
    parameters: Iterable[nn.Parameter] | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    validation: ImageSet | None = None,
    before_epoch: Callable[[int], None] | None = None,
    rate: Rate | None = None,
    hook: BatchHook | None = None,
    checkpoint: Path | None = None,
    progress: Progress = no_progress,
    what: str = "training",
) -> History:
    """Trains ``classifier.network`` in place on ``images`` and leaves it in eval mode.

    Args:
        classifier: whose network is trained; give a copy if the original must stay.
        images: labelled training images.
        recipe: how.
        seed: of the order, the augmentation and what the loss draws.
        loss: what is minimised; by default the cross-entropy.
        parameters: which ones train; by default all. The others get no gradients.
        optimizer: of those parameters, to go on with; the recipe sets its learning rate. By default
            a new SGD.
        validation: labelled images whose accuracy is recorded after each epoch (not timed).
        before_epoch: called with the number of the epoch, from 0, before it begins.
        rate: how the learning rate goes up and down, in the place of the recipe's schedule.
        hook: what else happens in each step.
        checkpoint: a file that is renewed after each epoch. Where it is there at the start,
            training goes on from it and ends as if it had not been interrupted. It stays at the
            end: the caller removes it once what was trained is safe.
        progress: called after each epoch.
        what: the name of this work for ``progress``.

    Raises:
        InputError: no labels, a label the network has no logit for, a checkpoint of another
            training, or the recipe let the loss or the weights grow beyond all finite numbers.
    """
    labels = images.require_labels(what)
    network, device = classifier.network, classifier.device
    classifier.trace(images.shape)
    if len(labels) and int(labels.max()) >= classifier.num_classes:
        raise InputError(
            f"label {int(labels.max())} needs {int(labels.max()) + 1} classes and the network has "
            f"{classifier.num_classes}"
        )
    hook = hook or BatchHook()
    loss = loss or _cross_entropy(recipe)
    rate = rate or functools.partial(_rate, recipe)
    trained = list(network.parameters() if parameters is None else parameters)
    optimizer = optimizer or torch.optim.SGD(
        trained,
        recipe.learning_rate,
        momentum=recipe.momentum,
        weight_decay=recipe.weight_decay,
        nesterov=recipe.momentum > 0,
    )
    generator = torch.Generator().manual_seed(seed)
    total = recipe.epochs * _steps_in_epoch(len(images), recipe)
    resident = images.to(device)
    through_images = needs_gradients_of_images(network)
    with (
        _laid_out(classifier),
        seeded(device, seed),
        gradients_only_for(network, trained),
        _compiled(network, recipe.compile),
    ):
        run = TrainingState(network, optimizer, generator, hook, recipe.ema)
        scale = {"mean": list(classifier.mean), "std": list(classifier.std)}
        facts = {"recipe": recipe, "seed": seed, "what": what, **scale, **hook.facts()}
        saved = Checkpoint(checkpoint, run, images, facts)
        for epoch in range(run.epochs, recipe.epochs):
            started = time.perf_counter()
            if before_epoch is not None:
                before_epoch(epoch)
            _set_mode(network, recipe)
            losses: list[Tensor] = []
            for batch, batch_labels in resident.batches(recipe.batch_size, generator=generator):
                if run.steps and len(batch) == 1 and _skips_single(recipe):
                    continue
                assert batch_labels is not None  # noqa: S101 (require_labels above)
                batch, batch_labels = hook.batch(batch, batch_labels, generator)
                if recipe.crop_padding or recipe.flip:
                    batch = crop_and_flip(
                        batch,
                        padding=recipe.crop_padding,
                        flip=recipe.flip,
                        generator=generator,
                        border=recipe.border,
                    )
                batch = batch.contiguous(memory_format=torch.channels_last)
                if through_images:
                    batch.requires_grad_()
                for group in optimizer.param_groups:
                    group["lr"] = recipe.learning_rate * rate(run.steps, total)
                with training_precision(device, recipe.bfloat16):
                    value = loss(classifier, batch, batch_labels, generator)
                    penalty = hook.penalty(classifier)
                    value = value if penalty is None else value + penalty
                optimizer.zero_grad(set_to_none=True)
                value.backward()  # type: ignore[no-untyped-call]  # torch's stub lacks the type
                if recipe.clip_norm:
                    nn.utils.clip_grad_norm_(trained, recipe.clip_norm)
                optimizer.step()
                hook.after_backward()
                losses.append(value.detach().float())
                run.count_step()
            mean_loss = float(torch.stack(losses).mean()) if losses else 0.0
            run.history.seconds += time.perf_counter() - started
            if not math.isfinite(mean_loss):
                raise _diverged(what, f"the loss is {mean_loss} in epoch {epoch + 1}", recipe)
            run.history.loss.append(mean_loss)
            if validation is not None:
                answers = classifier.logits(validation).argmax(1)
                truth = validation.require_labels(what).to(answers.device)
                run.history.accuracy.append(float((answers == truth).float().mean()))
            saved.write()
            progress(what, (epoch + 1) / recipe.epochs)
        run.take_average()
        optimizer.zero_grad(set_to_none=True)  # gradients are as large as the network
    if not all(bool(torch.isfinite(parameter).all()) for parameter in trained):
        raise _diverged(what, "the weights are not finite numbers after the last epoch", recipe)
    return run.history


def _cross_entropy(recipe: Recipe) -> Loss:
    def loss(
        classifier: Classifier, images: Tensor, labels: Tensor, _generator: torch.Generator
    ) -> Tensor:
        logits = classifier(images)
        return F.cross_entropy(logits, labels, label_smoothing=recipe.label_smoothing)

    return loss


@contextlib.contextmanager
def _compiled(network: nn.Module, wanted: bool) -> Iterator[None]:
    """The network compiled inside the block, and as it was afterwards."""
    if not wanted:
        yield
        return
    before = network._compiled_call_impl
    network.compile()
    try:
        yield
    finally:
        network._compiled_call_impl = before


@contextlib.contextmanager
def gradients_only_for(network: nn.Module, trained: list[nn.Parameter]) -> Iterator[None]:
    """Only what is trained, inside the block; afterwards each parameter is as it was.

    Loaded networks are often frozen, and what stays needs no gradient, which saves its cost.
    """
    chosen = {id(parameter) for parameter in trained}
    both = {id(parameter): parameter for parameter in (*network.parameters(), *trained)}
    flags = [(parameter, parameter.requires_grad) for parameter in both.values()]
    for parameter, _ in flags:
        parameter.requires_grad_(id(parameter) in chosen)
    try:
        yield
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)


@contextlib.contextmanager
def _laid_out(classifier: Classifier) -> Iterator[None]:
    """The fast layout inside the block; after it, however it ends, contiguous and in eval mode."""
    classifier.to_fast_layout()
    try:
        yield
    finally:
        to_plain_layout(classifier.network)
        classifier.network.eval()


def needs_gradients_of_images(network: nn.Module) -> bool:
    """Whether a GroupNorm may have to learn from an input that needs no gradient.

    That is so behind layers that do not learn, and where it is the first layer. Its backward pass
    then ends the process (torch 2.13, CPU, channels last); images that need gradients keep it from
    that.
    """
    return any(isinstance(module, nn.GroupNorm) for module in network.modules())


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


def _skips_single(recipe: Recipe) -> bool:
    """Whether a last batch of one image is left out: its batch statistics are no statistics."""
    return recipe.batch_norm == "train" and recipe.batch_size > 1


def _steps_in_epoch(images: int, recipe: Recipe) -> int:
    """How many batches an epoch has, less one that is left out.

    >>> [_steps_in_epoch(n, Recipe(batch_size=32)) for n in (1, 32, 33, 34, 65)]
    [1, 1, 1, 2, 2]
    """
    whole, rest = divmod(images, recipe.batch_size)
    left_out = rest == 1 and whole > 0 and _skips_single(recipe)
    return max(1, whole + (rest > 0) - left_out)


def _rate(recipe: Recipe, step: int, total: int) -> float:
    share = step / total
    if recipe.schedule == "cosine":
        return 0.5 * (1 + float(torch.cos(torch.tensor(share * torch.pi))))
    if recipe.schedule == "one-cycle":
        return min(share / 0.2, (1 - share) / 0.8)
    return 1.0
