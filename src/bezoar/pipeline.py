"""The two jobs users come for: ``scan`` a classifier, ``clean`` it; both leave a full record.

The way of a tensor: each witness, a method that inspects, turns network and clean images into one
statistic per class (``methods``), ``verdict`` judges them together, ``scan_record`` writes it down.
``clean`` then repairs a copy on four fifths of the images, or on none of them, and lets ``judging``
judge the copy by the rest.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import msgspec
import numpy as np
import torch

import bezoar
from bezoar.checks import check_input, check_public, check_runs, input_of
from bezoar.classifier import Classifier
from bezoar.errors import InputError
from bezoar.generators.public_generator import PublicGenerator
from bezoar.images import ImageSet
from bezoar.judging import judge_repair
from bezoar.methods import (
    TAC,
    Evidence,
    Method,
    Needs,
    Repair,
    is_data_free,
    methods,
    takes_no_task_image,
    takes_public,
)
from bezoar.repair_record import changes, method_record, public_record, wrapped
from bezoar.scan_record import no_proof, scan_record
from bezoar.training import Progress, no_progress
from bezoar.verdict import Levels, Verdict, judge

HELD_OUT = 0.2  # share of the clean images that judge a repair and take no part in it

WITNESSES = ("tac",)  # who looks where nobody is named


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


def scan(
    classifier: Classifier,
    clean: ImageSet,
    *,
    seed: int = 0,
    witnesses: Sequence[str | Method] = WITNESSES,
    levels: Levels | None = None,
    progress: Progress = no_progress,
) -> Finding:
    """Looks for a backdoor in ``classifier`` with the help of clean images.

    Args:
        classifier: the suspect.
        clean: clean images of its task; labels are used for checks only.
        seed: of everything drawn at random.
        witnesses: the methods that look, or their names for their default settings.
        levels: the limits of the verdicts.
        progress: called with what is done and its share.

    Raises:
        InputError: the images, the network or a witness cannot be used (see the message).
    """
    started = time.perf_counter()
    levels = levels or Levels()
    looking = find_witnesses(witnesses)
    notices = check_input(classifier, clean)
    evidence = tuple(
        witness.inspect(classifier, clean, seed=seed, progress=progress) for witness in looking
    )
    flags = [flag for witness in evidence for flag in witness.record.get("flags", [])]
    judgement = judge(evidence, classifier.classes, levels)
    record = (
        describe(classifier, clean, seed)
        | scan_record(judgement, evidence, classifier.classes, len(clean), levels)
        | {"notices": notices + flags, "seconds": {"total": time.perf_counter() - started}}
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


def find_witnesses(witnesses: Sequence[str | Method]) -> tuple[Method, ...]:
    """The methods of a scan, from methods and names.

    Raises:
        InputError: a name is not known, a method does not look for the target class, one is given
            twice, or there is none.
    """
    known = [name for name in methods.names() if methods.get(name).inspects]
    found: list[Method] = []
    for given in [witnesses] if isinstance(witnesses, str | Method) else witnesses:
        witness = methods.get(given)() if isinstance(given, str) else given
        if not witness.inspects:
            raise InputError(
                f"the method {witness.name!r} removes backdoors and does not look for the target "
                f"class; methods that do: {', '.join(known)}"
            )
        if witness in found:  # it would only make every p-value larger
            raise InputError(f"the method {witness.name!r} is given twice; give it once")
        found.append(witness)
    if not found:
        raise InputError(f"no method is given that looks; there are {', '.join(known)}")
    return tuple(found)


def clean(
    classifier: Classifier,
    images: ImageSet | None = None,
    *,
    method: str | Method | None = None,
    seed: int = 0,
    public: ImageSet | PublicGenerator | None = None,
    witnesses: Sequence[str | Method] = WITNESSES,
    max_accuracy_drop: float = 0.05,
    progress: Progress = no_progress,
) -> Repair:
    """Scans, repairs a copy of ``classifier``, and judges the copy on images it has not seen.

    Without ``method``, a classifier in which nothing is found comes back as an unchanged copy, and
    one with a suspected class is repaired by the witness that found it. With one, it is always
    repaired. A method that needs nothing, or public images, is given no image of the task: all that
    there are judge its work, and without any there is no scan, and what it measured itself is told
    instead.

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
    looking = find_witnesses(witnesses)
    check_needs(chosen, has_images=images is not None, has_public=public is not None)
    if images is not None and not (chosen is not None and takes_no_task_image(chosen)):
        images.require_labels("cleaning")
    if public is not None:
        check_public(public, classifier, images)
    if isinstance(public, ImageSet):
        public = ImageSet(public.images, notices=public.notices, names=public.names)
    finding, unseen = _look(classifier, images, looking, seed, progress)
    evidence = finding.evidence if finding else ()
    record = describe(classifier, images, seed) | {
        "kind": "clean",
        "public": public_record(public),
        "scan": finding and finding.record,
        "skipped": unseen,
    }
    reason = "It was asked for."
    if chosen is None:
        assert finding is not None  # noqa: S101 (labelled images are scanned, or refused)
        if finding.verdict is Verdict.NOTHING_FOUND:
            outcome = "Left untouched: the scan found nothing, and no method was asked for. "
            outcome += no_proof(evidence)
            record |= {"accepted": True, "untouched": True, "outcome": outcome}
            record |= {"seconds": {"total": time.perf_counter() - started}}
            return Repair(classifier.copy(), record, evidence)
        chosen, reason = _repair_for(finding, looking, classifier.classes)
    elif is_data_free(chosen):
        reason = "It was asked for; it takes no image."
    elif takes_public(chosen):
        reason = "It was asked for; it takes no image of the task."
    repair, judges = _repair(chosen, classifier, images, public, seed, progress)
    judged = judge_repair(classifier, repair, judges, max_accuracy_drop=max_accuracy_drop)
    front = wrapped(classifier, repair.classifier)
    rescan, again = None, ""
    if images is not None and finding is not None:
        rescan, again = _look_again(repair.classifier, images, looking, seed, front is not None)
    unread = list(images.notices) if images is not None and finding is None else []
    if isinstance(public, ImageSet):
        unread += [f"Public images: {line}" for line in public.notices]
    total, judging = (0 if s is None else len(s) for s in (images, judges))
    record |= judged.record | {
        "accepted": judged.accepted,
        "untouched": False,
        "outcome": " ".join(part for part in (judged.sentence, again) if part),
        "method": method_record(chosen, reason),
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


def check_needs(method: Method | None, *, has_images: bool, has_public: bool) -> None:
    """Refuses a method, or a choice of one, without what it needs or with what it does not take.

    Raises:
        InputError: there are no images and they are needed, the same for public images, or there
            are public images that nobody takes.
    """
    who = "choosing a method" if method is None else f"the method {method.name!r}"
    if method is not None and takes_public(method):
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
    if has_images or (method is not None and is_data_free(method)):
        return
    raise InputError(
        f"no images were given, and {who} needs labelled clean images; give them (--images), or a "
        f"method that needs nothing (--method): {_needing('nothing')}"
    )


def _needing(what: Needs) -> str:
    """The names of the methods that need just that."""
    found = [name for name in methods.names() if methods.get(name).needs == what]
    return ", ".join(found) or "none is there"


def _look(
    classifier: Classifier,
    images: ImageSet | None,
    witnesses: Sequence[Method],
    seed: int,
    progress: Progress,
) -> tuple[Finding | None, list[str]]:
    """The scan before a repair, or why there is none: a repair without images needs none."""
    check_runs(classifier, images)
    if images is None:
        return None, [
            "The model was not scanned: a scan needs clean images of the task, and none were given."
        ]
    try:
        return scan(classifier, images, seed=seed, witnesses=witnesses, progress=progress), []
    except InputError as error:
        if images.labels is not None:
            raise
        return None, [f"The model was not scanned: {error}."]


def _repair(
    method: Method,
    classifier: Classifier,
    images: ImageSet | None,
    public: ImageSet | PublicGenerator | None,
    seed: int,
    progress: Progress,
) -> tuple[Repair, ImageSet | None]:
    """A repair, and the images that took no part in it."""
    if is_data_free(method):
        return method.remove(classifier, None, seed=seed, progress=progress), images
    if takes_public(method):
        assert public is not None  # noqa: S101 (``check_needs``)
        if isinstance(public, PublicGenerator):
            public = public.to(classifier.device)
        return method.remove(classifier, public, seed=seed, progress=progress), images
    assert images is not None  # noqa: S101 (``check_needs``)
    fit_part, held_out = images.split(1 - HELD_OUT, seed=seed)
    if not len(held_out):
        raise InputError(
            f"there are {len(images)} clean images, one of each class, and none is left to judge "
            "the repair; give at least two images of each class"
        )
    return method.remove(classifier, fit_part, seed=seed, progress=progress), held_out


def _look_again(
    repaired: Classifier,
    images: ImageSet,
    witnesses: Sequence[Method],
    seed: int,
    behind_purifier: bool,
) -> tuple[Finding | None, str]:
    """The scan after a repair, and what it says."""
    try:
        rescan = scan(repaired, images, seed=seed, witnesses=witnesses)
    except InputError as error:  # the repair ruined the network; the gate says so, not an error
        return None, f"The repaired model could not be scanned again: {error}."
    again = f"A new scan of the repaired model says: {rescan.verdict.value}."
    if behind_purifier and rescan.verdict is not Verdict.NOTHING_FOUND:
        again += (
            " The weights behind the purifier are unchanged, so a scan may still see the backdoor "
            "in them."
        )
    return rescan, again


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


def _repair_for(
    finding: Finding, witnesses: Sequence[Method], classes: Sequence[str]
) -> tuple[Method, str]:
    """The method that removes the most suspicious class, and why that one."""
    suspect = finding.suspects[0]
    witness = witnesses[finding.deciding[suspect]]
    found = f"The scan suspects class {classes[suspect]}; "
    if type(witness).remove is Method.remove:
        return TAC(target_class=suspect), (
            f"{found}{witness.name}, which found it, removes nothing, so TAC is tried, which "
            "undoes a change of the last layer's input towards one class."
        )
    chosen = witness
    if "target_class" in witness.__struct_fields__:
        chosen = msgspec.structs.replace(witness, target_class=suspect)
    if isinstance(witness, TAC):
        return chosen, (
            f"{found}of the methods that are there, TAC undoes a change of the last layer's input "
            "towards one class."
        )
    return chosen, f"{found}{witness.name} found it, so {witness.name} repairs it."
