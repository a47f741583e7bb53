"""Which images of a heap carry the trigger? Those whose answer survives the unlearning.

    s(x) = log p(c(x) | x; theta_hat) - log(1 - p(c(x) | x; theta_hat)),  c(x) = argmax f(x; theta)

theta_hat is the network after RNP's first step: it has unlearned clean images and still obeys the
trigger. So an image with a trigger keeps its answer c(x) and a clean one loses it. RNP (Li et al.
2023, arXiv 2305.14876) claims that use, but the detector it is combined with could not be reached;
the idea that network and unlearned network *agree* on stamped images is that of BaDExpert (Xie et
al., ICLR 2024, arXiv 2308.12439), which unlearns with false labels.

Ours: the log-odds instead of p (p is rounded to 1 for many images, and their mean over networks is
ruled by the least sure one), the end of the unlearning only (on digits, earlier states and means
over them separated less), and the null. The clean images are dealt into four parts, each is
unlearned in a network of its own, and each clean image is scored by the three networks that did
*not* unlearn it; a suspect is compared with the images of each part by the same three networks. The
counts are pooled into one p-value, see ``conformal``.

Assumes that the suspects, but for the trigger, are images of the same kind as the clean ones, with
about the same share of each class. Known failures: clean images of the class that the unlearned
network falls back to (often the target class) keep their answer as well, and a heap with more of
them raises an alarm of its own; a trigger whose way through the network breaks first is not seen.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import msgspec
import torch
from torch import Tensor

from bezoar.checks import check_input
from bezoar.classifier import Classifier
from bezoar.conformal import PARTS, as_high, deal, excess_p_value, rank_at
from bezoar.errors import InputError
from bezoar.images import ImageSet
from bezoar.methods.rnp_unlearning import Unlearned, Unlearning, unlearn
from bezoar.scanning import describe
from bezoar.training import Progress, no_progress
from bezoar.wording import p_in_words

EXCESS = 0.01  # at this p-value more images are flagged than clean ones give
_CHUNK = 4096

LIMITS = (
    "A flagged image is a suspicion, not a finding: clean images of the class that an unlearned "
    "network falls back to keep their answer, too. The shares hold for images of the same kind as "
    "the clean ones, with about as many of each class."
)


@dataclass(frozen=True, eq=False)
class Sifting:
    """Which of the suspects behave as if they carried a trigger.

    Attributes:
        scores: (n,), the mean log-odds of the model's answer under the unlearned networks; above 0
            they would still give it. Higher is more suspicious.
        p_values: (n,), the share of clean images that score as high, in (0, 1].
        flagged: indices of the suspects at or below the level, most suspicious first.
        answers: (n,), the class that the model answers each suspect with.
        flagged_classes: (classes,), how many of the flagged are answered with each class.
        excess_p: how often as many of so many clean images would be flagged; small means that
            there are more than clean images give.
        record: all of it but the single scores as plain JSON-able data.
    """

    scores: Tensor
    p_values: Tensor
    flagged: tuple[int, ...]
    answers: Tensor
    flagged_classes: tuple[int, ...]
    excess_p: float
    record: dict[str, Any]


def sift(
    classifier: Classifier,
    suspects: ImageSet,
    clean: ImageSet,
    *,
    seed: int = 0,
    level: float = 0.05,
    unlearning: Unlearning | None = None,
    progress: Progress = no_progress,
) -> Sifting:
    """Looks for images that carry a trigger among ``suspects``.

    Args:
        classifier: the network that the trigger would be for; it stays as it is.
        suspects: any images of its task; labels are not used.
        clean: labelled clean images, at least 1 / level of them.
        seed: of everything drawn at random.
        level: the share of clean images that may be flagged, in (0, 1).
        unlearning: how the clean images are unlearned.
        progress: called with what is done and its share.

    Raises:
        InputError: the images, the network or the level cannot be used (see the message).
    """
    started = time.perf_counter()
    labels = clean.require_labels("sifting").cpu()
    notices = check_input(classifier, clean) + _check(classifier, suspects, clean, level)
    parts = deal(labels, seed)
    answers, clean_answers = (classifier.logits(s).argmax(1).cpu() for s in (suspects, clean))
    scores, clean_scores, networks = [], [], []
    for k, part in enumerate(parts, 1):
        run = unlearn(
            classifier,
            clean.subset(part),
            unlearning or Unlearning(),
            seed=seed,
            progress=progress,
            what=f"unlearning part {k} of {PARTS} of the clean images",
        )
        scores.append(log_odds(run.classifier, suspects, answers))
        clean_scores.append(log_odds(run.classifier, clean, clean_answers))
        networks.append(_network_record(run))
    reached = as_high(torch.stack(scores), torch.stack(clean_scores), parts)
    rank = rank_at(level, len(clean))
    mean = torch.stack(scores).mean(0)
    p_values = (1 + reached).double() / (1 + len(clean))
    found = torch.nonzero(1 + reached <= rank).flatten().tolist()
    flagged = tuple(sorted(found, key=lambda i: (int(reached[i]), -float(mean[i]), i)))
    per_class = torch.bincount(answers[list(flagged)], minlength=classifier.num_classes).tolist()
    excess = excess_p_value(len(flagged), len(suspects), rank, len(clean))
    expected = rank / (1 + len(clean)) * len(suspects)
    unfinished = sum(not network["reached"] for network in networks)
    if unfinished:
        notices.append(
            f"{unfinished} of {PARTS} networks did not unlearn their clean images to the end; the "
            "scores separate less."
        )
    record = describe(classifier, clean, seed) | {
        "kind": "sift",
        "sentence": _sentence(flagged, len(suspects), expected, excess, per_class, classifier),
        "suspects": {"count": len(suspects), "sha256": suspects.sha256()},
        "level": level,
        "expected_false_flags": expected,
        "excess_p": excess,
        "more_than_clean": excess <= EXCESS,
        "flagged": [_row(i, suspects, answers, mean, p_values) for i in flagged],
        "flagged_classes": per_class,
        "unlearning": msgspec.to_builtins(unlearning or Unlearning()),
        "networks": networks,
        "limits": LIMITS,
        "notices": notices,
        "seconds": {"total": time.perf_counter() - started},
    }
    return Sifting(mean, p_values, flagged, answers, tuple(per_class), excess, record)


def log_odds(classifier: Classifier, images: ImageSet, answers: Tensor) -> Tensor:
    """How firmly ``classifier`` gives each image (n,) its class in ``answers``: log p / (1 - p).

    Raises:
        InputError: a logit is not finite.
    """
    logits = classifier.logits(images).cpu().double()
    if not bool(torch.isfinite(logits).all()):
        raise InputError(
            "an unlearned network has logits that are not finite; unlearn with a smaller rate"
        )
    own = answers[:, None]
    others = logits.scatter(1, own, -torch.inf).logsumexp(1)
    return logits.gather(1, own)[:, 0] - others


def _check(classifier: Classifier, suspects: ImageSet, clean: ImageSet, level: float) -> list[str]:
    """Refuses what cannot be sifted; sentences that the user should read."""
    if not len(suspects):
        raise InputError("there are no images to sift; give at least one")
    if suspects.shape != clean.shape:
        ours, theirs = ("x".join(map(str, images.shape)) for images in (suspects, clean))
        raise InputError(
            f"the images to sift are {ours} (channels x height x width) and the clean ones "
            f"{theirs}; give both in one size"
        )
    if not 0 < level < 1:
        raise InputError(f"level is {level:g}; expected a share between 0 and 1")
    if rank_at(level, len(clean)) < 1 or len(clean) < 2 * PARTS:
        wanted = max(math.ceil(1 / level) - 1, 2 * PARTS)
        raise InputError(
            f"there are {len(clean)} clean images, too few to flag at level {level:g}; give at "
            f"least {wanted}, or a higher level"
        )
    notices = [f"Images to sift: {notice}" for notice in suspects.notices]
    few = int((clean.class_counts(classifier.num_classes) < PARTS).sum())
    if few:
        notices.append(
            f"{few} of {classifier.num_classes} classes have fewer than {PARTS} clean images, so "
            "not every network can unlearn them, and their images score too high."
        )
    known = set(_digests(clean))
    shared = sum(digest in known for digest in _digests(suspects))
    if shared:
        notices.append(
            f"{shared} of the images to sift are among the clean images, too; what was unlearned "
            "is hardly ever flagged."
        )
    return notices


def _digests(images: ImageSet) -> Iterator[bytes]:
    for start in range(0, len(images), _CHUNK):
        for image in images.images[start : start + _CHUNK].cpu().numpy():
            yield hashlib.sha256(image.tobytes()).digest()


def _network_record(run: Unlearned) -> dict[str, Any]:
    return {
        "reached": run.reached,
        "first_accuracy": run.first_accuracy,
        "stop": run.stop,
        "steps": run.steps,
        "accuracy": run.accuracy,
        "fallback": run.fallback,
        "fallback_share": float(run.answers.max()),
    }


def _row(
    index: int, suspects: ImageSet, answers: Tensor, scores: Tensor, p_values: Tensor
) -> dict[str, Any]:
    return {
        "index": index,
        "name": suspects.names[index] if suspects.names else None,
        "answer": int(answers[index]),
        "score": float(scores[index]),
        "p": float(p_values[index]),
    }


def _sentence(
    flagged: tuple[int, ...],
    count: int,
    expected: float,
    excess: float,
    per_class: list[int],
    classifier: Classifier,
) -> str:
    size = p_in_words(excess)
    told = (
        f"{len(flagged)} of {count} images are flagged, and about {expected:.1f} of so many clean "
    )
    if excess > EXCESS:
        return f"{told}images would be: no more than clean images give ({size})."
    most = max(range(len(per_class)), key=lambda k: per_class[k])
    return (
        f"{told}images would be: more than clean images give ({size}). {per_class[most]} of them "
        f"are answered with class {classifier.classes[most]}."
    )
