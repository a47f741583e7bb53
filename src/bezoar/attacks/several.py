"""Several triggers at once, each with its own target (or mode): an attack made of attacks.

    several:triggers=bad-nets:target=1+blend:target=2:ratio=0.3

The poison rate is divided evenly, and every training image carries at most one trigger. Several
backdoors in one network are a common test of defenses that look for one target class (Gu et al.
2017 train several; N-to-N of Xue et al. 2020, IEEE TDSC); the even division is ours.

Known weak points: triggers that resemble each other (a noise and another noise) need more poison.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Self

import torch
from torch import Tensor

from bezoar.attacks.attack import Attack, Mode, Poisoned, attacks
from bezoar.attacks.spelling import SUFFIX, parse_attack
from bezoar.classifier import Classifier
from bezoar.errors import InputError
from bezoar.images import ImageSet
from bezoar.training import Progress, Recipe, fit, no_progress


@attacks.register("several")
class Several(Attack, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Poisons disjoint images with each of several attacks.

    ``target`` is not used: the targets are the parts'.

    Attributes:
        triggers: the parts, at least two, each as ``NAME:key=value``; ``:`` or ``,`` divides the
            parameters.
    """

    name: ClassVar[str] = "several"
    title: ClassVar[str] = "Several triggers with several targets"
    paper: ClassVar[str] = "Gu et al. 2017, arXiv 1708.06733"
    modes: ClassVar[tuple[Mode, ...]] = ("all-to-one",)

    triggers: tuple[str, ...]

    def __post_init__(self) -> None:
        super().__post_init__()
        parts = self._parse()
        if len(parts) < 2:
            raise InputError(
                f"several needs at least two triggers and got {len(parts)}; join them with +, as "
                "in several:triggers=bad-nets:target=1+blend:target=2"
            )
        for part in parts:
            if part.controls != "images" or isinstance(part, Several):
                raise InputError(
                    f"{part.name} cannot be a part of several: it does more than poison images"
                )
            if part.clean_label and part.needs_surrogate:
                raise InputError(
                    f"{part.name} cannot be a part of several: it makes each of its training "
                    "images with a network"
                )

    @property
    def parts(self) -> tuple[Attack, ...]:
        """The attacks, each holding its own trigger."""
        parts = self._parse()
        held: dict[str, Tensor] | None = self.__dict__.get("held")
        if held is None:
            return parts
        return tuple(
            part.holding(_without_prefix(held, index), self.__dict__["shape"])
            for index, part in enumerate(parts)
        )

    @property
    def learned(self) -> bool:
        """Whether any part is."""
        return any(part.learned for part in self.parts)

    def draw(self, shape: tuple[int, int, int]) -> dict[str, Tensor]:
        """The arrays of all parts; those of the first one begin with ``0.``."""
        return _with_prefixes([part.tensors(shape) for part in self.parts])

    def stamp(self, images: Tensor) -> Tensor:
        """Refuses: there is no single trigger.

        Raises:
            InputError: always; each of ``parts`` has a stamp.
        """
        raise InputError("several triggers have no common stamp; stamp with each of the parts")

    def apply(self, images: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
        """Refuses, as ``stamp`` does."""
        return self.stamp(images)

    def candidates(self, labels: Tensor) -> Tensor:
        """All: which images a part can take is checked with its share."""
        return torch.ones_like(labels, dtype=torch.bool)

    def check(self, images: ImageSet, rate: float, num_classes: int | None = None) -> None:
        """Checks each part with its share of the images."""
        super().check(images, rate, num_classes)
        fewest = int(torch.bincount(images.require_labels("poisoning")).min())
        if fewest < len(self.parts):
            raise InputError(
                f"a class has {fewest} training images and there are {len(self.parts)} triggers; "
                "each trigger needs one of every class"
            )
        for part, where in zip(self.parts, self._deal(images, seed=0), strict=True):
            part.check(images.subset(where), rate, num_classes)

    def poison(self, images: ImageSet, rate: float, *, seed: int) -> Poisoned:
        """Deals the images out evenly and lets each part poison its own."""
        self.check(images, rate)
        pixels, labels = images.images.clone(), images.require_labels("poisoning").clone()
        poisoned, covered = torch.zeros(2, len(labels), dtype=torch.bool, device=labels.device)
        for index, (part, where) in enumerate(
            zip(self.parts, self._deal(images, seed=seed), strict=True)
        ):
            result = part.poison(images.subset(where), rate, seed=seed + index)
            pixels[where], labels[where] = result.images.images, result.images.require_labels("")
            poisoned[where], covered[where] = result.where, result.covered
        return Poisoned(ImageSet(pixels, labels, images.classes), poisoned, covered)

    def prepare(
        self,
        images: ImageSet,
        *,
        seed: int,
        surrogate: Classifier | None = None,
        progress: Progress = no_progress,
    ) -> Self:
        """Prepares every part and holds what they learned."""
        prepared = [
            part.prepare(images, seed=seed + index, surrogate=surrogate, progress=progress)
            for index, part in enumerate(self.parts)
        ]
        return self.holding(
            _with_prefixes([part.tensors(images.shape) for part in prepared]), images.shape
        )

    def prepared(
        self,
        classifier: Classifier,
        images: ImageSet,
        rate: float,
        recipe: Recipe,
        *,
        seed: int,
        surrogate: Classifier | None,
        progress: Progress,
    ) -> Self:
        """As usual, with a surrogate where any part needs one."""
        if surrogate is None and any(part.needs_surrogate for part in self.parts):
            classifier.trace(images.shape)
            self.check(images, rate, classifier.num_classes)
            surrogate = classifier.copy()
            what = "training a surrogate"
            fit(surrogate, images, recipe, seed=seed, progress=progress, what=what)
        return super().prepared(
            classifier, images, rate, recipe, seed=seed, surrogate=surrogate, progress=progress
        )

    def _parse(self) -> tuple[Attack, ...]:
        specs: list[str] = []
        for piece in self.triggers:
            if specs and piece[:1] in "-0123456789":  # "at=3+4" was divided at its own +
                specs[-1] += "+" + piece
            else:
                specs.append(piece)
        for spec in specs:
            if spec.endswith(SUFFIX):
                raise InputError(f"a part of several is spelled out; {spec!r} is a trigger file")
        divided = (spec.partition(":") for spec in specs)
        return tuple(
            parse_attack(name + colon + rest.replace(":", ",")) for name, colon, rest in divided
        )

    def _deal(self, images: ImageSet, *, seed: int) -> list[Tensor]:
        """Indices for each part: as many, and as many of each class, give or take one."""
        labels = images.require_labels("poisoning")
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
        by_class = order[labels.cpu()[order].argsort(stable=True)].to(labels.device)
        count = len(self.parts)
        return [by_class[index::count] for index in range(count)]


def _with_prefixes(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {
        f"{index}.{name}": array
        for index, tensors in enumerate(parts)
        for name, array in tensors.items()
    }


def _without_prefix(tensors: Mapping[str, Tensor], index: int) -> dict[str, Tensor]:
    prefix = f"{index}."
    return {
        name.removeprefix(prefix): array
        for name, array in tensors.items()
        if name.startswith(prefix)
    }
