"""What ``clean`` is given, and whether the method can do with it."""

from __future__ import annotations

from dataclasses import dataclass

from bezoar.checks import check_public
from bezoar.classifier import Classifier
from bezoar.errors import InputError
from bezoar.generators.public_generator import PublicGenerator
from bezoar.images import ImageSet
from bezoar.methods import (
    Method,
    Needs,
    is_data_free,
    methods,
    takes_no_task_image,
    takes_public,
)
from bezoar.scanning import Witnesses, find_witnesses
from bezoar.training import Progress

HELD_OUT = 0.2  # share of the clean images that judge a repair and take no part in it


@dataclass(frozen=True, eq=False, kw_only=True)
class Given:
    """A model, the images that there are, and how to go about it.

    Attributes:
        classifier: the suspect; it stays as it is.
        images: of its task; None where there are none.
        public: images of something else, or a generator that was trained on such.
        witnesses: the methods that look; None leaves the choice to the scan.
        seed: of everything drawn at random.
        progress: called with what is done and its share.
    """

    classifier: Classifier
    images: ImageSet | None
    public: ImageSet | PublicGenerator | None
    witnesses: Witnesses | None
    seed: int
    progress: Progress

    def check(self, method: Method | None) -> None:
        """Refuses what cannot be used before any work.

        Args:
            method: the one that was asked for; None leaves the choice to ``clean``.

        Raises:
            InputError: a witness, the images or the public ones cannot be used, the method cannot
                with them, or no image would be left to judge a repair.
        """
        blind = method is None and self.images is None
        check_needs(method, has_images=self.images is not None, has_public=self.public is not None)
        find_witnesses(self.witnesses, has_images=not blind)
        if self.images is not None and (method is None or not takes_no_task_image(method)):
            if method is not None:
                self.images.require_labels("cleaning")
            _check_judges(self.images, self.seed)
        if self.public is not None:
            check_public(self.public, self.classifier, self.images)


def _check_judges(images: ImageSet, seed: int) -> None:
    """Refuses images of which none is left to judge a repair."""
    if len(images) and not images.division(1 - HELD_OUT, seed=seed)[1]:
        raise InputError(
            f"there are {len(images)} clean images, at most one of each class, and none is left "
            "to judge the repair; give at least two images of each class"
        )


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
