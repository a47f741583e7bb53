"""The repair of a copy, and the images that are kept from it to judge it.

A method that takes images of the task works on four fifths of them, and the rest judges. One that
takes none leaves all of them to judge its accuracy; what of the backdoor survives is looked for on
the same parts as ever. Where nobody named a method, several repairs are tried
(``trying``), or without images ``choosing`` takes one that needs none.
"""

from __future__ import annotations

from dataclasses import dataclass

from bezoar import precaution
from bezoar.choosing import Choice, as_precaution, asked_for, best_of, without_images
from bezoar.classifier import Classifier
from bezoar.generators.public_generator import PublicGenerator
from bezoar.given import HELD_OUT, Given
from bezoar.images import ImageSet
from bezoar.methods import Method, Repair, is_data_free, takes_no_task_image, takes_public
from bezoar.scanning import Finding, Witnesses, find_witnesses
from bezoar.surviving import Survivors
from bezoar.trying import Trial, plan_for, try_repairs
from bezoar.verdict import Verdict


@dataclass(frozen=True, eq=False, kw_only=True)
class Repaired:
    """A repair that is still to be judged.

    Attributes:
        repair: what the method made.
        choice: the method, and why it was taken.
        max_accuracy_drop: largest loss of accuracy, in [0, 1], of an accepted repair.
        known: images that judge no accuracy of a repair that worked on them, with labels; None
            where there are none.
        held_out: the images that judge its accuracy; None where there are none.
        survivors: the triggers of the original; None without a scan, where no image is left to try
            them on, or where a method was asked for although nothing was found.
        trials: the repairs that were tried, in their order.
        kept: the one of them that ``repair`` is.
    """

    repair: Repair
    choice: Choice
    max_accuracy_drop: float
    known: ImageSet | None = None
    held_out: ImageSet | None = None
    survivors: Survivors | None = None
    trials: tuple[Trial, ...] = ()
    kept: Trial | None = None


def make_repair(
    given: Given, finding: Finding | None, method: Method | None, *, max_accuracy_drop: float
) -> Repaired:
    """Repairs a copy of the model.

    Args:
        given: the model and the images.
        finding: of the scan before; None where there was none.
        method: the one that was asked for; None chooses.
        max_accuracy_drop: largest loss of accuracy, in [0, 1], of an accepted repair.

    Raises:
        InputError: no method can be used.
    """
    if given.images is None:
        return _without_images(given, finding, method, max_accuracy_drop)
    if method is None:
        assert finding is not None  # noqa: S101 (``look_before`` without a method)
        return _chosen(given, given.images, finding, max_accuracy_drop)
    blind = takes_no_task_image(method)
    known, held_out = _divided(given, given.images)
    survivors = None
    if finding is not None and finding.verdict is not Verdict.NOTHING_FOUND and len(held_out):
        survivors = _survivors(given, finding, known, held_out)
    return Repaired(
        repair=_removed(given, method, known),
        choice=asked_for(method),
        max_accuracy_drop=max_accuracy_drop,
        known=known,
        held_out=given.images if blind else held_out,
        survivors=survivors,
    )


def _without_images(
    given: Given, finding: Finding | None, method: Method | None, max_accuracy_drop: float
) -> Repaired:
    """A repair that no image of the task can judge, chosen by the weights where nobody did."""
    if method is None:
        suspects = () if finding is None else finding.suspects
        choice = without_images(suspects, has_public=given.public is not None)
    else:
        choice = asked_for(method)
    repair = _removed(given, choice.method, None)
    return Repaired(repair=repair, choice=choice, max_accuracy_drop=max_accuracy_drop)


def _chosen(given: Given, images: ImageSet, finding: Finding, max_accuracy_drop: float) -> Repaired:
    """The best of several repairs, or the one that is made as a precaution."""
    found = finding.verdict is not Verdict.NOTHING_FOUND
    limit = max_accuracy_drop if found else min(precaution.LIMIT, max_accuracy_drop)
    known, held_out = _divided(given, images)
    survivors = _survivors(given, finding, known, held_out)
    judging = _answered(given.classifier, held_out)
    if found:
        best, trials = try_repairs(
            given.classifier,
            known,
            judging,
            survivors,
            plan_for(survivors, _deciding(finding, given.witnesses)),
            max_accuracy_drop=limit,
            seed=given.seed,
            progress=given.progress,
        )
        choice = best_of(trials, best)
    else:
        best = precaution.repair_as_precaution(
            given.classifier,
            known,
            judging,
            survivors,
            max_accuracy_drop=limit,
            seed=given.seed,
            progress=given.progress,
        )
        trials, choice = (best,), as_precaution(best)
    assert best.repair is not None  # noqa: S101 (``try_repairs``)
    return Repaired(
        repair=best.repair,
        choice=choice,
        max_accuracy_drop=limit,
        known=known,
        held_out=held_out,
        survivors=survivors,
        trials=trials,
        kept=best,
    )


def _divided(given: Given, images: ImageSet) -> tuple[ImageSet, ImageSet]:
    """The images that a repair works on, with labels, and those that judge it."""
    known, held_out = images.split(1 - HELD_OUT, seed=given.seed)
    return _answered(given.classifier, known), held_out


def _answered(classifier: Classifier, images: ImageSet) -> ImageSet:
    """The images with the classifier's own answers for labels, where they have none."""
    if images.labels is not None:
        return images
    return ImageSet(images.images, classifier.logits(images).argmax(1).cpu())


def _survivors(given: Given, finding: Finding, known: ImageSet, held_out: ImageSet) -> Survivors:
    """The triggers of the suspects, or of the most unusual class where there is none."""
    suspects = finding.suspects or finding.ranking[:1]
    return Survivors(given.classifier, finding.evidence, suspects, known, held_out, seed=given.seed)


def _deciding(finding: Finding, witnesses: Witnesses | None) -> Method | None:
    """The witness that decides the most suspicious class."""
    name = finding.evidence[finding.deciding[finding.ranking[0]]].method
    return next((w for w in find_witnesses(witnesses) if w.name == name), None)


def _removed(given: Given, method: Method, known: ImageSet | None) -> Repair:
    """A repair by one method; ``known`` is for those that take images of the task."""
    if is_data_free(method):
        return method.remove(given.classifier, None, seed=given.seed, progress=given.progress)
    if takes_public(method):
        public = given.public
        assert public is not None  # noqa: S101 (``check_needs``)
        if isinstance(public, PublicGenerator):
            public = public.to(given.classifier.device)
        return method.remove(given.classifier, public, seed=given.seed, progress=given.progress)
    assert known is not None  # noqa: S101 (``check_needs``)
    return method.remove(given.classifier, known, seed=given.seed, progress=given.progress)
