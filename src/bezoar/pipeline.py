"""The two jobs users come for: ``scan`` a classifier, ``clean`` it; both leave a full record.

``scan`` is in ``scanning``. ``clean`` scans (``looking``), repairs a copy on four fifths of the
images, or on none of them (``repairing``), and lets ``judging`` judge the copy by the rest.
Afterwards the copy is scanned again and probed (``aftercare``).
"""

from __future__ import annotations

import time
from typing import Any

from bezoar.aftercare import (
    NEW_SUSPECT,
    NEWLY_SUSPECTED,
    NOTHING_TO_WATCH,
    residual_risk,
    retuning_probe,
    signs_of_backdoor,
)
from bezoar.classifier import Classifier
from bezoar.device import with_gradients
from bezoar.errors import InputError
from bezoar.generators.public_generator import PublicGenerator
from bezoar.given import Given
from bezoar.images import ImageSet
from bezoar.judging import judge_repair
from bezoar.looking import look_again, look_before
from bezoar.methods import Method, Repair, methods
from bezoar.repair_record import changes, method_record, public_record, wrapped
from bezoar.repairing import Repaired, make_repair
from bezoar.scanning import AUTO as AUTO
from bezoar.scanning import Finding as Finding
from bezoar.scanning import Witnesses, describe
from bezoar.scanning import find_witnesses as find_witnesses
from bezoar.scanning import scan as scan
from bezoar.surviving import Survival
from bezoar.training import Progress, no_progress
from bezoar.verdict import Verdict
from bezoar.wording import NO_PROOF, REPAIRED, SIGNS_LEFT, UNCHANGED, UNMEASURED, UNTOUCHED


@with_gradients()
def clean(
    classifier: Classifier,
    images: ImageSet | None = None,
    *,
    method: str | Method | None = None,
    seed: int = 0,
    public: ImageSet | PublicGenerator | None = None,
    witnesses: Witnesses | None = None,
    max_accuracy_drop: float = 0.05,
    precaution: bool = False,
    progress: Progress = no_progress,
) -> Repair:
    """Scans, repairs a copy of ``classifier``, and judges the copy on images it has not seen.

    Without ``method``, a classifier in which nothing is found comes back as an unchanged copy
    (``precaution`` repairs it all the same), and one with a suspected class is repaired in several
    ways, of which the best is kept (``trying``); images without labels are given the classifier's
    own answers. Without images of the task the scan looks at the weights alone, and a suspected
    class is repaired by FreD where there are public images, else by synthetic unlearning
    (``precaution`` takes FreD, too, or DHBE, which asks for no class).
    With ``method``, it is always repaired. A method that needs nothing, or public images, is given
    no image of the task: all that there are judge its work, and without any there is no scan before
    it, and what it measured itself is told instead.

    Args:
        classifier: the suspect; it stays as it is. Without images it needs an ``input_size``.
        images: labelled clean images; a fifth of each class is kept from the repair and judges it.
            For a method that needs nothing, or public images, they may lack labels, or be None.
        method: a method, or its name for its default settings.
        public: for a method that needs them, images of something else than the task, of the
            network's size, whose labels are not used, or a generator that was trained on such.
        seed: of everything drawn at random.
        witnesses: the methods that look, before and after the repair.
        max_accuracy_drop: largest loss of held-out accuracy, in [0, 1], of an accepted repair;
            without labels it cannot be judged (see ``judging``).
        precaution: without a method, repair a model in which nothing was found, too; accepted if it
            loses at most one point.
        progress: called with what is done and its share.

    Returns:
        The repaired classifier and the record; ``record["accepted"]`` says whether the loss of
        accuracy is within the limit, and ``record["judged_on"]`` whether it could be measured ("no
        repair" where the classifier comes back unchanged).

    Raises:
        InputError: the images, the network or a method cannot be used.
    """
    started = time.perf_counter()
    if not 0 <= max_accuracy_drop <= 1:
        raise InputError(f"max_accuracy_drop is {max_accuracy_drop}; expected a share in [0, 1]")
    asked = methods.get(method)() if isinstance(method, str) else method
    if precaution and asked is not None:
        raise InputError("precaution is for a choice of methods; leave it or the method out")
    given = Given(
        classifier=classifier,
        images=images,
        public=_without_labels(public),
        witnesses=witnesses,
        seed=seed,
        progress=progress,
    )
    given.check(asked)
    finding, unseen = look_before(given, asked)
    record = describe(classifier, images, seed) | {
        "kind": "clean",
        "public": public_record(given.public),
        "scan": finding and finding.record,
        "skipped": unseen,
    }
    may_stay = asked is None and not precaution
    if may_stay and finding is not None and finding.verdict is Verdict.NOTHING_FOUND:
        record |= _untouched() | _seconds(started)
        return Repair(classifier.copy(), record, finding.evidence)
    made = make_repair(given, finding, asked, max_accuracy_drop=max_accuracy_drop)
    record |= _judged(given, finding, made) | _seconds(started)
    evidence = finding.evidence if finding else ()
    return Repair(made.repair.classifier, record, evidence, made.repair.synthetic)


def _without_labels(
    public: ImageSet | PublicGenerator | None,
) -> ImageSet | PublicGenerator | None:
    """Public images without their labels, which say nothing about the task."""
    if isinstance(public, ImageSet):
        return ImageSet(public.images, notices=public.notices, names=public.names)
    return public


def _untouched() -> dict[str, Any]:
    """The record of a model in which nothing was found."""
    outcome = (
        f"{UNTOUCHED}: the scan found nothing, and no method was asked for, so the weights are as "
        f"they were. {NO_PROOF}."
    )
    return {
        "accepted": True,
        "untouched": True,
        "judged_on": "no repair",
        "accuracy_drop": 0.0,
        "heading": UNTOUCHED,
        "outcome": outcome,
        "aftercare": {"survival": None, "probe": None, "signs": [], "risk": NOTHING_TO_WATCH},
    }


def _seconds(started: float) -> dict[str, Any]:
    return {"seconds": {"total": time.perf_counter() - started}}


def _judged(given: Given, finding: Finding | None, made: Repaired) -> dict[str, Any]:
    """The record of a repair: what it is worth, what a new scan says, what risk is left."""
    before, repair = given.classifier, made.repair
    judged = judge_repair(
        before,
        repair,
        made.held_out,
        max_accuracy_drop=made.max_accuracy_drop,
        seed=given.seed,
    )
    front, changed = wrapped(before, repair.classifier), changes(before, repair.classifier)
    heading, told, rescan, again = judged.heading, judged.told, None, ""
    if front is None and not changed:
        if judged.accepted:  # else it is told why not
            heading, told = UNCHANGED, f"{made.choice.method.name} left the network as it was."
        if finding is not None and given.images is not None:
            rescan, again = finding, f"The scan's verdict stands: {finding.verdict.value}."
    elif given.images is not None and finding is not None:
        rescan, again = look_again(given, repair.classifier, behind_purifier=front is not None)
    care = _cared_for(given, finding, made, rescan)
    if heading in (REPAIRED, UNMEASURED) and _signs_left(care, rescan):
        heading += SIGNS_LEFT
    total, judging = (0 if s is None else len(s) for s in (given.images, made.held_out))
    sentences = (f"{heading}: {told}", again, care["risk"] if care else "")
    return judged.record | {
        "accepted": judged.accepted,
        "untouched": False,
        "heading": heading,
        "outcome": " ".join(sentence for sentence in sentences if sentence),
        "method": method_record(made.choice.method, made.choice.reason),
        "trials": [trial.as_record() for trial in made.trials],
        "kept": None if made.kept is None else made.trials.index(made.kept),
        "aftercare": care,
        "fitted_on": {"count": total - judging, "of": total},
        "wrapped": front,
        "changes": changed,
        "curves": repair.record.get("curves", []),
        "notices": [*repair.record.get("flags", []), *_unread(given, finding)],
        "repair": {key: value for key, value in repair.record.items() if key != "curves"},
        "rescan": rescan and rescan.record,
    }


def _cared_for(
    given: Given, finding: Finding | None, made: Repaired, rescan: Finding | None
) -> dict[str, Any] | None:
    """What of the backdoor survives, and whether tuning brings it back; None without triggers.

    Every network has triggers that carry some images, so where nothing was found they tell nothing.
    """
    if finding is not None and finding.verdict is Verdict.NOTHING_FOUND:
        return _watched(made, rescan) if made.held_out is not None else None
    if made.survivors is None or made.known is None:
        return None
    repaired = made.repair.classifier
    left = (made.kept and made.kept.survival) or made.survivors.after(repaired)
    probe = (made.kept and made.kept.probe) or retuning_probe(
        repaired, made.known, made.survivors, left, seed=given.seed, progress=given.progress
    )
    # All witnesses know better than the quick look at a trial.
    stands_out, returned = _stands_out(left, rescan), probe.returned
    signs = signs_of_backdoor(
        stands_out=stands_out, re_exposed=left.re_exposed, returned=returned, worst=left.worst
    )
    risk = residual_risk(
        signs,
        looked=stands_out is not None,
        tried=left.tried,
        audited=bool(left.exposed),
        probe=probe,
        labelled=given.images is not None and given.images.labels is not None,
    )
    return {
        "survival": left.as_record(),
        "probe": probe.as_record(),
        "signs": signs,
        "risk": risk,
    }


def _watched(made: Repaired, rescan: Finding | None) -> dict[str, Any]:
    """What is known after the repair of a model in which nothing was found."""
    left = made.kept and made.kept.survival
    new = rescan is not None and bool(rescan.suspects)
    return {
        "survival": left and left.as_record(),
        "probe": None,
        "signs": [NEW_SUSPECT] if new else [],
        "risk": NEWLY_SUSPECTED if new else NOTHING_TO_WATCH,
    }


def _signs_left(care: dict[str, Any] | None, rescan: Finding | None) -> bool:
    """Whether anything speaks for a backdoor in the repaired model."""
    return bool(care["signs"] if care else rescan is not None and rescan.suspects)


def _stands_out(left: Survival, rescan: Finding | None) -> bool | None:
    """Whether a class is still unusual; None where nobody could look."""
    if rescan is not None:
        return bool(rescan.suspects)
    return left.stands_out if left.looked else None


def _unread(given: Given, finding: Finding | None) -> list[str]:
    """What is to be said about the images and stands in no scan."""
    told = list(given.images.notices) if given.images is not None and finding is None else []
    if isinstance(given.public, ImageSet):
        told += [f"Public images: {line}" for line in given.public.notices]
    return told
