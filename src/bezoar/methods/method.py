"""What a method is: a configuration that inspects a classifier, repairs it, or both."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol, Self, TypeGuard

import msgspec
from torch import Tensor

from bezoar.classifier import Classifier
from bezoar.errors import InputError
from bezoar.generators.public_generator import PublicGenerator
from bezoar.images import ImageSet
from bezoar.methods.neural_cleanse_triggers import Triggers
from bezoar.methods.recovered import Recovered
from bezoar.registry import Registry
from bezoar.training import Progress, no_progress
from bezoar.wording import PATCH, SHIFT, Words

Needs = Literal["labelled images", "unlabelled images", "public images", "nothing"]

HELD_OUT = 0.2  # share of the clean images that shows whether what was recovered works


@dataclass(frozen=True)
class Evidence:
    """What a method saw, one number for each class; the verdict judges it.

    Attributes:
        method: the method's name.
        statistic: what ``values`` are, in words.
        values: one number for each class; unusually small means suspicious; infinite takes no part.
        scores: studentised deviation from the other classes; negative is small.
        p_values: probability under the null, corrected for having picked the smallest class.
        null: the null in words.
        carried: for each class, the share of held-out images of *other* classes that the recovered
            perturbation carries into it; None where the method recovers none.
        perturbations: the recovered perturbation of each class, or None.
        recovered: what puts the recovered trigger of a class on images, or None where the method
            looks elsewhere than at pixels.
        record: everything else, JSON-able.
        words: how it is told; None takes the words for what was recovered.
        limit: where the method has a null of its own: the value of a class that has a p-value.
        outliers: where the logarithms of ``values`` were compared with each other: how
            (``statistics``).
    """

    method: str
    statistic: str
    values: tuple[float, ...]
    scores: tuple[float, ...]
    p_values: tuple[float, ...]
    null: str
    carried: tuple[float, ...] | None = None
    perturbations: Tensor | None = None
    recovered: Recovered | None = None
    record: dict[str, Any] = field(default_factory=dict)
    words: Words | None = None
    limit: Callable[[float], float] | None = None
    outliers: Literal["grubbs", "mad"] | None = None

    @property
    def told(self) -> Words:
        """Its own words, or those for what was recovered."""
        if self.words is not None:
            return self.words
        found = self.recovered
        if isinstance(found, Triggers) and len(found.classes) == len(self.values):
            return PATCH  # a trigger for every class is there to be compared
        return Words() if self.perturbations is None else SHIFT

    def carried_into(self, k: int) -> float | None:
        """The share for class ``k``; None where nothing was recovered for that class."""
        missing = self.recovered is not None and k not in self.recovered.classes
        return None if self.carried is None or missing else self.carried[k]


Alternatives = Callable[[], Iterator[tuple[str, Classifier]]]
"""Yields (setting, classifier): what a sweep of a method's threshold went past, mildest first."""


@dataclass(frozen=True)
class Repair:
    """A repaired classifier and the record of how it came about.

    Attributes:
        classifier: a new one; the one that was given is as it was.
        record: what was decided and measured, JSON-able.
        evidence: what the scan before the repair saw; empty where there was none.
        synthetic: some of the images that the method made up, or found, to work on, with the
            original's answers, or the classes they were made for, as labels; None where it made
            none.
        alternatives: of a method that sweeps a threshold, the repairs of the other thresholds, made
            one after another when asked for. The method chose by clean images; who knows the true
            trigger can tell from these what the best choice would have been (the *oracle*).
    """

    classifier: Classifier
    record: dict[str, Any]
    evidence: tuple[Evidence, ...] = ()
    synthetic: ImageSet | None = None
    alternatives: Alternatives | None = None


class Method(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The base of every method. A subclass is registered by ``@methods.register(NAME)``.

    Its fields are the hyper-parameters of its paper. It overrides ``remove``, and ``inspect`` where
    the paper finds the target class. Neither can be given a trigger, a stamped image or test data:
    there is no parameter for them. Two kinds of methods are never given an image of the task,
    whatever the user has: one that needs nothing declares ``remove`` with ``clean: ImageSet | None
    = None`` and gets None; one that needs public images, of anything else than the task, declares
    ``public: ImageSet | PublicGenerator`` in the place of ``clean`` and gets these images without
    labels, or a generator that was trained on such.
    """

    name: ClassVar[str] = ""
    title: ClassVar[str] = ""
    paper: ClassVar[str] = ""
    needs: ClassVar[Needs] = "labelled images"
    layers: ClassVar[str] = ""
    cost: ClassVar[str] = ""
    inspects: ClassVar[bool] = False
    purifies: ClassVar[bool] = False  # the repair is a purifier in front of untouched weights
    sweeps: ClassVar[bool] = False  # a threshold, and its repairs have ``alternatives``

    @classmethod
    def published(cls) -> Self:
        """The paper's settings to the letter."""
        raise InputError(f"{cls.name} has no published preset")

    def remove(
        self,
        classifier: Classifier,
        clean: ImageSet,
        *,
        seed: int = 0,
        progress: Progress = no_progress,
    ) -> Repair:
        """Returns a repaired copy of ``classifier``."""
        raise InputError(f"{self.name} looks for the target class and removes nothing")

    def inspect(
        self,
        classifier: Classifier,
        clean: ImageSet,
        *,
        seed: int = 0,
        progress: Progress = no_progress,
    ) -> Evidence:
        """Returns a suspicion for each class."""
        raise InputError(f"{self.name} removes backdoors and does not look for the target class")

    def configuration(self) -> dict[str, Any]:
        """The hyper-parameters as a plain record."""
        return msgspec.to_builtins(self)  # type: ignore[no-any-return]  # a Struct gives a dict


class DataFree(Protocol):
    """A method that repairs without an image."""

    def remove(
        self,
        classifier: Classifier,
        clean: None,
        *,
        seed: int = 0,
        progress: Progress = no_progress,
    ) -> Repair:
        """Returns a repaired copy of ``classifier``."""


def is_data_free(method: Method) -> TypeGuard[DataFree]:
    """Whether ``method`` repairs without an image, as its ``needs`` says."""
    return method.needs == "nothing"


class FromPublic(Protocol):
    """A method that repairs with images of something else than the task."""

    def remove(
        self,
        classifier: Classifier,
        public: ImageSet | PublicGenerator,
        *,
        seed: int = 0,
        progress: Progress = no_progress,
    ) -> Repair:
        """Returns a repaired copy of ``classifier``."""


def takes_public(method: Method) -> TypeGuard[FromPublic]:
    """Whether ``method`` repairs with public images, as its ``needs`` says."""
    return method.needs == "public images"


def takes_no_task_image(method: Method) -> bool:
    """Whether all images of the task are left to judge what ``method`` does."""
    return is_data_free(method) or takes_public(method)


def check_target_class(target: int | None, classifier: Classifier) -> None:
    """Refuses a target class that a traced classifier does not have; None is left open."""
    if target is not None and not 0 <= target < classifier.num_classes:
        raise InputError(
            f"target_class is {target} and the network has {classifier.num_classes} classes"
        )


methods: Registry[type[Method]] = Registry("method")
