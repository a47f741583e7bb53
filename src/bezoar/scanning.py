"""The scan: each witness looks, the verdict weighs what they saw, the record tells it.

The way of a tensor: each witness, a method that inspects, turns network and clean images into one
statistic per class (``methods``), ``combining`` makes one p-value per class of them, ``proving``
tries what they recovered on held-out images, ``verdict`` judges, ``scan_record`` writes it down.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import torch

import bezoar
from bezoar.checks import check_input, check_runs, input_of, told_of_constant
from bezoar.classifier import Classifier
from bezoar.device import with_gradients
from bezoar.errors import InputError
from bezoar.images import ImageSet
from bezoar.methods import Evidence, Method, methods
from bezoar.methods.mm_bd import MOST_CLASSES
from bezoar.methods.smooth_pattern import SMALLEST
from bezoar.proving import Prover
from bezoar.reference_classes import looked_at_some, narrowed
from bezoar.scan_record import scan_record, silent_witnesses
from bezoar.statistics import FEWEST_CLASSES
from bezoar.training import Progress, no_progress
from bezoar.verdict import Levels, Verdict, judge

# Who looks where nobody is named, in the order of the measured null: which classes Neural Cleanse
# and the smooth pattern look at depends on what the witnesses before it say.
WITNESSES = (
    "tac",
    "bti-dbf",
    "rnp",
    "neural-cleanse",
    "plane-waves",
    "smooth-pattern",
    "weights",
    "mm-bd",
)
WITHOUT_IMAGES = ("weights", "mm-bd")
FEW_CLASSES = {  # who is left out beyond MOST_CLASSES, and why
    "mm-bd": "its test does not hold for more than {most} classes",
    "smooth-pattern": "it was not measured on networks with more than {most} classes",
}
LARGE_IMAGES = ("smooth-pattern",)  # which has little to search in below SMALLEST pixels

Witnesses = Sequence[str | Method]
AUTO = "auto"  # the same, by name

TOO_SMALL = "it needs images of at least {side}x{side} pixels"
NO_IMAGES = (
    "No clean images were given: only the weights, and inputs that the scan makes up, were looked "
    "at, so nothing could be recovered and tried, and the verdict is never more than suspicious."
)


@dataclass(frozen=True)
class Finding:
    """What a scan says.

    Attributes:
        verdict: one of the three.
        suspects: flagged classes, most suspicious first.
        ranking: all classes, most suspicious first.
        p_values: for each class, corrected for the number of classes and witnesses.
        evidence: what each method saw.
        deciding: for each class, which of ``evidence`` proves it, or else finds it most unusual.
        record: all of it as plain JSON-able data.
    """

    verdict: Verdict
    suspects: tuple[int, ...]
    ranking: tuple[int, ...]
    p_values: tuple[float, ...]
    evidence: tuple[Evidence, ...]
    deciding: tuple[int, ...]
    record: dict[str, Any]


@with_gradients()
def scan(
    classifier: Classifier,
    clean: ImageSet | None = None,
    *,
    seed: int = 0,
    witnesses: Witnesses | None = None,
    without: Sequence[str] = (),
    in_place: Method | None = None,
    levels: Levels | None = None,
    progress: Progress = no_progress,
) -> Finding:
    """Looks for a backdoor in ``classifier`` with the help of clean images.

    Args:
        classifier: the suspect.
        clean: clean images of its task; some witnesses need their labels. None asks those that need
            no image: what they find stays *suspicious*, for nothing is recovered that could be
            tried. The classifier needs an ``input_size`` then.
        seed: of everything drawn at random.
        witnesses: the methods that look, or their names for their default settings; None takes
            ``WITNESSES``, or without images ``WITHOUT_IMAGES``, and leaves out those that cannot
            look at this model with these images.
        without: names that our own choice of witnesses leaves out. After a repair these are the
            ones that read the weights alone: few repairs change what they see of the past.
        in_place: looks in the place of the witness of its name, or last where none is asked, and
            must be able to.
        levels: the limits of the verdicts.
        progress: called with what is done and its share.

    Raises:
        InputError: the images, the network or a witness cannot be used (see the message).
    """
    started = time.perf_counter()
    levels = levels or Levels()
    looking = find_witnesses(witnesses, has_images=clean is not None)
    if clean is None:
        check_runs(classifier, None)
        notices = [NO_IMAGES, *told_of_constant(classifier)]
    else:
        notices = check_input(classifier, clean)
    classifier = classifier.copy()
    classifier.to_fast_layout()
    if is_auto(witnesses):
        unfit = unfit_witnesses(classifier, clean)
        notices += [told for w in looking if (told := unfit.get(w.name))]
        looking = tuple(w for w in looking if w.name not in {*without, *unfit})
    needed: Sequence[Method] = () if is_auto(witnesses) else looking
    if in_place is not None:
        looking, needed = _with_in_place(looking, in_place), [*needed, in_place]
    evidence, left_out = _look_with(looking, classifier, clean, seed, progress, needed=needed)
    left_out += _silent(evidence, classifier.num_classes)
    flags = [flag for witness in evidence for flag in witness.record.get("flags", [])]
    prove = None
    if clean is not None:
        prove = Prover(classifier, clean, seed=seed, needed=levels.carried).prove
    judgement = judge(evidence, classifier.classes, levels, prove=prove)
    record = (
        describe(classifier, clean, seed)
        | scan_record(judgement, evidence, classifier.classes, len(clean or ()), levels)
        | {"notices": notices + left_out + flags}
        | {"seconds": {"total": time.perf_counter() - started}}
    )
    return Finding(
        judgement.verdict,
        judgement.suspects,
        judgement.ranking,
        judgement.p_values,
        evidence,
        judgement.deciding,
        record,
    )


def unfit_witnesses(classifier: Classifier, clean: ImageSet | None) -> dict[str, str]:
    """Who is not asked unless named, and a sentence why."""
    unfit: dict[str, str] = {}
    if classifier.num_classes > MOST_CLASSES:
        unfit |= {name: why.format(most=MOST_CLASSES) for name, why in FEW_CLASSES.items()}
    if clean is not None and min(clean.shape[1:]) < SMALLEST:
        unfit |= {name: TOO_SMALL.format(side=SMALLEST) for name in LARGE_IMAGES}
    return {name: f"The witness {name} did not look: {why}." for name, why in unfit.items()}


def _look_with(
    witnesses: Sequence[Method],
    classifier: Classifier,
    clean: ImageSet | None,
    seed: int,
    progress: Progress,
    *,
    needed: Sequence[Method],
) -> tuple[tuple[Evidence, ...], list[str]]:
    """What each witness sees, and why some that are not ``needed`` could not look."""
    evidence: list[Evidence] = []
    left_out: list[InputError] = []
    told: list[str] = []
    for witness in witnesses:
        others = bool(evidence)
        looking = narrowed(witness, evidence, classifier.num_classes, seed=seed)
        try:
            # Without images, ``find_witnesses`` let none pass that needs them.
            evidence.append(looking.inspect(classifier, clean, seed=seed, progress=progress))  # type: ignore[arg-type]
            told += looked_at_some(looking, witness, classifier.num_classes, others=others)
        except InputError as error:
            if witness in needed:
                raise
            left_out.append(error)
            told.append(f"The witness {witness.name} could not look: {error}.")
    if not evidence:
        raise left_out[0]
    return tuple(evidence), told


def _with_in_place(witnesses: Sequence[Method], other: Method) -> tuple[Method, ...]:
    """The witnesses with ``other`` where the first of its name stands, or at the end."""
    names = [w.name for w in witnesses]
    place = names.index(other.name) if other.name in names else len(names)
    rest = [w for w in witnesses[place:] if w.name != other.name]
    return (*witnesses[:place], other, *rest)


def _silent(evidence: Sequence[Evidence], classes: int) -> list[str]:
    """Which witnesses can single out no class of so few, whatever the network."""
    silent = silent_witnesses(evidence)
    if classes >= FEWEST_CLASSES or not silent:
        return []
    return [
        f"With {classes} classes {', '.join(silent)} can say nothing: one class has to be compared "
        f"with several others, {FEWEST_CLASSES - 1} for most tests. This scan sees far less than "
        "one of a model with more classes."
    ]


def is_auto(witnesses: Witnesses | None) -> bool:
    """Whether the choice of witnesses is left to the scan."""
    return witnesses is None or (not isinstance(witnesses, Method) and list(witnesses) == [AUTO])


def find_witnesses(witnesses: Witnesses | None, *, has_images: bool = True) -> tuple[Method, ...]:
    """The methods of a scan, from methods and names; None or ``auto`` leaves the choice to us.

    Raises:
        InputError: a name is not known, a method does not look for the target class or needs images
            that are not there, one is given twice, or there is none.
    """
    if witnesses is None or is_auto(witnesses):
        witnesses = WITNESSES if has_images else WITHOUT_IMAGES
    known = [name for name in methods.names() if methods.get(name).inspects]
    found: list[Method] = []
    for given in [witnesses] if isinstance(witnesses, str | Method) else witnesses:
        witness = methods.get(given)() if isinstance(given, str) else given
        if not witness.inspects:
            raise InputError(
                f"the method {witness.name!r} removes backdoors and does not look for the target "
                f"class; methods that do: {', '.join(known)}"
            )
        if not has_images and witness.needs != "nothing":
            raise InputError(
                f"the method {witness.name!r} needs clean images of the task to look; give some "
                f"(--images), or methods that need none: {', '.join(WITHOUT_IMAGES)}"
            )
        if witness in found:  # it would only make every p-value larger
            raise InputError(f"the method {witness.name!r} is given twice; give it once")
        found.append(witness)
    if not found:
        raise InputError(f"no method is given that looks; there are {', '.join(known)}")
    return tuple(found)


def describe(classifier: Classifier, images: ImageSet | None, seed: int) -> dict[str, Any]:
    """The facts that every record starts with; whoever knows the files adds their names."""
    network = classifier.network
    return {
        "bezoar": bezoar.__version__,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "seed": seed,
        "device": str(classifier.device),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": np.__version__,
        },
        "model": {
            "architecture": type(network).__name__,
            "parameters": sum(p.numel() for p in network.parameters()),
            "input": list(input_of(classifier, images)),
            "mean": list(classifier.mean),
            "std": list(classifier.std),
            "classes": list(classifier.classes),
            "head": classifier.head.name,
        },
        "images": None if images is None else _described(images, classifier.num_classes),
    }


def _described(images: ImageSet, num_classes: int) -> dict[str, Any]:
    labelled = images.labels is not None
    return {
        "count": len(images),
        "labelled": labelled,
        "per_class": images.class_counts(num_classes).tolist() if labelled else None,
        "sha256": images.sha256(),
    }
