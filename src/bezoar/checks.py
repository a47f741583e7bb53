"""Whether images and a network belong together: found out before any expensive work."""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import sha256

import torch
from torch import Tensor

from bezoar.class_order import find_order
from bezoar.classifier import Classifier
from bezoar.errors import InputError
from bezoar.generators.public_generator import PublicGenerator
from bezoar.images import ImageSet
from bezoar.metrics import Rate, accuracy
from bezoar.network_tensors import saved_tensors

NOISE = 4  # images of noise that show whether a network answers anything at all
WEAK = 0.5  # an accuracy below which they may not
EXPLAINED = 0.7  # another order of the classes is right at least so often,
BETTER = 0.2  # and so much more often than the given one


def check_input(classifier: Classifier, clean: ImageSet) -> list[str]:
    """Refuses images that cannot serve as clean images of the classifier's task.

    Returns:
        Sentences that the user should read although the work can go on.

    Raises:
        InputError: no image, fewer images than classes, a class without an image, a label the
            network has no logit for, an image whose logits are not finite, labels in another order
            than the classes, or an accuracy at the level of chance.
    """
    check_runs(classifier, clean)
    count = classifier.num_classes
    if len(clean) < count:
        raise InputError(
            f"there are {len(clean)} clean images and {count} classes; give at least one image of "
            "each class, or none at all: what needs no image looks then"
        )
    notices = list(getattr(clean, "notices", ()))
    if clean.labels is None:
        notices.append("The images have no labels; the classes they show were not checked.")
        return notices + _told_of_constant(_finite_logits(classifier, clean))
    highest = int(clean.labels.max())
    if highest >= count:
        raise InputError(
            f"the images have {highest + 1} classes and the network has {count}; check that they "
            "belong together"
        )
    per_class = clean.class_counts(count)
    missing = torch.nonzero(per_class == 0).flatten().tolist()
    if missing:
        shown = ", ".join(classifier.classes[k] for k in missing[:5])
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        raise InputError(
            f"no clean image shows class {shown}{more}; give at least one image of each of the "
            f"{count} classes (folders count in the order of their names, unless the model names "
            "its classes)"
        )
    logits = _finite_logits(classifier, clean)
    answers = logits.argmax(1).cpu()
    found = accuracy(answers, clean.require_labels("the check").cpu())
    if found.value < WEAK:
        _check_order(answers, clean, found, count)
    if found.low <= 1 / count:
        raise InputError(
            f"the network answers {100 * found.value:.1f} % of {len(clean)} clean images with "
            "their label, no better than chance; check the order of the classes, the mean and std, "
            "and that the images belong to this model"
        )
    if found.value < WEAK:
        notices.append(
            f"The network answers only {100 * found.value:.1f} % of {len(clean)} clean images with "
            "their label; check the order of the classes, and the mean and std."
        )
    return notices + _told_of_constant(logits)


def told_of_constant(classifier: Classifier) -> list[str]:
    """A sentence on a traced network that gives different noise the same logits; else none."""
    generator = torch.Generator().manual_seed(0)
    size = (NOISE, *classifier.input_shape)
    noise = torch.randint(256, size, dtype=torch.uint8, generator=generator)
    return _told_of_constant(classifier.logits(ImageSet(noise)))


def _told_of_constant(logits: Tensor) -> list[str]:
    if len(logits) == 1 or not bool((logits == logits[0]).all()):
        return []
    return [
        "The network gives different inputs the very same logits, so nothing can be told of it; "
        "check that the right weights were read."
    ]


def _finite_logits(classifier: Classifier, clean: ImageSet) -> Tensor:
    """Logits (n, classes) of all images: one that has none would lead every witness astray."""
    logits = classifier.logits(clean)
    bad = torch.nonzero(~torch.isfinite(logits).all(1)).flatten().tolist()
    if bad:
        shown = ", ".join(clean.names[i] if clean.names else f"number {i}" for i in bad[:5])
        shown += f" and {len(bad) - 5} more" if len(bad) > 5 else ""
        order = "" if clean.names else ", counted from 0"
        raise InputError(
            f"the network's logits are not finite numbers on {len(bad)} of {len(clean)} clean "
            f"images ({shown}{order}); leave these out"
        )
    return logits


def _check_order(answers: Tensor, clean: ImageSet, found: Rate, classes: int) -> None:
    """Refuses labels that explain the answers once the classes are put in another order."""
    labels = clean.require_labels("the check").cpu()
    if len(clean) == int(clean.class_counts(classes).count_nonzero()):
        return  # one image of each label finds an order, and none is left to confirm it
    order = find_order(answers, labels, classes)
    if order.example is None or order.right < max(EXPLAINED, order.as_given + BETTER):
        return
    label, answer = order.example
    raise InputError(
        f"the network answers {100 * found.value:.1f} % of {found.count} clean images with their "
        f"label, and {100 * order.right:.1f} % once the classes are put in another order (images "
        f"with label {label} are answered with class {answer}, counted from 0); give the classes "
        "the order of the network's logits (--classes for folders), or the images other labels"
    )


def check_runs(classifier: Classifier, images: ImageSet | None) -> None:
    """Refuses a network that cannot run on ``images``, or at all where there are none.

    Raises:
        InputError: no image in the set, weights that are not finite, images that the network
            cannot take, or, without images, a network whose input is not known.
    """
    if images is not None and not len(images):
        raise InputError("there are no clean images; give at least one of each class")
    check_finite_network(classifier)
    classifier.trace(input_of(classifier, images))


def check_public(
    public: ImageSet | PublicGenerator, classifier: Classifier, images: ImageSet | None
) -> None:
    """Refuses public images, or a generator, with which ``classifier`` cannot be repaired.

    Args:
        public: images of something else than the task, or a generator that was trained on such.
        classifier: the suspect.
        images: those of the task, which are to judge the repair; None where there are none.

    Raises:
        InputError: it is neither, there is no image, the shape is not the network's, or one of
            ``images`` is among them.
    """
    shape = input_of(classifier, images)
    if not isinstance(public, ImageSet | PublicGenerator):
        raise InputError(
            f"public is a {type(public).__name__}; expected an ImageSet or a PublicGenerator"
        )
    if isinstance(public, PublicGenerator) and public.images is not None:
        check_public(public.images, classifier, images)
    if isinstance(public, ImageSet) and not len(public):
        raise InputError("there are no public images; give some, of whatever they show")
    if public.shape != shape:
        what = "public images are" if isinstance(public, ImageSet) else "generator makes images of"
        given, expected = ("x".join(map(str, sizes)) for sizes in (public.shape, shape))
        raise InputError(
            f"the {what} {given} and the network takes {expected} (channels x height x width); "
            "read or train them at that size (--public-resize crop, --size)"
        )
    if isinstance(public, ImageSet) and images is not None:
        judging = set(_digests(images))
        both = sum(digest in judging for digest in _digests(public))
        if both:
            raise InputError(
                f"{both} of the {len(public)} public images are also among the images that are to "
                "judge the repair, which would be judged by what it was made with; take them out "
                "of one of the two"
            )


def _digests(images: ImageSet) -> Iterator[bytes]:
    """A hash of the pixels of each image."""
    for image in images.images:
        yield sha256(image.cpu().contiguous().numpy().data).digest()


def check_finite_network(classifier: Classifier) -> None:
    """Refuses a network with values that are not finite numbers."""
    for name, tensor in saved_tensors(classifier.network).items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise InputError(
                f"the network's tensor {name!r} holds values that are not finite numbers; the file "
                "is damaged or its training diverged"
            )


def input_of(classifier: Classifier, images: ImageSet | None) -> tuple[int, int, int]:
    """Channels, height and width: those of ``images``, else what is known of the network.

    Raises:
        InputError: there are no images, and nothing is known or the network cannot take what is.
    """
    return classifier.input_shape if images is None else images.shape
