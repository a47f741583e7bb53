"""Plant and find: would this scan have seen a backdoor in *this* model, and cleaning removed it?

A measured power comes from other networks. Here a known patch is planted in a copy of the user's
own model, by a short fine-tuning on a part of the clean images. The copy goes through ``clean``,
which scans it first, with the settings of the model's own scan and the same part of the images.
The rest trains nothing and is kept from scan and cleaning: it says when the patch is planted, and
measures with the patch what is left of it. This is the one place where a trigger and a scan meet;
the scan is given no trigger (ours).

What it shows is power against a small patch of this kind, planted by a short fine-tuning. A real
attacker trains from the start and may have chosen another trigger; those are often harder to see.
The images that the copy was planted with are those of its scan, so that the scan has as many as
possible, which may help it a little.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Collection, Sequence
from typing import Any

from bezoar.classifier import Classifier
from bezoar.errors import InputError
from bezoar.evaluation import Scores, evaluate
from bezoar.images import ImageSet
from bezoar.pipeline import clean as clean_model
from bezoar.planting import RECIPE, plant, trigger, works
from bezoar.scanning import Witnesses
from bezoar.training import Progress, Recipe, no_progress
from bezoar.wording import p_in_words

LEAST = 3  # images of a class: one measures, and ``clean`` divides the other two once more
PLANTING = 0.7  # share of the images that plant, scan and clean; the others measure
ALL_SUSPECTED = (
    "The self-test planted nothing: every class of this model is suspected, and none is left to "
    "plant a patch for. So it says nothing about the scan."
)


def self_test(
    classifier: Classifier,
    images: ImageSet,
    *,
    seed: int = 0,
    witnesses: Witnesses | None = None,
    avoid: Collection[int] = (),
    recipe: Recipe = RECIPE,
    progress: Progress = no_progress,
) -> dict[str, Any]:
    """Plants a patch in a copy, scans and cleans the copy, and measures with the patch.

    Args:
        classifier: the user's model; it stays as it is.
        images: labelled clean images, the same as for the scan.
        seed: of the class, the planting and everything after it.
        witnesses: who looks, as in the scan.
        avoid: classes that are not planted, such as those that the model's own scan suspects.
        recipe: of the first attempt to plant.
        progress: called with what is done and its share.

    Returns:
        The record: ``planted``, ``found``, the figures and a ``sentence``.

    Raises:
        InputError: no labels, or too few images (see ``parts``).
    """
    started = time.perf_counter()
    classifier.trace(images.shape)
    known, measuring = parts(images, seed=seed)
    record: dict[str, Any] = {"planted_on": len(known), "measured_on": len(measuring)}
    if not set(range(classifier.num_classes)) - set(avoid):
        record |= {"planted": False, "sentence": ALL_SUSPECTED}
        return record | {"seconds": {"total": time.perf_counter() - started}}
    attack = trigger(classifier, images, seed=seed, avoid=avoid)
    was = evaluate(classifier, measuring, attack)
    planted, before, how = plant(classifier, known, measuring, attack, was, recipe, seed, progress)
    planting_seconds = time.perf_counter() - started
    record |= {
        "trigger": {"name": attack.name, "size": attack.size, "position": attack.position},
        "target": attack.target,
        "planting": how,
        "model": was.as_record(),
        "copy": before.as_record(),
        "planted": works(was, before),
    }
    patch = f"a {attack.size}x{attack.size} patch for class {classifier.classes[attack.target]}"
    shared = [classifier.classes[k] for k in avoid]
    if record["planted"]:
        repair = clean_model(planted, known, seed=seed, witnesses=witnesses, progress=progress)
        kept = repair.classifier if repair.record["accepted"] else planted
        after = evaluate(kept, measuring, attack)
        record |= _seen(repair.record, attack.target) | {"cleaned": after.as_record()}
        record["sentence"] = _sentence(patch, record, before, after, shared)
    else:
        record["sentence"] = (
            f"The self-test could not plant {patch} in a copy of this model: its success rate is "
            f"{_percent(before.asr)}, accuracy went from {_percent(was.acc)} to "
            f"{_percent(before.acc)}. So it says nothing about the scan."
        )
    seconds = {"planting": planting_seconds, "total": time.perf_counter() - started}
    return record | {"seconds": seconds}


def parts(images: ImageSet, *, seed: int) -> tuple[ImageSet, ImageSet]:
    """The images that plant, scan and clean, and those that measure.

    Raises:
        InputError: no labels, or a class of fewer images than ``LEAST``.
    """
    counts = Counter(images.require_labels("the self-test").tolist())
    fewest = min(counts.values(), default=0)
    if fewest < LEAST:
        raise InputError(
            f"there are {len(images)} clean images, {fewest} of one class, and the self-test needs "
            "some to plant and to clean with and others to measure; give at least three images of "
            "each class"
        )
    return images.split(PLANTING, seed=seed)


def _seen(record: dict[str, Any], target: int) -> dict[str, Any]:
    """What the scan and the cleaning of the copy say, of the planted class."""
    scan, which = record["scan"], record.get("kept")
    return {
        "verdict": scan["verdict"],
        "rank": scan["ranking"].index(target) + 1,
        "p": scan["p_values"][target],
        "found": target in scan["suspects"],
        "recovered": [proof for proof in scan["proofs"] if proof["class"] == target],
        "untouched": record["untouched"],
        "accepted": record["accepted"],
        "steps": record["trials"][which]["steps"] if which is not None else [],
    }


def _sentence(
    patch: str, record: dict[str, Any], before: Scores, after: Scores, shared: Sequence[str]
) -> str:
    shown = p_in_words(record["p"])
    told = (
        f"On a copy of this model with {patch}, planted by us, this scan said: "
        f"{record['verdict']}; that class came {_place(record['rank'])} ({shown}) and was "
        f"{'' if record['found'] else 'not '}flagged. "
    )
    if shared:
        told += (
            "The copy also has what makes the model itself suspected "
            f"(class{'es' if len(shared) > 1 else ''} {', '.join(shared)}). "
        )
    if record["recovered"]:
        best = max(record["recovered"], key=lambda proof: proof["carried"])
        told += (
            f"What {best['method']} recovered for it carries {_percent(best['carried'])} of "
            "the images that it was tried on. "
        )
    if record["untouched"]:
        return f"{told}So cleaning left the copy as it was: the scan would have missed this patch."
    success = f"from {_percent(before.asr)} to {_percent(after.asr)}"
    accuracy = f"accuracy from {_percent(before.acc)} to {_percent(after.acc)}"
    refused = "" if record["accepted"] else " (the repair was not accepted)"
    return f"{told}Cleaning took the attack success rate {success}, {accuracy}{refused}."


def _place(rank: int) -> str:
    return "first" if rank == 1 else f"as number {rank}"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"
