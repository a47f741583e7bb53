"""DHBE: erase a backdoor without a single image, by restricted adversarial distillation.

Idea: a student starts as a copy of the suspect (the teacher) and plays two games at once. It copies
the teacher's answers on images that a generator makes of noise, where the generator looks for
images on which the two differ; and it must not change its answers when a generated pattern of a
restricted family, small patches in the published code, is added, where another generator looks for
patterns that change them. Good knowledge passes the first game; a backdoor that small patterns open
does not pass the second (``dhbe_game``). Nothing is detected and no class is singled out.

Paper: Yan, Li, Zhao, Tian, Zhao, "DHBE: Data-free Holistic Backdoor Erasing in Deep Neural Networks
via Restricted Adversarial Distillation", AsiaCCS 2023, arXiv 2306.08009. Its text and tables could
not be reached: ``published()`` follows the released code, and what only the overview figure shows
(the second branch of patterns) is marked there.

Ours: the generator begins on its own and with priors (``synthesis``), because the published one
makes one to three classes for a long time; R is squared; several sizes of patterns, a position for
each image; a small learning rate; running statistics from clean synthetic images, recalibrated at
the end; rounds end when *fresh* generators find no pattern that moves the student as it moved the
teacher (``dhbe_measuring``), which needs no data.

Assumes that the trigger is added in one small place. Data: none. Layers: any; without BatchNorm the
synthetic images are poor. Known failures (see ``docs/methods/dhbe.md``): what is left of a patch
depends on the seed, and fresh patterns need not find it, so that the stop can come too early;
triggers outside the family, such as blends, waves and warps, and backdoors in a few weights, are
only hit by accident; a network without a backdoor pays too, as patches move its answers as well.
"""

from __future__ import annotations

import math
import time
from typing import ClassVar, Literal, Self

import msgspec
import torch
from torch import Tensor, nn

from bezoar.classifier import Classifier
from bezoar.device import seeded, to_plain_layout
from bezoar.errors import InputError
from bezoar.images import ImageSet
from bezoar.methods.dhbe_game import Game, Rules, falling_cosine, steps_down
from bezoar.methods.dhbe_measuring import (
    FEWEST_OTHERS,
    Changed,
    agreement_on,
    answers,
    changed_by_fresh_patterns,
)
from bezoar.methods.dhbe_patterns import PatternFamily, fitting_sizes, shares
from bezoar.methods.method import Method, Needs, Repair, methods
from bezoar.methods.recalibration import recalibrate
from bezoar.methods.statistics_prior import batch_norms, running_norms
from bezoar.methods.synthesis import SampleSource, Synthesis, as_image_set, source_for
from bezoar.networks.pattern_generators import PatternGenerator
from bezoar.training import Progress, gradients_only_for, no_progress

_WHAT = "erasing without data"
_MEASURED = 16  # batches of fresh synthetic images for what is measured at the end
_STRONG = 0.5  # share of others led to one class; below 0.3 wherever no backdoor was, so far
_BARE = 0.1  # of the learning rate: at the whole of it, networks without BatchNorm diverged
_FEW = 0.3  # of the classes that as many images show where all classes are equally frequent
_SHOWN = 512  # images that a report chooses from


@methods.register("dhbe")
class DHBE(Method, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Data-free erasing by restricted adversarial distillation.

    Attributes:
        iterations: of a round of the game, each with one step of either generator.
        student_steps: in each iteration.
        learning_rate: of the student (SGD). Where the network has no BatchNorm, which keeps
            activations within bounds, it is a tenth of that.
        momentum: of the student, without Nesterov.
        weight_decay: of the student.
        schedule: ``cosine`` falls to 0; ``steps`` to a tenth at 60 % and again at 80 %.
        insensitivity: λ, the weight of R beside D.
        distance: R's; ``absolute`` (published) or ``squared``.
        adversary: weight of -D for the sample generator.
        patch_sizes: sides of the small patterns in pixels; empty chooses by the size of the images.
        large_patterns: sigma, the largest sum of |p| over a channel of a full-size pattern, in
            pixels of range [0, 1]; 0 leaves this family out.
        placement: of small patterns, for each ``image`` or (published) one for the ``batch``.
        pattern_rate: learning rate of the pattern generators (Adam).
        pattern_latent: length of their latent vectors.
        pattern_width: their width.
        statistics: which forwards change running statistics, ``all`` (published) or ``clean`` ones.
        recalibration: batches of clean synthetic images that set the last running statistics; 0
            leaves them.
        rounds: of so many iterations, at most; a new one starts at the full learning rates.
        led: rounds go on while fresh patterns lead more than this share of the synthetic images of
            other classes into one class, which needs no data.
        probe: steps of the fresh pattern generators.
        synthesis: how images are made.
    """

    name: ClassVar[str] = "dhbe"
    title: ClassVar[str] = "DHBE, data-free holistic backdoor erasing"
    paper: ClassVar[str] = "Yan et al. 2023, arXiv 2306.08009"
    needs: ClassVar[Needs] = "nothing"
    layers: ClassVar[str] = "any, best with BatchNorm"
    cost: ClassVar[str] = "200 steps on 128 synthetic images, up to twice"

    iterations: int = 40
    student_steps: int = 5
    learning_rate: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 5e-4
    schedule: Literal["cosine", "steps"] = "cosine"
    insensitivity: float = 1.2
    distance: Literal["absolute", "squared"] = "squared"
    adversary: float = 0.1
    patch_sizes: tuple[int, ...] = ()
    large_patterns: float = 0.0
    placement: Literal["image", "batch"] = "image"
    pattern_rate: float = 1e-3
    pattern_latent: int = 256
    pattern_width: int = 32
    statistics: Literal["all", "clean"] = "clean"
    recalibration: int = 8
    rounds: int = 2
    led: float = 0.25
    probe: int = 40
    synthesis: Synthesis = Synthesis()

    def __post_init__(self) -> None:
        for name in ("iterations", "rounds", "student_steps", "pattern_latent", "pattern_width"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}; expected at least 1")
        numbers = ("learning_rate", "momentum", "weight_decay", "insensitivity", "adversary")
        for name in (*numbers, "large_patterns", "pattern_rate", "recalibration", "led", "probe"):
            if not 0 <= getattr(self, name) < math.inf:
                raise InputError(f"{name} is {getattr(self, name)}; expected 0 or more")
        if any(size < 1 for size in self.patch_sizes):
            raise InputError(f"patch_sizes is {self.patch_sizes}; expected sides of 1 or more")

    @classmethod
    def published(cls) -> Self:
        """The schedule of the released code: 15,000 iterations; small patterns only."""
        return cls(
            iterations=15_000,
            learning_rate=0.1,
            schedule="steps",
            insensitivity=0.1,
            distance="absolute",
            adversary=1.0,
            patch_sizes=(5,),
            placement="batch",
            pattern_width=64,
            statistics="all",
            recalibration=0,
            rounds=1,
            synthesis=Synthesis(
                steps=0,
                batch_size=256,
                latent=256,
                width=64,
                statistics=0.0,
                balance=0.0,
                decision=0.0,
                roughness_norm=1e-4,
                bounded=False,
            ),
        )

    def remove(
        self,
        classifier: Classifier,
        clean: ImageSet | None = None,
        *,
        seed: int = 0,
        progress: Progress = no_progress,
    ) -> Repair:
        """Returns a copy whose answers small patterns move less.

        Of ``clean`` only the size of the images is read, for a classifier that does not know it.

        Raises:
            InputError: the input size of ``classifier`` is not known or smaller than a pattern, or
                a batch too small for its families of patterns.
        """
        started = time.perf_counter()
        if clean is not None:
            classifier.trace(clean.shape)
        height, width = classifier.input_shape[1:]
        sizes = self.patch_sizes or fitting_sizes((height, width))
        if max(sizes) > min(height, width):
            raise InputError(
                f"patterns of {max(sizes)} pixels do not fit on images of {height}x{width}; give "
                "smaller patch_sizes"
            )
        shares(self.synthesis.batch_size, len(sizes) + bool(self.large_patterns))
        device = classifier.device
        repaired = classifier.copy()
        student = repaired.network
        source = source_for(classifier, self.synthesis, seed)
        repaired.to_fast_layout()
        trained = list(student.parameters())
        with seeded(device, seed), gradients_only_for(student, trained):
            source.learn(self.synthesis.steps, _part(progress, 0.0, 0.3))
            game = self._game(classifier, source, student, sizes, seed)
            images = source.images(_MEASURED)
            probed = [self._probed(classifier, source.network, images, sizes, seed)]
            while len(probed) <= self.rounds and (len(probed) == 1 or probed[-1].led > self.led):
                self._play(game, progress, len(probed) - 1)
                images = source.images(_MEASURED)
                probed.append(self._probed(classifier, student, images, sizes, seed))
            same = agreement_on(images, source.network, student)
            seen = answers(source.network, images)
        for parameter in trained:
            parameter.grad = None
        to_plain_layout(student)
        shown = as_image_set(classifier, source.images(-(-_SHOWN // self.synthesis.batch_size)))
        progress(_WHAT, 1.0)
        curves = game.record()
        record = curves | {
            "rounds": [msgspec.to_builtins(changed) for changed in probed],
            "agreement": {"synthetic": same.as_record()},
            "insensitivity": {
                "before": probed[0].share.as_record(),
                "after": probed[-1].share.as_record(),
            },
            "refused": _refusal(game.curves.gap, student),
            "flags": self._flags(classifier, source, probed, seen),
            "seconds": {"total": time.perf_counter() - started},
        }
        return Repair(repaired, record, synthetic=shown)

    # -- inner works -----------------------------------------------------------------------------

    def _game(
        self,
        classifier: Classifier,
        source: SampleSource,
        student: nn.Module,
        sizes: tuple[int, ...],
        seed: int,
    ) -> Game:
        bare = not batch_norms(student)
        optimizer = torch.optim.SGD(
            student.parameters(),
            self.learning_rate * (_BARE if bare else 1.0),
            momentum=self.momentum,
            weight_decay=self.weight_decay,
        )
        rules = Rules(
            iterations=self.iterations,
            student_steps=self.student_steps,
            insensitivity=self.insensitivity,
            distance=self.distance,
            adversary=self.adversary,
            statistics=self.statistics,
            schedule=falling_cosine if self.schedule == "cosine" else steps_down,
            together=classifier.device.type != "cpu",
        )
        families = self._families(classifier, sizes, seed)
        return Game(source.network, student, optimizer, source, families, rules)

    def _families(
        self, classifier: Classifier, sizes: tuple[int, ...], seed: int
    ) -> list[PatternFamily]:
        channels, height, width = classifier.input_shape
        unit = 1 / torch.tensor(classifier.std).view(-1, 1, 1)  # patterns are in pixels of [0, 1]
        kinds: list[tuple[int | tuple[int, int], float]] = [(size, 1.0) for size in sizes]
        if self.large_patterns:
            kinds.append(((height, width), self.large_patterns / (height * width)))
        return [
            PatternFamily(
                PatternGenerator(
                    channels, size, latent=self.pattern_latent, width=self.pattern_width
                ),
                (height, width),
                scale=factor * unit,
                each=self.placement == "image",
                learning_rate=self.pattern_rate,
                device=classifier.device,
                seed=seed + 1000 * (index + 1),
            )
            for index, (size, factor) in enumerate(kinds)
        ]

    def _play(self, game: Game, progress: Progress, done: int) -> None:
        """One round; the student is in eval mode afterwards, with statistics of clean images."""
        _set_training(game.student)
        total = self.rounds * self.iterations
        for iteration in range(self.iterations):
            game.play(iteration)
            progress(_WHAT, 0.3 + 0.65 * (done * self.iterations + iteration + 1) / total)
        if self.recalibration:
            recalibrate(game.student, (game.source.images() for _ in range(self.recalibration)))
        game.student.eval()

    def _probed(
        self,
        classifier: Classifier,
        network: nn.Module,
        images: Tensor,
        sizes: tuple[int, ...],
        seed: int,
    ) -> Changed:
        with seeded(classifier.device, seed + 1):  # the same generators for every network
            fresh = self._families(classifier, sizes, seed + 1)
        return changed_by_fresh_patterns(
            network, images, fresh, steps=self.probe, batch_size=self.synthesis.batch_size
        )

    def _flags(
        self,
        classifier: Classifier,
        source: SampleSource,
        probed: list[Changed],
        seen: Tensor,
    ) -> list[str]:
        """What the user should know; ``seen`` are classes of the last synthetic images, (n,)."""
        flags = []
        before, after = probed[0], probed[-1]
        if before.led > _STRONG:
            flags.append(
                f"Before the repair, generated patterns led {100 * before.led:.0f} % of the "
                "synthetic images of other classes into class "
                f"{classifier.classes[before.towards]}, as the trigger of a backdoor does; this "
                "has no measured rate of false alarms."
            )
        if after.led > self.led:
            flags.append(
                f"After the last round, fresh patterns still lead {100 * after.led:.0f} % of the "
                "synthetic images of other classes into class "
                f"{classifier.classes[after.towards]}: the backdoor is probably not gone."
            )
        if not running_norms(source.network):
            flags.append(
                "The network has no BatchNorm that remembers its training images, so nothing made "
                "the synthetic ones resemble them; the repair is a weak one."
            )
        classes, held = classifier.num_classes, int(seen.bincount().count_nonzero())
        if held < max(2, _FEW * classes * (1 - (1 - 1 / classes) ** len(seen))):
            flags.append(
                f"The last {len(seen):,} synthetic images show {held:,} of {classes:,} classes; "
                "the others were hardly repaired."
            )
        if len(seen) - int(seen.bincount().max()) < FEWEST_OTHERS:
            flags.append(
                f"Nearly all of the last {len(seen):,} synthetic images are of one class, so "
                "whether patterns lead others there was not measured."
            )
        return flags


def _part(progress: Progress, start: float, end: float) -> Progress:
    return lambda _what, share: progress(_WHAT, start + (end - start) * share)


def _refusal(gaps: list[Tensor], student: nn.Module) -> str | None:
    """Why the result is worthless, if it is: numbers grew beyond all bounds."""
    finite = [torch.isfinite(torch.stack(gaps)).all()]
    finite += [torch.isfinite(parameter).all() for parameter in student.parameters()]
    if bool(torch.stack([flag.cpu() for flag in finite]).all()):
        return None
    return "the game diverged; use a smaller learning_rate"


def _set_training(student: nn.Module) -> None:
    """Batch statistics, and nothing else of train mode.

    Dropout, stochastic depth and their like, modules or functions, are off in the teacher and would
    floor D. Flags alone are set: what a BatchNorm holds (timm) may be one of these.
    """
    student.eval()
    for norm in batch_norms(student):
        norm.training = True
