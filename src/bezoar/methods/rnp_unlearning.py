"""RNP's first step: a network unlearns what it does on clean images (gradient ascent).

    theta_hat = argmax_theta E_(x,y) CE(f(x; theta), y)    until ACC on the clean images <= stop

The clean images destroy what serves clean images. The way of the trigger gets almost no gradient
and survives, so the unlearned network falls back to the target class and still obeys the trigger.

Paper: Li et al. 2023, arXiv 2305.14876, Algorithm 1; settings after its official code. The paper's
text could not be reached beyond the abstract and that algorithm. Ours: the stop is a multiple of
chance and is tested in eval mode every few steps (the code tests the running accuracy of an epoch);
the last good state comes back with a third of the rate when a step overshoots, since CE has no
upper bound; the rate triples after each quarter of the epochs; batches of equal size.

Norms normalise with batch statistics here, as in the official code, and that matters: with running
statistics the ascent breaks the network at once, the backdoor with it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import msgspec
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bezoar.classifier import Classifier
from bezoar.device import seeded, to_plain_layout
from bezoar.errors import InputError
from bezoar.images import ImageSet
from bezoar.methods.rnp_batches import even_batches
from bezoar.network_tensors import copied_tensors, put_back
from bezoar.training import Progress, needs_gradients_of_images, no_progress

LEVELS = (0.75, 0.5, 0.25)  # shares of the first accuracy at which a state is kept
EARLY = (0.75, 0.5)  # those at which the lost images tell where the network falls
AT_CHANCE = 1.1  # times chance: a network that answers one class only has just chance
FAR = 0.9  # share of the first accuracy above which the stop is far
SLOWER = 1 / 3  # factor of the rate after an overshoot
FASTER = 3.0  # factor of the rate when a quarter of the epochs did not suffice
FALL = 1 / 3  # share of the first accuracy that may be lost between two tests
SLOWEST = 1e-7  # a rate below it means that no rate is small enough


class Unlearning(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How clean images are unlearned.

    Attributes:
        learning_rate: of SGD, at the start.
        momentum: of SGD.
        weight_decay: on all parameters.
        batch_size: images in a step, at most; at least 2, for the statistics of a batch.
        max_epochs: passes over the images before it gives up.
        drops: epochs at which the rate is divided by 10.
        stop_over_chance: stops when the accuracy is at most this many times 1 / classes; with two
            or three classes, where that may be the first accuracy already, at half of the first
            one or a tenth above chance. Here the accuracy is the mean over the classes, so that a
            network that answers one class only is at chance whatever class it is and however many
            images it has.
        stop: stops at this accuracy, in [0, 1], of all images instead.
        check_every: steps between two tests of the stop in eval mode, twice as many while the
            rate adapts and little has happened; 0 tests the running accuracy (training mode,
            augmented) at the end of each epoch, as the official code does.
        adapt: goes back and takes a smaller rate after an overshoot, and a larger one after each
            quarter of ``max_epochs``; overshoots are seen only where ``check_every`` tests.
        clip_norm: largest gradient norm; 0 does not clip (in the official code clipping comes
            before the gradients are there and does nothing).
        crop_padding: pixels of random shift.
        flip: random horizontal flips.
    """

    learning_rate: float = 0.003
    momentum: float = 0.9
    weight_decay: float = 5e-4
    batch_size: int = 128
    max_epochs: int = 100
    drops: tuple[int, ...] = ()
    stop_over_chance: float = 2.0
    stop: float | None = None
    check_every: int = 2
    adapt: bool = True
    clip_norm: float = 0.0
    crop_padding: int = 0
    flip: bool = False

    def __post_init__(self) -> None:
        whole = {"batch_size": 2, "max_epochs": 1, "check_every": 0, "crop_padding": 0}
        for name, least in whole.items():
            if getattr(self, name) < least:
                raise InputError(f"{name} is {getattr(self, name)}; expected at least {least}")
        for name in ("learning_rate", "stop_over_chance"):
            if not 0 < getattr(self, name) < math.inf:
                raise InputError(f"{name} is {getattr(self, name)}; expected more than 0")
        for name in ("momentum", "weight_decay", "clip_norm"):
            if not 0 <= getattr(self, name) < math.inf:
                raise InputError(f"{name} is {getattr(self, name)}; expected 0 or more")
        if self.stop is not None and not 0 <= self.stop < 1:
            raise InputError(f"stop is {self.stop}; expected an accuracy in [0, 1)")

    @classmethod
    def published(cls) -> Unlearning:
        """The settings of the official code for CIFAR-10."""
        return cls(
            learning_rate=0.01,
            max_epochs=21,
            drops=(10, 20),
            stop=0.2,
            check_every=0,
            adapt=False,
            crop_padding=4,
            flip=True,
        )


@dataclass
class Unlearned:
    """A network that has forgotten the clean images.

    Attributes:
        classifier: a copy of the suspect, in eval mode.
        first_accuracy: of the suspect on the clean images, in [0, 1].
        stop: the accuracy at which it was to stop.
        reached: whether it got there.
        answers: (classes,), the share of the clean images that the unlearned network answers with
            each class; they sum to 1.
        learning_rate: the last one.
        overshoots: how often it went back.
        steps, accuracy, top_share: at each test, the steps so far, the accuracy and the share of
            the commonest answer.
        levels: share of the first accuracy → state dict at the first test at or below it.
        lost: the same levels → (classes,), where the images went that the suspect answered rightly
            and this state does not: the share of them that is answered with each class.
    """

    classifier: Classifier
    first_accuracy: float
    stop: float
    learning_rate: float
    reached: bool = False
    overshoots: int = 0
    answers: Tensor = field(default_factory=lambda: torch.zeros(0))
    steps: list[int] = field(default_factory=list)
    accuracy: list[float] = field(default_factory=list)
    top_share: list[float] = field(default_factory=list)
    levels: dict[float, dict[str, Tensor]] = field(default_factory=dict)
    lost: dict[float, Tensor] = field(default_factory=dict)

    @property
    def pull(self) -> Tensor:
        """How strongly each class draws the images that are lost: (classes,), sums to 1.

        The mean of ``lost`` over the early levels. A backdoor takes the first images that the
        ascent sets free; what a network falls into at the end is much a matter of chance.
        """
        early = [self.lost[level] for level in EARLY if level in self.lost]
        return torch.stack(early).mean(0) if early else self.answers

    @property
    def fallback(self) -> int:
        """The class with the strongest pull: the suspected target class."""
        return int(self.pull.argmax())

    def at(self, level: float) -> Classifier:
        """A copy at the first test where at most ``level`` of the first accuracy was left.

        Where the ascent ended above that level, or went past all of them in one stride, the end.
        """
        twin = self.classifier.copy()
        if level in self.levels:
            put_back(twin.network, self.levels[level])
        return twin

    def as_record(self) -> dict[str, Any]:
        """The figures."""
        return {
            "first_accuracy": self.first_accuracy,
            "stop": self.stop,
            "reached": self.reached,
            "accuracy": self.accuracy[-1] if self.accuracy else self.first_accuracy,
            "fallback": self.fallback,
            "pull": self.pull.tolist(),
            "answers": self.answers.tolist(),
            "steps": self.steps[-1] if self.steps else 0,
            "learning_rate": self.learning_rate,
            "overshoots": self.overshoots,
        }


def unlearn(
    classifier: Classifier,
    clean: ImageSet,
    settings: Unlearning,
    *,
    seed: int,
    until: float | None = None,
    progress: Progress = no_progress,
    what: str = "unlearning the clean images",
) -> Unlearned:
    """Unlearns ``clean`` in a copy of ``classifier``.

    A stop that is not reached is no error: ``reached`` is False, and the caller says so.

    Args:
        classifier: the suspect; it stays as it is.
        clean: labelled images.
        settings: how.
        seed: of the order and the draws.
        until: share of the first accuracy at which it stops already.
        progress: called after each epoch.
        what: it is called in the progress.

    Raises:
        InputError: no labels, fewer than two images, or every rate breaks the network.
    """
    labels = clean.require_labels("unlearning")
    if len(clean) < 2:
        raise InputError("unlearning needs at least two images")
    clean.class_counts(classifier.trace(clean.shape).num_classes)
    twin = classifier.copy()
    device = twin.device
    images = clean.to(device)
    first = _answers(twin, images)
    first_accuracy, stop = _accuracy(first, labels, settings), settings.stop
    if stop is None:
        chance = 1 / classifier.num_classes
        stop = settings.stop_over_chance * chance
        if stop > (chance + first_accuracy) / 2:  # not even half of the way to chance
            stop = max(min(EARLY) * first_accuracy, AT_CHANCE * chance)
    run = Unlearned(
        classifier=twin,
        first_accuracy=first_accuracy,
        stop=stop,
        learning_rate=settings.learning_rate,
    )
    twin.network.requires_grad_(True)
    twin.to_fast_layout()
    if until is not None:
        run.stop = max(run.stop, until * run.first_accuracy)
    progress(what, 0.0)
    with seeded(device, seed), torch.enable_grad():
        _ascend(run, images, labels, first == labels.cpu(), settings, seed, progress, what)
    to_plain_layout(twin.network)
    twin.network.eval()
    for (_, theirs), ours in zip(
        classifier.network.named_parameters(), twin.network.parameters(), strict=True
    ):
        ours.requires_grad_(theirs.requires_grad)
        ours.grad = None
    run.answers = torch.bincount(_answers(twin, images), minlength=twin.num_classes) / len(images)
    progress(what, 1.0)
    return run


def _ascend(
    run: Unlearned,
    images: ImageSet,
    labels: Tensor,
    right: Tensor,
    settings: Unlearning,
    seed: int,
    progress: Progress,
    what: str,
) -> None:
    network = run.classifier.network
    optimizer = _Ascent(network, settings)
    generator = torch.Generator().manual_seed(seed)
    done, due = 0, settings.check_every
    kept, kept_accuracy = optimizer.state(), run.first_accuracy
    for epoch in range(settings.max_epochs):
        if settings.adapt and epoch and epoch % -(-settings.max_epochs // 4) == 0:
            run.learning_rate *= FASTER
        drop = 0.1 ** sum(epoch >= start for start in settings.drops)
        hits = 0
        for batch, batch_labels in even_batches(images, settings, generator):
            rate = run.learning_rate * drop
            hits += optimizer.step(run.classifier, batch, batch_labels, rate)
            done += 1
            if not settings.check_every or done < due:
                continue
            due = done + settings.check_every
            answers = _answers(run.classifier, images)
            accuracy = _accuracy(answers, labels, settings)
            broken = not optimizer.is_finite()
            if settings.adapt and (
                broken or (kept_accuracy - accuracy > FALL * run.first_accuracy)
            ):
                run.learning_rate *= SLOWER
                if run.learning_rate < SLOWEST:
                    raise InputError(
                        "unlearning breaks the network at every rate; its accuracy on the clean "
                        f"images was {run.first_accuracy:.3f}"
                    )
                run.overshoots += 1
                optimizer.restore(kept)
                continue
            if broken:
                raise InputError("unlearning diverged; use a smaller learning rate")
            _note(run, done, accuracy, answers, right & (answers != labels.cpu()))
            if accuracy <= run.stop:
                run.reached = True
                return
            if settings.adapt:
                kept, kept_accuracy = optimizer.state(), accuracy
                if accuracy > FAR * run.first_accuracy:
                    due += settings.check_every  # half of the tests where nothing happens yet
        if not settings.check_every:
            if not optimizer.is_finite():
                raise InputError("unlearning diverged; use a smaller learning rate")
            answers = _answers(run.classifier, images)
            _note(run, done, hits / len(images), answers, right & (answers != labels.cpu()))
            if hits / len(images) <= run.stop:
                run.reached = True
                return
        progress(what, (epoch + 1) / settings.max_epochs)


class _Ascent:
    """SGD with momentum, upwards, that can go back to an earlier state."""

    def __init__(self, network: nn.Module, settings: Unlearning) -> None:
        self.network = network
        self.settings = settings
        self.sgd = torch.optim.SGD(
            network.parameters(),
            settings.learning_rate,
            momentum=settings.momentum,
            weight_decay=settings.weight_decay,
        )
        self.through_images = needs_gradients_of_images(network)

    def step(self, classifier: Classifier, images: Tensor, labels: Tensor, rate: float) -> int:
        """One step upwards; how many of the images were answered rightly before it."""
        self.network.train()
        if self.through_images:
            images.requires_grad_()
        logits = classifier(images)
        for group in self.sgd.param_groups:
            group["lr"] = rate
        self.sgd.zero_grad(set_to_none=True)
        (-F.cross_entropy(logits, labels)).backward()  # type: ignore[no-untyped-call]  # torch's stub
        if self.settings.clip_norm:
            nn.utils.clip_grad_norm_(self.network.parameters(), self.settings.clip_norm)
        self.sgd.step()
        return int((logits.argmax(1) == labels).sum())

    def is_finite(self) -> bool:
        return all(bool(torch.isfinite(p).all()) for p in self.network.parameters())

    def state(self) -> dict[str, Tensor]:
        return copied_tensors(self.network)

    def restore(self, state: dict[str, Tensor]) -> None:
        """Goes back; the momentum that led astray is forgotten."""
        put_back(self.network, state)
        self.sgd.state.clear()


def _answers(classifier: Classifier, images: ImageSet) -> Tensor:
    return classifier.logits(images).argmax(1).cpu()


def _accuracy(answers: Tensor, labels: Tensor, settings: Unlearning) -> float:
    """Of all images where the stop is about that, else the mean over the classes that are there."""
    right, labels = (answers == labels.cpu()).float(), labels.cpu()
    if settings.stop is not None:
        return float(right.mean())
    counts = torch.bincount(labels)
    return float((torch.bincount(labels, right) / counts)[counts > 0].mean())


def _note(run: Unlearned, done: int, accuracy: float, answers: Tensor, lost: Tensor) -> None:
    run.steps.append(done)
    run.accuracy.append(accuracy)
    run.top_share.append(float(torch.bincount(answers).max()) / len(answers))
    for level in LEVELS:
        if level not in run.levels and accuracy <= level * run.first_accuracy:
            run.levels[level] = copied_tensors(run.classifier.network)
            counts = torch.bincount(answers[lost], minlength=run.classifier.num_classes)
            run.lost[level] = counts / max(1, len(answers[lost]))
