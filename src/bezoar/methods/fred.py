"""FreD: remove a backdoor with no image of the task, by samples that the network itself gives up.

Idea: a removal needs clean images of the task. Where there are none, samples of each class are
searched in the latent space of a generator that was trained on public images, of anything: images
x = G(z) that the suspect answers with the class, that are natural, and whose answer is *stable*
when the image or the network's weights move a little, since samples that merely look well do not
support a removal (``fred_inversion``). The best are kept (``fred_selection``), tested for shortcuts
(``channel_shuffling``), and I-BAU unlearns the backdoor on them (``i_bau``). Images of G can hold
the trigger only as far as public images do, whatever gradients led the search
(``generators.public_generator``).

Paper: Chen, Zeng, Wang, Park, Chen, Lyu, Mao, Jia, "Turning a Curse into a Blessing: Enabling
In-Distribution-Data-Free Backdoor Removal via Stabilized Model Inversion", TMLR 2023, arXiv
2206.07018. Only its abstracts could be read: the method is a reconstruction from them and from
public code of the same first author, and each module says what is whose. ``published`` takes what
is known of the released settings: generator and search of that code, removal as released.

Ours: all terms of the bi-level objective, the selection, the test, the settings of the removal for
some hundred samples; *companions*, as many public images that the suspect labels, beside the
samples: on samples alone the network forgets what real images need, and on companions alone the
backdoor can stay; and the controls: the same removal with random images of the generator, with
public images, or with images searched in pixels (``fred_sources``). They show whether the search
earns its cost; ``docs/methods/fred.md`` has what was measured.

Assumes that public images can resemble the classes, and that the trigger is a change that is nearly
the same for every image. Data: public images, or a generator trained on such; no image of the task.
Layers: any that can be differentiated twice. Known failures: classes that nothing public resembles;
triggers that public images have too, such as glasses or colours; what I-BAU fails on.
"""

from __future__ import annotations

import math
import time
from typing import Any, ClassVar, Self

import msgspec
import torch
from torch import Tensor

from bezoar.classifier import Classifier
from bezoar.errors import InputError
from bezoar.generators.adversarial_training import AdversarialTraining, train_generator
from bezoar.generators.public_generator import PublicGenerator
from bezoar.images import ImageSet
from bezoar.methods import fred_sources
from bezoar.methods.channel_shuffling import convolutions, shuffling_test
from bezoar.methods.fred_comparing import NAMES, compared, control_sentence, with_pattern
from bezoar.methods.fred_selection import Selection
from bezoar.methods.fred_settings import Inversion
from bezoar.methods.fred_sources import Samples, Source
from bezoar.methods.i_bau import IBAU
from bezoar.methods.method import Method, Needs, Repair, methods
from bezoar.methods.pixel_inversion import PixelInversion
from bezoar.methods.sample_diversity import Diversity, diversity
from bezoar.methods.second_derivatives import check_twice_differentiable
from bezoar.other_weights import check_other_weights
from bezoar.training import Progress, no_progress

_KEPT_OUT = 0.2  # share of the public images that nothing learns from
_SHOWN = 512  # images that a report chooses from


@methods.register("fred")
class FreD(Method, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Removal on samples from a stabilised inversion of the suspect.

    Attributes:
        samples: ``inverted``, the method, or what a control takes in the place of it: ``random``
            images of the generator, ``public`` images, or images searched in ``pixels``.
        count: how many samples the removal gets, in equal shares of the classes, each rounded up;
            at least two of each class where the removal holds images out.
        tried: how many are searched for each that is kept, where they are selected.
        companions: for each inverted sample, how many public images the removal learns from
            besides, labelled by the suspect, where there are any; 0 is the paper's way.
        training: of the generator, where public images are given and none is.
        inversion: how samples are searched.
        selection: which are kept; None keeps all, with the labels that were wanted.
        pixels: how images are searched in pixels, where ``samples`` says so.
        removal: I-BAU's settings on these samples.
        controls: which of the other ``samples`` the same removal is repeated with; what comes out
            is compared, and not used; controls have no companions. Without public images there is
            no control of these.
        fresh: images, of no part in the removal, on which old and new network are compared.
    """

    name: ClassVar[str] = "fred"
    title: ClassVar[str] = "FreD, removal on samples from stabilised model inversion"
    paper: ClassVar[str] = "Chen et al. 2023, arXiv 2206.07018"
    needs: ClassVar[Needs] = "public images"
    layers: ClassVar[str] = "any"
    cost: ClassVar[str] = "training a generator, once; 50 steps on 750 latent vectors; I-BAU twice"

    samples: Source = "inverted"
    count: int = 500
    tried: float = 1.5
    companions: float = 1.0
    training: AdversarialTraining = AdversarialTraining()
    inversion: Inversion = Inversion()
    selection: Selection | None = Selection()
    pixels: PixelInversion = PixelInversion()
    removal: IBAU = IBAU()
    controls: tuple[Source, ...] = ("public",)
    fresh: int = 512

    def __post_init__(self) -> None:
        if self.count < 1 or self.fresh < 1:
            raise InputError(
                f"count is {self.count} and fresh {self.fresh}; expected at least 1 of each"
            )
        if not (1 <= self.tried < math.inf and 0 <= self.companions < math.inf):
            raise InputError(
                f"tried is {self.tried} and companions {self.companions}; expected 1 or more, and "
                "0 or more"
            )

    @classmethod
    def published(cls) -> Self:
        """Generator and search of the first author's released code, I-BAU as released.

        What the paper adds to these, the two stabilities, could not be read: their weights are
        ours. As in that code samples are not selected: all are kept, with the labels that were
        wanted.
        """
        return cls(
            tried=1.0,
            companions=0.0,
            training=AdversarialTraining.published(),
            inversion=msgspec.structs.replace(
                Inversion.published(), input_weight=0.3, parameter_weight=0.3
            ),
            selection=None,
            pixels=PixelInversion.published(),
            removal=IBAU.published(),
            controls=(),
        )

    def remove(
        self,
        classifier: Classifier,
        public: ImageSet | PublicGenerator,
        *,
        seed: int = 0,
        progress: Progress = no_progress,
    ) -> Repair:
        """Returns a copy that has unlearned, on samples, what moves all of them alike.

        Args:
            classifier: the suspect, of a known input size; it stays as it is.
            public: images of something else than the task, in the classifier's size, whose labels
                are not used; or a generator that was trained on such, with or without images. With
                images alone, a generator is trained first.
            seed: of everything drawn at random.
            progress: called with what is done and its share.

        Raises:
            InputError: public images are asked for and there are none, or what the parts raise.
        """
        started = time.perf_counter()
        generator, kept_in, kept_out = self._public(classifier, public, seed, progress)
        trained = time.perf_counter()
        samples = self.gather(classifier, generator, kept_in, seed=seed, progress=progress)
        gathered = time.perf_counter()
        if kept_out is not None:
            fresh = kept_out.sample(min(self.fresh, len(kept_out)), seed=seed)
        else:
            assert generator is not None  # noqa: S101 (there is one wherever no images are)
            fresh = fred_sources.random_images(classifier, generator, self.fresh, seed + 1)
        shown = with_pattern(classifier, samples.images, fresh, self.removal.ascent, seed=seed)
        repair = self.removal.remove(classifier, samples.images, seed=seed, progress=progress)
        result = compared(classifier, repair.classifier, fresh, shown)
        removed = time.perf_counter()
        controls, failed = [], []
        for source in self.controls:
            if source == self.samples or (source == "public" and kept_in is None):
                continue
            alone = msgspec.structs.replace(self, samples=source, companions=0.0)
            try:
                other = alone.gather(classifier, generator, kept_in, seed=seed, progress=progress)
                control = self.removal.remove(
                    classifier, other.images, seed=seed, progress=progress
                )
            except InputError as error:  # a control that cannot be made costs no finished repair
                failed.append(f"The control with {NAMES[source]} could not be made: {error}.")
                continue
            came_out = compared(classifier, control.classifier, fresh, shown)
            controls.append({"samples": source} | came_out.as_control())
        record = {key: value for key, value in repair.record.items() if key != "seconds"}
        own = samples.images.subset(range(samples.record["kept"]))  # without companions
        spread = None
        if max(samples.record["per_class"]) > 1:  # one sample alone has no variance
            labels = own.require_labels("diversity")
            spread = diversity(classifier, as_floats(own), labels, as_floats(fresh))
        flags = [*repair.record.get("flags", []), *self._flags(classifier, samples, spread)]
        flags += failed
        if controls:
            flags.append(control_sentence(result, controls))
        return Repair(
            repair.classifier,
            record
            | result.as_record(real=kept_out is not None)
            | {
                "samples": self.samples,
                "inversion": samples.record,
                "generator": _generator_record(generator),
                "shuffling": _shuffled(classifier, own, seed),
                "diversity": spread and spread.as_record(),
                "controls": controls,
                "flags": flags,
                "seconds": {
                    "generator": trained - started,
                    "samples": gathered - trained,
                    "removal": removed - gathered,
                    "total": time.perf_counter() - started,
                },
            },
            synthetic=own.sample(min(_SHOWN, len(own)), seed=seed),
        )

    def gather(
        self,
        classifier: Classifier,
        generator: PublicGenerator | None,
        public: ImageSet | None,
        *,
        seed: int = 0,
        progress: Progress = no_progress,
    ) -> Samples:
        """The samples alone, for whatever shall learn from them.

        Args:
            classifier: the suspect, of a known input size.
            generator: of images of that size; only ``public`` and ``pixels`` do without.
            public: images; ``public`` needs them, and ``inverted`` takes companions from them.
            seed: of everything drawn at random.
            progress: called with what is done and its share.

        Raises:
            InputError: what ``samples`` needs is None.
        """
        per_class = -(-self.count // classifier.num_classes)
        if self.removal.held_out:
            per_class = max(2, per_class)  # one image of a class cannot be divided
        if self.samples == "public":
            if public is None:
                raise InputError("samples=public takes public images, and none were given")
            return fred_sources.labelled(classifier, public, per_class=per_class, seed=seed)
        if self.samples == "pixels":
            return fred_sources.in_pixels(
                classifier, self.pixels, per_class=per_class, seed=seed, progress=progress
            )
        if generator is None:
            raise InputError(f"samples={self.samples} takes a generator, and none was given")
        if self.samples == "random":
            return fred_sources.at_random(classifier, generator, per_class=per_class, seed=seed)
        found = fred_sources.inverted(
            classifier,
            generator,
            self.inversion,
            self.selection,
            per_class=per_class,
            tried=self.tried,
            seed=seed,
            progress=progress,
        )
        beside = math.ceil(self.companions * per_class)
        if not beside or public is None:
            return found
        more = fred_sources.labelled(classifier, public, per_class=beside, seed=seed)
        return fred_sources.accompanied(found, more)

    # -- inner works -----------------------------------------------------------------------------

    def _public(
        self,
        classifier: Classifier,
        public: ImageSet | PublicGenerator,
        seed: int,
        progress: Progress,
    ) -> tuple[PublicGenerator | None, ImageSet | None, ImageSet | None]:
        """A generator if one is needed; public images to learn from, and others to compare on."""
        given = public if isinstance(public, PublicGenerator) else None
        images = public if isinstance(public, ImageSet) else public.images
        if self.samples == "public" and images is None:
            raise InputError(
                "samples=public takes public images, and only a generator was given; give images"
            )
        classifier.trace(public.shape)
        self._check_differentiable(classifier)
        kept_out, kept_in = None, None
        if images is not None:
            kept_out, kept_in = ImageSet(images.images).split(_KEPT_OUT, seed=seed)
            if not len(kept_out) or not len(kept_in):
                raise InputError(
                    f"there are {len(images)} public images; give at least two, one to learn from "
                    "and one to compare on"
                )
        if given is not None:
            return given.to(classifier.device), kept_in, kept_out
        asked = {self.samples, *self.controls}
        if kept_in is None or asked.isdisjoint({"inverted", "random"}):
            return None, kept_in, kept_out
        made = train_generator(
            kept_in, None, self.training, seed=seed, device=classifier.device, progress=progress
        )
        return made, kept_in, kept_out

    def _check_differentiable(self, classifier: Classifier) -> None:
        """Refuses a suspect that the search cannot differentiate as it does."""
        how = self.inversion
        if "inverted" not in {self.samples, *self.controls}:
            return
        copy = classifier.copy()
        copy.network.eval()
        if how.parameter_weight:
            check_other_weights(copy)
        twice = {
            "inversion.input.form": how.input_weight and how.input.form == "gradient",
            "inversion.parameter.form": how.parameter_weight
            and how.parameter.form == "second order",
        }
        names = [name for name, asked in twice.items() if asked]
        if names:
            grey = torch.full((2, *classifier.input_shape), 0.5, device=classifier.device)
            check_twice_differentiable(
                copy, grey, instead=f"choose another {' and another '.join(names)}"
            )

    def _flags(
        self, classifier: Classifier, samples: Samples, spread: Diversity | None
    ) -> list[str]:
        flags = []
        missing = samples.record["missing"]
        if missing:
            shown = ", ".join(classifier.classes[k] for k in missing[:5])
            more = f" and {len(missing) - 5:,} more" * (len(missing) > 5)
            flags.append(
                f"There is no sample of {len(missing):,} of {classifier.num_classes:,} classes "
                f"({shown}{more}); the repair may harm these most."
            )
        if spread is not None and spread.low:
            flags.append(
                "Samples of one class lie closer together than half of what public images do: they "
                "may be washed-out prototypes, and the boundaries between the classes may suffer."
            )
        if self.samples == "pixels":
            flags.append(
                "The samples were searched in pixels, where nothing keeps a trigger out of them."
            )
        return flags


def _generator_record(generator: PublicGenerator | None) -> dict[str, Any] | None:
    if generator is None:
        return None
    return {
        "kind": generator.origin.get("kind", "a user's"),
        "apart": generator.apart,
        "sentence": generator.independence,
        "origin": dict(generator.origin),
    }


def as_floats(images: ImageSet) -> Tensor:
    """Pixels (n, c, h, w) in [0, 1], on the CPU."""
    return images.images.cpu().float() / 255


def _shuffled(classifier: Classifier, samples: ImageSet, seed: int) -> dict[str, Any] | None:
    """The shuffling test of the samples; None for a network without convolutions."""
    if not convolutions(classifier):
        return None
    labels = samples.require_labels("the shuffling test").cpu()
    shuffling = shuffling_test(classifier, as_floats(samples), labels, seed=seed)
    names = [classifier.classes[k] for k in shuffling.standing_out]
    told = (
        f"With its channels shuffled, the network still answers many samples of {', '.join(names)} "
        "with their class and few others: their answer may hang on something simpler than the "
        "class, as it would with a trigger in them."
        if names
        else "With the network's channels shuffled, no class keeps its samples more than others."
    )
    return shuffling.as_record() | {"sentence": told}
