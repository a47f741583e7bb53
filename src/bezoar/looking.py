"""The scans before and after a repair, and why there may be none."""

from __future__ import annotations

from bezoar.checks import check_runs
from bezoar.classifier import Classifier
from bezoar.errors import InputError
from bezoar.given import Given
from bezoar.methods import Method
from bezoar.scanning import WITHOUT_IMAGES, Finding, scan
from bezoar.statistics import FEWEST_CLASSES
from bezoar.verdict import Verdict

UNSEEN = (
    "The model was not scanned: without clean images of the task only the weights could be looked "
    "at, and with a method named nothing depends on that."
)
TOO_FEW = "The model was not scanned: the weights can single out no class of so few."


def look_before(given: Given, method: Method | None) -> tuple[Finding | None, list[str]]:
    """The scan before a repair by ``method``, or None and why there is none.

    Raises:
        InputError: the network, or what the choice of a method depends on, cannot be used.
    """
    check_runs(given.classifier, given.images)
    if given.images is None:
        return _look_without_images(given, method)
    try:
        return _scan(given), []
    except InputError as error:
        if given.images.labels is not None or method is None:
            raise
        return None, [f"The model was not scanned: {error}."]


def _look_without_images(given: Given, method: Method | None) -> tuple[Finding | None, list[str]]:
    """The weights alone are scanned where the choice of a method depends on them."""
    if method is not None:
        return None, [UNSEEN]
    if given.public is not None and given.classifier.num_classes < FEWEST_CLASSES:
        return None, [TOO_FEW]  # public images allow a repair that needs no suspect
    return _scan(given), []


def _scan(given: Given) -> Finding:
    return scan(
        given.classifier,
        given.images,
        seed=given.seed,
        witnesses=given.witnesses,
        progress=given.progress,
    )


def look_again(
    given: Given, repaired: Classifier, *, behind_purifier: bool
) -> tuple[Finding | None, str]:
    """The scan of a repaired model, or None, and what it says.

    Args:
        given: with images of the task.
        repaired: the repaired copy.
        behind_purifier: whether the repair is a purifier in front of unchanged weights.
    """
    try:
        rescan = scan(
            repaired,
            given.images,
            seed=given.seed,
            witnesses=given.witnesses,
            without=WITHOUT_IMAGES,
        )
    except InputError as error:  # the repair ruined the network; the gate says so, not an error
        return None, f"The repaired model could not be scanned again: {error}."
    again = f"A new scan of the repaired model says: {rescan.verdict.value}."
    if behind_purifier and rescan.verdict is not Verdict.NOTHING_FOUND:
        again += (
            " The weights behind the purifier are unchanged, so a scan may still see the backdoor "
            "in them."
        )
    return rescan, again
