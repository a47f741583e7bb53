"""The two jobs users come for: ``scan`` a classifier, ``clean`` it; both leave a full record.

``scan`` is in ``scanning``. ``clean`` scans, repairs a copy on four fifths of the images, or on
none of them, and lets ``judging`` judge the copy by the rest. Without a method several repairs are
tried (``trying``); afterwards the copy is scanned again and probed (``aftercare``).
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from bezoar.aftercare import residual_risk, retuning_probe
from bezoar.checks import check_public, check_runs
from bezoar.classifier import Classifier
from bezoar.errors import InputError
from bezoar.generators.public_generator import PublicGenerator
from bezoar.images import ImageSet
from bezoar.judging import judge_repair
from bezoar.methods import (
    DHBE,
    FreD,
    Method,
    Needs,
    Repair,
    SyntheticUnlearning,
    is_data_free,
    methods,
    takes_no_task_image,
    takes_public,
)
from bezoar.repair_record import changes, method_record, public_record, wrapped
from bezoar.scan_record import no_proof
from bezoar.scanning import AUTO as AUTO
from bezoar.scanning import WITHOUT_IMAGES, Witnesses, describe
from bezoar.scanning import Finding as Finding
from bezoar.scanning import find_witnesses as find_witnesses
from bezoar.scanning import scan as scan
from bezoar.surviving import Survivors
from bezoar.training import Progress, no_progress
from bezoar.trying import Trial, plan_for, try_repairs
from bezoar.verdict import Verdict

HELD_OUT = 0.2  # share of the clean images that judge a repair and take no part in it
WITHOUT = "There are no images of the task; {} needs none."
PRECAUTION = 0.01  # largest loss of accuracy where nothing was found


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
    own answers. Without images of the task, the choice falls on FreD where there are public ones.
    Without those, too, the scan looks at the weights alone, and a suspected class is repaired by
    synthetic unlearning (``precaution`` takes DHBE where there is none, which asks for no class).
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
        accuracy is within the limit, and ``record["judged_on"]`` whether it could be measured.

    Raises:
        InputError: the images, the network or a method cannot be used.
    """
    started = time.perf_counter()
    if not 0 <= max_accuracy_drop <= 1:
        raise InputError(f"max_accuracy_drop is {max_accuracy_drop}; expected a share in [0, 1]")
    chosen = methods.get(method)() if isinstance(method, str) else method
    if precaution and chosen is not None:
        raise InputError("precaution is for a choice of methods; leave it or the method out")
    check_needs(chosen, has_images=images is not None, has_public=public is not None)
    blind = chosen is None and images is None and public is None
    find_witnesses(witnesses, has_images=not blind)  # refuses an unknown one before any work
    if images is not None and chosen is not None and not takes_no_task_image(chosen):
        images.require_labels("cleaning")
    if public is not None:
        check_public(public, classifier, images)
    if isinstance(public, ImageSet):
        public = ImageSet(public.images, notices=public.notices, names=public.names)
    reason = _reason(chosen)
    if chosen is None and public is not None:
        chosen, reason = FreD(), WITHOUT.format("fred")
    finding, unseen = _look(classifier, images, chosen, witnesses, seed, progress)
    evidence = finding.evidence if finding else ()
    record = describe(classifier, images, seed) | {
        "kind": "clean",
        "public": public_record(public),
        "scan": finding and finding.record,
        "skipped": unseen,
    }
    found = finding is not None and finding.verdict is not Verdict.NOTHING_FOUND
    if chosen is None and not found and not precaution:
        outcome = "Left untouched: the scan found nothing, and no method was asked for. "
        outcome += no_proof(evidence)
        record |= {"accepted": True, "untouched": True, "outcome": outcome}
        record |= {"seconds": {"total": time.perf_counter() - started}}
        return Repair(classifier.copy(), record, evidence)
    if chosen is None and images is None:
        assert finding is not None  # noqa: S101 (``_look`` without a method)
        suspects = finding.suspects
        chosen = SyntheticUnlearning(target_class=suspects[0]) if suspects else DHBE()
        reason = WITHOUT.format(chosen.name)
    survivors: Survivors | None = None
    known: ImageSet | None = None
    best: Trial | None = None
    trials: tuple[Trial, ...] = ()
    if images is not None:
        known, held_out = _divided(classifier, images, chosen, seed)
        if finding is not None and known is not None:
            suspects = finding.suspects or finding.ranking[:1]
            survivors = Survivors(classifier, evidence, suspects, known, held_out, seed=seed)
    if chosen is None:
        assert known is not None  # noqa: S101 (there are images)
        assert survivors is not None  # noqa: S101 (and they were scanned)
        limit = max_accuracy_drop if found else min(PRECAUTION, max_accuracy_drop)
        best, trials = try_repairs(
            classifier,
            known,
            answered(classifier, held_out),
            survivors,
            plan_for(survivors, _deciding(finding, witnesses)),
            max_accuracy_drop=limit,
            seed=seed,
            progress=progress,
        )
        assert best.repair is not None  # noqa: S101 (``try_repairs``)
        repair, max_accuracy_drop = best.repair, limit
        chosen, reason = best.method, _why(best, trials, found=found)
    else:
        repair = _repair(chosen, classifier, known, public, seed, progress)
    judges = images if known is None else held_out
    judged = judge_repair(classifier, repair, judges, max_accuracy_drop=max_accuracy_drop)
    front = wrapped(classifier, repair.classifier)
    rescan, again = None, ""
    if images is not None and finding is not None:
        rescan, again = _look_again(repair.classifier, images, witnesses, seed, front is not None)
    care, risk = None, ""
    if survivors is not None and known is not None:
        left = (best and best.survival) or survivors.after(repair.classifier)
        probe = retuning_probe(
            repair.classifier, known, survivors, left, seed=seed, progress=progress
        )
        risk = residual_risk(
            labelled=images is not None and images.labels is not None,
            # All witnesses know better than the quick look at a trial.
            stands_out=left.stands_out if rescan is None else bool(rescan.suspects),
            returned=probe["returned"],
            worst=left.worst,
        )
        care = {"survival": left.as_record(), "probe": probe, "risk": risk}
    unread = list(images.notices) if images is not None and finding is None else []
    if isinstance(public, ImageSet):
        unread += [f"Public images: {line}" for line in public.notices]
    total, judging = (0 if s is None else len(s) for s in (images, judges))
    told = (judged.sentence, again, risk)
    record |= judged.record | {
        "accepted": judged.accepted,
        "untouched": False,
        "outcome": " ".join(part for part in told if part),
        "method": method_record(chosen, reason),
        "trials": [trial.as_record() for trial in trials],
        "kept": None if best is None else trials.index(best),
        "aftercare": care,
        "fitted_on": {"count": total - judging, "of": total},
        "wrapped": front,
        "changes": changes(classifier, repair.classifier),
        "curves": repair.record.get("curves", []),
        "notices": [*repair.record.get("flags", []), *unread],
        "repair": {key: value for key, value in repair.record.items() if key != "curves"},
        "rescan": rescan and rescan.record,
        "seconds": {"total": time.perf_counter() - started},
    }
    return Repair(repair.classifier, record, evidence, repair.synthetic)


def _deciding(finding: Finding | None, witnesses: Witnesses | None) -> Method | None:
    """The witness that decides the most suspicious class."""
    if finding is None:
        return None
    name = finding.evidence[finding.deciding[finding.ranking[0]]].method
    return next((w for w in find_witnesses(witnesses) if w.name == name), None)


def _reason(chosen: Method | None) -> str:
    """Why a method that was asked for is taken."""
    if chosen is not None and is_data_free(chosen):
        return "It was asked for; it takes no image."
    if chosen is not None and takes_public(chosen):
        return "It was asked for; it takes no image of the task."
    return "It was asked for."


def _why(best: Trial, trials: Sequence[Trial], *, found: bool) -> str:
    """Why a repair was kept."""
    count = len(trials)
    tried = f"{count} repairs were tried" if count > 1 else "One repair was tried"
    start = "" if found else "Nothing was found; it is repaired as a precaution. "
    if best.survival is not None and best.survival.removed:
        return f"{start}{tried}; after this one ({best.name}) no sign is left."
    return f"{start}{tried}; this one ({best.name}) has the best balance."


def check_needs(method: Method | None, *, has_images: bool, has_public: bool) -> None:
    """Refuses a method, or a choice of one, without what it needs or with what it does not take.

    Raises:
        InputError: there are no images and they are needed, the same for public images, or there
            are public images that nobody takes.
    """
    if method is None:
        if has_images and has_public:
            raise InputError(
                "images of the task and public ones are given, and no method; leave out --public "
                "and --generator, or give a method that takes them (--method): "
                f"{_needing('public images')}"
            )
        return
    who = f"the method {method.name!r}"
    if type(method).remove is Method.remove:
        raise InputError(f"{who} looks for the target class and removes nothing; it is for a scan")
    if takes_public(method):
        if not has_public:
            raise InputError(
                f"{who} needs public images, which may show anything but the task; give some "
                "(--public), or a generator that was trained on such (--generator)"
            )
        return
    if has_public:
        raise InputError(
            f"{who} takes no public images and no generator; leave out --public and --generator, "
            f"or give a method that takes them (--method): {_needing('public images')}"
        )
    if has_images or is_data_free(method):
        return
    raise InputError(
        f"no images were given, and {who} needs labelled clean images; give them (--images), or a "
        f"method that needs nothing (--method): {_needing('nothing')}"
    )


def _needing(what: Needs) -> str:
    """The names of the methods that need just that."""
    found = [
        name
        for name in methods.names()
        if methods.get(name).needs == what and methods.get(name).remove is not Method.remove
    ]
    return ", ".join(found) or "none is there"


def _look(
    classifier: Classifier,
    images: ImageSet | None,
    method: Method | None,
    witnesses: Witnesses | None,
    seed: int,
    progress: Progress,
) -> tuple[Finding | None, list[str]]:
    """The scan before a repair, or why there is none: a repair without images needs none.

    Where the method is still to be chosen, the weights alone are scanned without images.
    """
    check_runs(classifier, images)
    if images is None and method is None:
        return scan(classifier, seed=seed, witnesses=witnesses, progress=progress), []
    if images is None:
        return None, [
            "The model was not scanned: a scan needs clean images of the task, and none were given."
        ]
    try:
        return scan(classifier, images, seed=seed, witnesses=witnesses, progress=progress), []
    except InputError as error:
        if images.labels is not None or method is None:
            raise
        return None, [f"The model was not scanned: {error}."]


def _divided(
    classifier: Classifier, images: ImageSet, method: Method | None, seed: int
) -> tuple[ImageSet | None, ImageSet]:
    """The images that a repair works on, with labels, or None, and those that judge it."""
    if method is not None and takes_no_task_image(method):
        return None, images
    known, held_out = images.split(1 - HELD_OUT, seed=seed)
    if not len(held_out):
        raise InputError(
            f"there are {len(images)} clean images, one of each class, and none is left to judge "
            "the repair; give at least two images of each class"
        )
    return answered(classifier, known), held_out


def answered(classifier: Classifier, images: ImageSet) -> ImageSet:
    """The images with the classifier's own answers for labels, where they have none."""
    if images.labels is not None:
        return images
    return ImageSet(images.images, classifier.logits(images).argmax(1).cpu())


def _repair(
    method: Method,
    classifier: Classifier,
    known: ImageSet | None,
    public: ImageSet | PublicGenerator | None,
    seed: int,
    progress: Progress,
) -> Repair:
    """A repair by one method."""
    if is_data_free(method):
        return method.remove(classifier, None, seed=seed, progress=progress)
    if takes_public(method):
        assert public is not None  # noqa: S101 (``check_needs``)
        if isinstance(public, PublicGenerator):
            public = public.to(classifier.device)
        return method.remove(classifier, public, seed=seed, progress=progress)
    assert known is not None  # noqa: S101 (``check_needs``)
    return method.remove(classifier, known, seed=seed, progress=progress)


def _look_again(
    repaired: Classifier,
    images: ImageSet,
    witnesses: Witnesses | None,
    seed: int,
    behind_purifier: bool,
) -> tuple[Finding | None, str]:
    """The scan after a repair, and what it says."""
    try:
        rescan = scan(repaired, images, seed=seed, witnesses=witnesses, without=WITHOUT_IMAGES)
    except InputError as error:  # the repair ruined the network; the gate says so, not an error
        return None, f"The repaired model could not be scanned again: {error}."
    again = f"A new scan of the repaired model says: {rescan.verdict.value}."
    if behind_purifier and rescan.verdict is not Verdict.NOTHING_FOUND:
        again += (
            " The weights behind the purifier are unchanged, so a scan may still see the backdoor "
            "in them."
        )
    return rescan, again
