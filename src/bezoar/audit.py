"""Re-exposure: does a model that claims to be cleaned still carry its backdoor, only hidden?

Some repairs cover a backdoor up and leave its way through the network. Unlearning the clean images
uncovers it, since clean images do not touch it (RNP's first step; Li et al. 2023, arXiv 2305.14876;
as an audit it is ours). So the model is scanned as it is, it is unlearned on both halves of the
images, and a trigger is inverted on the half-unlearned model.

What the verdict counts is the class that draws the unlearned images, against the measured null of
networks without a backdoor. The trigger is shown and decides nothing: half-unlearned networks are
easy to fool, and a trigger inverted on one may fail on the model as it is although the backdoor
works there, too. So the audit does not tell a hidden backdoor from one that was never removed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bezoar.classifier import Classifier
from bezoar.images import ImageSet
from bezoar.methods import RNP, Evidence
from bezoar.methods.rnp_exposure import why_silent
from bezoar.scanning import Finding, Witnesses, scan
from bezoar.training import Progress, no_progress
from bezoar.verdict import Levels

EXPOSED = "re-exposed"
SILENT = "could not tell"


def audit(
    classifier: Classifier,
    clean: ImageSet,
    *,
    seed: int = 0,
    witnesses: Witnesses | None = None,
    levels: Levels | None = None,
    progress: Progress = no_progress,
) -> Finding:
    """Scans a model that claims to be cleaned, with re-exposure as one more witness.

    Args:
        classifier: the model.
        clean: labelled clean images.
        seed: of everything drawn at random.
        witnesses: the methods that look at the model as it is.
        levels: the limits of the verdicts.
        progress: called with what is done and its share.

    Returns:
        The finding of all witnesses; ``record["audit"]`` holds what unlearning brought up.

    Raises:
        InputError: as ``scan``; the images have no labels.
    """
    clean.require_labels("an audit")
    exposing = RNP(inverted_network="unlearned")
    finding = scan(
        classifier,
        clean,
        seed=seed,
        witnesses=witnesses,
        in_place=exposing,
        levels=levels,
        progress=progress,
    )
    # The verdict shares the rate among the witnesses; what is said here is about one of them.
    level = (levels or Levels()).suspicious
    exposed = next(e for e in finding.evidence if e.method == exposing.name)
    silent = why_silent(classifier.network, classifier.num_classes, level)
    found = _audited(exposed, classifier.classes, level, silent)
    if found["outcome"] == EXPOSED and found["class"] not in finding.suspects:
        found["sentence"] += " Together with what the other methods see, that may be chance."
    finding.record["audit"] = found
    finding.record["reasons"].append(found["sentence"])
    return finding


def _audited(
    evidence: Evidence, classes: Sequence[str], level: float, silent: str
) -> dict[str, Any]:
    """What the exposure showed of the class that the unlearned model falls back to.

    ``silent`` says why no share could be unusual; empty where one could.
    """
    trigger = evidence.record["trigger"]
    suspect = trigger["class"]
    name, p = classes[suspect], evidence.p_values[suspect]
    unusual = p <= level
    as_it_is, exposed = trigger["carried"], trigger["carried_unlearned"]
    share = 1 - evidence.values[suspect]
    falls = f"Class {name} draws {100 * share:.0f} % of the images that the model unlearns"
    if silent:
        outcome = SILENT
        sentence = f"{falls}, which tells nothing: {silent}."
    elif not unusual:
        outcome = "nothing re-exposed"
        sentence = f"{falls}, as in networks without a backdoor (p = {p:.2g})."
    else:
        outcome = EXPOSED
        sentence = (
            f"{falls}, as at most about {100 * p:.0f} in 100 networks without a backdoor do. A "
            f"trigger inverted on the half-unlearned model carries {100 * exposed:.0f} % of "
            f"held-out images there and {100 * as_it_is:.0f} % on the model as it is."
        )
    return {
        "class": suspect,
        "share": share,
        "p": p,
        "carried": as_it_is,
        "carried_unlearned": exposed,
        "outcome": outcome,
        "sentence": sentence,
    }
