"""One round of BTI-DBF's inversion: decouple, invert, count where the trigger leads.

Order as in the paper (Xu et al., ICLR 2024, OpenReview Tw9wemV6cb). There the class is the majority
of the answers to all images, whoever asks; here it is the class that draws the largest share of
*held-out* images of other classes, with a strength, a null and the whole table of votes (ours).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import torch
from torch import Tensor, nn

from bezoar.classifier import BATCH, Classifier
from bezoar.device import seeded
from bezoar.errors import InputError
from bezoar.images import ImageSet
from bezoar.methods.bti_dbf_decoupling import Decoupled, Decoupling, decouple
from bezoar.methods.bti_dbf_generators import GeneratorInversion, generator_optimizer
from bezoar.methods.bti_dbf_inversion import Front, Inverted, invert_generator, pretrain
from bezoar.methods.bti_dbf_strength import strength_of, strength_test
from bezoar.methods.bti_dbf_unlearning import Stamp
from bezoar.methods.generated_trigger import size
from bezoar.methods.neural_cleanse_triggers import pixels_of, predicted
from bezoar.methods.votes import Reading, Votes, count_votes, reading
from bezoar.recipe import Recipe
from bezoar.training import Progress, no_progress

CARRIED = 0.8  # the share of held-out images that a trigger's size is quoted for
_SIZES = 12  # steps of the bisection for it


@dataclass(frozen=True)
class Start:
    """The generator that all rounds go on with; by default each round makes a new one.

    Attributes:
        generator: the network, or None.
        optimizer: its optimizer, or None.
    """

    generator: nn.Module | None = None
    optimizer: torch.optim.Optimizer | None = None

    @classmethod
    def of(
        cls,
        classifier: Classifier,
        known: ImageSet,
        settings: GeneratorInversion,
        seed: int,
        progress: Progress = no_progress,
        *,
        layer: str | None = None,
    ) -> Start:
        """A pre-trained generator for settings that need one (the published ones), else none.

        It is pre-trained on the maps of ``layer``, which shall be the one that is decoupled.
        """
        if settings.generator != "published":
            return cls()
        pixels, _ = pixels_of(known, classifier)
        with classifier.evaluating():
            generator = pretrain(
                classifier, classifier.split(layer), pixels, settings, seed=seed, progress=progress
            )
        return cls(generator, generator_optimizer(generator, settings))

    def stamps(self, rounds: Sequence[Found]) -> list[Stamp]:
        """What is put on images after these rounds: the triggers of all of them.

        Of one generator that goes on from round to round only the last state (official code).
        """
        return [one.inverted.stamp for one in (rounds if self.generator is None else rounds[-1:])]


@dataclass(frozen=True)
class Found:
    """What one round recovered.

    Attributes:
        decoupled: the mask of benign features.
        inverted: the generator.
        votes: where it sends held-out images, by class.
        reading: what the votes come to.
        target: the class with the largest share.
        carried: that share, of held-out images of other classes.
        strength: how much more it brings up for its class than images do (``bti_dbf_strength``).
        score: of the strength; negative is strong.
        p_value: of the strength.
        rms: mean RMS change of held-out images, in [0, 1] of the pixel range.
        smallest: RMS change, the same, at which the trigger, scaled down, still carries 80 % of the
            held-out images into the class; None where it never does.
    """

    decoupled: Decoupled
    inverted: Inverted
    votes: Votes
    reading: Reading
    target: int
    carried: float
    strength: float
    score: float
    p_value: float
    rms: float
    smallest: float | None

    @property
    def targets(self) -> tuple[int, ...]:
        """The classes that it leads to: those of the reading, or else the leading one."""
        return self.reading.targets or (self.target,)

    @property
    def majority(self) -> int:
        """The most frequent answer, whoever asks: the label that the official code guesses.

        It adds noise and augmentation to the images; here there are none.
        """
        return int(self.votes.answers.sum(0).argmax())

    def leads(self) -> Tensor:
        """For each class, the other one that most of its images are sent to, (K,); -1 for none."""
        elsewhere = self.votes.answers.clone().fill_diagonal_(0)
        none = torch.full((len(elsewhere),), -1)
        return torch.where(elsewhere.sum(1) > 0, elsewhere.argmax(1), none)

    def sources_lead(self) -> Tensor:
        """``leads``, and -1 for the target, too, unless most of its own images are sent away."""
        leads, own = self.leads(), self.votes.answers[self.target]
        if 2 * own[self.target] >= own.sum():
            leads[self.target] = -1
        return leads

    def carried_into(self, k: int) -> float:
        """The share of held-out images that it carries into class ``k``.

        Of all images of other classes, or, where it has several targets, of the classes that it
        leads there as a whole.
        """
        if len(self.targets) > 1 and k in self.reading.targets:
            rows = self.votes.answers[list(self.reading.sources[self.reading.targets.index(k)])]
            return float(rows[:, k].sum() / rows.sum().clamp(min=1))
        return float(self.votes.shares()[k])

    def as_record(self, classes: tuple[str, ...]) -> dict[str, Any]:
        """The figures."""
        return {
            "decoupling": self.decoupled.as_record(),
            "inversion": self.inverted.as_record(),
            "votes": self.votes.as_record(),
            "reading": self.reading.as_record(classes),
            "target_class": self.target,
            "majority": self.majority,
            "carried": self.carried,
            "strength": self.strength,
            "p": self.p_value,
            "rms": self.rms,
            "smallest rms": self.smallest,
        }


def weaknesses(rounds: Sequence[Found]) -> list[str]:
    """Why what was recovered in these rounds should not be trusted, as sentences."""
    found = (one.decoupled.weakness() for one in rounds)
    return [weakness for weakness in found if weakness is not None]


def check_rounds(rounds: int, held_out: float) -> None:
    """Refuses settings of the two methods that no round can follow."""
    if rounds < 1 or not 0 <= held_out < 1:
        raise InputError(
            f"rounds is {rounds} and held_out {held_out}; expected at least 1, and a share in "
            "[0, 1)"
        )


def rounds_record(
    rounds: Sequence[Found], classes: tuple[str, ...], recipe: Recipe, losses: Sequence[float]
) -> dict[str, Any]:
    """What both methods tell of their rounds; the class is that of the first one.

    Args:
        rounds: what each recovered; at least one.
        classes: the class names.
        recipe: how was trained.
        losses: of each epoch.
    """
    epochs = list(range(1, len(losses) + 1))
    return {
        "target_class": rounds[0].target,
        "carried": rounds[0].carried,
        "p": rounds[0].p_value,
        "rounds": [one.as_record(classes) for one in rounds],
        "recipe": msgspec.to_builtins(recipe),
        "curves": [{"name": "training loss", "x_name": "epoch", "x": epochs, "y": list(losses)}],
    }


def divided(clean: ImageSet, held_out: float, *, seed: int) -> tuple[ImageSet, ImageSet]:
    """Images that triggers come from, and a share of others; with 0 all images are both."""
    return clean.split(1 - held_out, seed=seed) if held_out else (clean, clean)


def recover(
    classifier: Classifier,
    known: ImageSet,
    held_out: ImageSet,
    decoupling: Decoupling,
    inversion: GeneratorInversion,
    *,
    seed: int,
    start: Start | None = None,
    front: Front | None = None,
    noiseless: Front | None = None,
    target: int | None = None,
    elsewhere: Found | None = None,
    progress: Progress = no_progress,
) -> Found:
    """Recovers a trigger from ``known`` and looks at it on ``held_out``.

    Args:
        classifier: the suspect; it stays as it is.
        known: images the trigger comes from; labels where the decoupling needs them.
        held_out: others, at least one.
        decoupling: how the mask is learned.
        inversion: how the generator is trained.
        seed: of all draws.
        start: a generator to go on with; by default a new one is made.
        front: a purifier that the trigger must survive.
        noiseless: what stands in its place while the trigger is inverted; by default itself.
        target: a class for the inversion's target term.
        elsewhere: an earlier trigger; the new one must lead somewhere else.
        progress: called with what is done.

    Raises:
        InputError: no image, or the network cannot be cut.
    """
    if not len(held_out):
        raise InputError("there is no held-out image; give at least two images of each class")
    start = start or Start()
    others = None if held_out is known else held_out
    decoupled = decouple(classifier, known, others, decoupling, seed=seed, progress=progress)
    pixels, sources = pixels_of(known, classifier)
    shown, labels = pixels_of(held_out, classifier)
    with classifier.evaluating(), seeded(classifier.device, seed):
        avoid = None
        if elsewhere is not None:
            sources = predicted(classifier, pixels) if sources is None else sources
            leads = elsewhere.leads()
            leads[leads < 0] = elsewhere.target
            avoid = leads.to(sources.device)[sources]
        inverted = invert_generator(
            classifier,
            decoupled,
            pixels,
            inversion,
            seed=seed,
            start=start.generator,
            optimizer=start.optimizer,
            front=noiseless or front,
            target=target,
            avoid=avoid,
            progress=progress,
        )

        def answer(images: Tensor) -> Tensor:
            return classifier(images if front is None else front(images))

        def stamp(images: Tensor) -> Tensor:
            with torch.no_grad():
                return inverted.stamp(images)

        with torch.no_grad():
            changed = torch.cat([stamp(part) for part in torch.split(shown, BATCH)])
            votes = count_votes(answer, stamp, shown, labels, classifier.num_classes)
            shares = votes.shares()
            best = int(shares.argmax())
            strength = strength_of(_logits(classifier, shown), _logits(answer, changed), best)
            smallest = _smallest(answer, shown, labels, changed, best)
    score, p_value = strength_test(strength)
    return Found(
        decoupled=decoupled,
        inverted=inverted,
        votes=votes,
        reading=reading(votes),
        target=best,
        carried=float(shares[best]),
        strength=strength,
        score=score,
        p_value=p_value,
        rms=float(size(shown, changed).mean()),
        smallest=smallest,
    )


def _smallest(
    answer: Front, plain: Tensor, labels: Tensor | None, changed: Tensor, k: int
) -> float | None:
    """The RMS change at which the scaled trigger still carries 80 % into ``k``, by bisection."""
    source = predicted(answer, plain)
    others = (source != k) if labels is None else (source != k) & (source == labels)
    plain, changed = plain[others], changed[others]

    def carries(factor: float) -> bool:
        hits = predicted(answer, torch.lerp(plain, changed, factor)) == k
        return float(hits.float().mean()) >= CARRIED

    if not len(plain) or not carries(1.0):
        return None
    low, high = 0.0, 1.0
    for _ in range(_SIZES):
        middle = (low + high) / 2
        low, high = (low, middle) if carries(middle) else (middle, high)
    return high * float(size(plain, changed).mean())


def _logits(answer: Front, images: Tensor) -> Tensor:
    return torch.cat([answer(part).float() for part in torch.split(images, BATCH)])
