"""What an attack is: a configuration that stamps images, poisons a training set, plants a backdoor.

An attack file overrides what is its own and nothing else: ``apply`` (the trigger), ``draw`` (the
trigger's arrays, where the configuration alone decides them), ``prepare`` (arrays that are learned
before training), ``stamp_for_training`` (where training images carry something else than test
images), or ``plant`` (where the attacker controls the training or edits the weights).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, Self

import msgspec
import torch
from torch import Tensor

from bezoar.classifier import Classifier
from bezoar.errors import InputError
from bezoar.images import ImageSet
from bezoar.registry import Registry
from bezoar.training import History, Progress, Recipe, fit, no_progress

Mode = Literal["all-to-one", "all-to-all", "source-specific"]

_CHUNK = 1024


@dataclass(frozen=True)
class Poisoned:
    """A training set after poisoning.

    Attributes:
        images: all images, the stamped ones among them, with their new labels.
        where: bool, shape (n,): which ones were stamped and carry the attacker's label.
        covered: bool, shape (n,): which ones were stamped and keep their true label, so that the
            trigger alone does not give the attack away.
    """

    images: ImageSet
    where: Tensor
    covered: Tensor


@dataclass(frozen=True)
class Planted:
    """What planting a backdoor left besides the trained network.

    Attributes:
        attack: the attack, holding what it learned; this one stamps the right trigger.
        history: of the victim's training.
        poisoned: training images with the attacker's label; 0 where no training set was poisoned.
        covered: stamped training images that kept their true label.
        notes: sentences about the planting for the record.
    """

    attack: Attack
    history: History
    poisoned: int = 0
    covered: int = 0
    notes: tuple[str, ...] = ()


class Attack(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    forbid_unknown_fields=True,
    repr_omit_defaults=True,
    dict=True,
):
    """A backdoor attack.

    Attributes:
        target: index of the target class.
        mode: which stamped images get which label. ``all-to-one``: every class the target;
            ``all-to-all``: class y the class y + 1, the last one the first (Gu et al. 2017);
            ``source-specific``: only images of ``sources`` the target, and the trigger does nothing
            on the others (Tang et al. 2021, arXiv 1908.00686: covered images teach that).
        sources: the classes of ``source-specific``.
        num_classes: the number of classes, for ``all-to-all``; 0 where it is not needed.
    """

    name: ClassVar[str] = ""
    title: ClassVar[str] = ""
    paper: ClassVar[str] = ""
    controls: ClassVar[Literal["images", "training", "weights"]] = "images"
    """What the attacker has in hand: the training images, the training, or a trained network."""
    clean_label: ClassVar[bool] = False
    """Whether poisoned images keep their labels (they are images of the target class)."""
    modes: ClassVar[tuple[Mode, ...]] = ("all-to-one", "all-to-all", "source-specific")
    """The label modes that make sense for this attack."""
    needs_surrogate: ClassVar[bool] = False
    """Whether ``prepare`` needs a network trained on clean images."""

    target: int = 0
    mode: Mode = "all-to-one"
    sources: tuple[int, ...] = ()
    num_classes: int = 0

    def __post_init__(self) -> None:
        if self.target < 0:
            raise InputError(f"target is {self.target}; class indices count from 0")
        if self.mode not in self.modes:
            raise InputError(
                f"{self.name} has no mode {self.mode!r}; it can be {' or '.join(self.modes)}"
            )
        if self.mode == "all-to-all" and self.num_classes < 2:
            raise InputError(
                "mode all-to-all needs the number of classes; give num_classes, at least 2"
            )
        if (self.mode == "source-specific") != bool(self.sources):
            raise InputError(
                f"mode {self.mode!r} and sources {self.sources} do not belong together; sources "
                "are the classes of mode 'source-specific', and it needs at least one"
            )
        if self.target in self.sources or min(self.sources, default=0) < 0:
            raise InputError(f"sources {self.sources} must be classes other than {self.target}")

    @property
    def learned(self) -> bool:
        """Whether ``prepare`` or ``plant`` has to learn the trigger, or a file to bring it."""
        return False

    # -- the trigger -------------------------------------------------------------------------------

    def stamp(self, images: Tensor) -> Tensor:
        """Images (n, c, h, w) in [0, 1] with the trigger on each; the input stays as it was.

        Raises:
            InputError: the trigger does not fit these images, or has still to be learned.
        """
        tensors = self.tensors((images.shape[1], images.shape[2], images.shape[3]))
        return self.apply(
            images, {name: array.to(images.device) for name, array in tensors.items()}
        )

    def apply(self, images: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
        """The stamp itself.

        Args:
            images: shape (n, c, h, w) in [0, 1]; not to be changed.
            tensors: what ``draw`` or ``prepare`` gave, on the device of the images.

        Returns:
            New images of the same shape in [0, 1].
        """
        raise NotImplementedError

    def draw(self, shape: tuple[int, int, int]) -> dict[str, Tensor]:
        """The trigger's arrays for images of ``shape`` (c, h, w), from the configuration alone.

        Raises:
            InputError: the trigger does not fit, or has to be learned first.
        """
        if self.learned:
            raise InputError(
                f"the trigger of {self.name} has to be learned: plant it, or load its trigger file"
            )
        return {}

    def tensors(self, shape: tuple[int, int, int]) -> dict[str, Tensor]:
        """The arrays that this attack holds, learned or loaded, else those that ``draw`` gives."""
        held: dict[str, Tensor] | None = self.__dict__.get("held")
        if held is None:
            return self.draw(shape)
        if self.__dict__["shape"] != shape:
            raise InputError(
                f"the trigger of {self.name} was made for images of shape {self.__dict__['shape']} "
                f"and these have {shape}"
            )
        return held

    def holding(self, tensors: Mapping[str, Tensor], shape: tuple[int, int, int]) -> Self:
        """The same attack, holding the arrays of a trigger for images of ``shape``."""
        attack = msgspec.structs.replace(self)
        attack.__dict__["held"] = {name: array.detach().cpu() for name, array in tensors.items()}
        attack.__dict__["shape"] = tuple(shape)
        return attack

    @property
    def parts(self) -> tuple[Attack, ...]:
        """The attacks that this one consists of; evaluation stamps the images with each in turn."""
        return (self,)

    # -- the labels --------------------------------------------------------------------------------

    def relabel(self, labels: Tensor) -> Tensor:
        """The labels (n,) that the attacker wants for stamped images."""
        if self.mode == "all-to-all":
            return (labels + 1) % self.num_classes
        return torch.full_like(labels, self.target)

    def applies_to(self, labels: Tensor) -> Tensor:
        """Bool, (n,): the images that count for ASR; none has the attacker's label already."""
        if self.mode == "all-to-all":
            return torch.ones_like(labels, dtype=torch.bool)
        if self.mode == "source-specific":
            return torch.isin(labels, labels.new_tensor(self.sources))
        return labels != self.target

    # -- poisoning ---------------------------------------------------------------------------------

    def candidates(self, labels: Tensor) -> Tensor:
        """Bool, (n,): the training images that may be poisoned."""
        return labels == self.target if self.clean_label else self.applies_to(labels)

    def cover_rate_for(self, rate: float) -> float:
        """The share of all images that is stamped and keeps its label when ``rate`` is poisoned.

        The same share for ``source-specific`` (ours; the paper covers a few classes).
        """
        return rate if self.mode == "source-specific" else 0.0

    def cover_candidates(self, labels: Tensor) -> Tensor:
        """Bool, (n,): the images that may be covered; those poisoned are left out afterwards."""
        if self.mode == "source-specific":
            return ~self.applies_to(labels)
        return torch.ones_like(labels, dtype=torch.bool)

    def stamp_for_training(
        self, images: Tensor, labels: Tensor, generator: torch.Generator, *, cover: bool
    ) -> Tensor:
        """What poisoned (or covered) training images look like; by default as at test time.

        Args:
            images: shape (n, c, h, w) in [0, 1].
            labels: their true labels, shape (n,).
            generator: for attacks that draw at random here.
            cover: whether these are covered images.
        """
        return self.stamp(images)

    def check(self, images: ImageSet, rate: float, num_classes: int | None = None) -> None:
        """Refuses what cannot work, before anything is learned or trained.

        Args:
            images: labelled training images.
            rate: the poison rate, a share of all training images, in (0, 1].
            num_classes: of the network; by default as many as the images name or show.

        Raises:
            InputError: the rate is no share above 0 or asks for no image or too many; a class of
                the attack is none of the network's; a class has no images; the trigger does not
                fit.
        """
        labels = images.require_labels("poisoning").cpu()
        if not 0 < rate <= 1:
            raise InputError(f"poison rate {rate} must be greater than 0 and at most 1")
        if not len(labels):
            raise InputError("there are no images to poison")
        if num_classes is None:
            shown = int(labels.max()) + 1
            num_classes = max(shown, len(images.classes or ()))
        counts = images.class_counts(num_classes)
        wanted = max(self.target, *self.sources, 0)
        if wanted >= num_classes:
            raise InputError(
                f"the attack is about class {wanted} and there are {num_classes} classes "
                f"(0 to {num_classes - 1})"
            )
        if self.mode == "all-to-all" and self.num_classes != num_classes:
            raise InputError(
                f"the attack says num_classes {self.num_classes} and there are {num_classes}"
            )
        empty = torch.nonzero(counts == 0).flatten().tolist()
        if empty:
            raise InputError(
                f"class {empty[0]} has no training images ({len(empty)} of {num_classes} classes "
                "have none); a classifier cannot learn it"
            )
        count, covered = round(rate * len(labels)), round(self.cover_rate_for(rate) * len(labels))
        candidates = self.candidates(labels)
        available = int(candidates.sum())
        if count < 1:
            raise InputError(
                f"poison rate {rate} of {len(labels)} images is less than one image; the smallest "
                f"is {1 / len(labels):.2g}"
            )
        if count > available:
            kind = (
                f"of the target class {self.target}"
                if self.clean_label
                else "not of the target class"
                if self.mode == "all-to-one"
                else "of the source classes"
            )
            raise InputError(
                f"poison rate {rate} asks for {count} images, and only {available} are {kind}; at "
                f"most {available / len(labels):.4g} is possible"
            )
        free = self.cover_candidates(labels)
        room = int(free.sum()) - max(0, count - int((candidates & ~free).sum()))
        if covered > room:
            raise InputError(
                f"{covered} images are to be covered and only {room} are left; lower the rates"
            )
        for part in self.parts:
            if not part.learned:
                part.tensors(images.shape)

    def poison(self, images: ImageSet, rate: float, *, seed: int) -> Poisoned:
        """Stamps and relabels a random share ``rate`` of all images (counted over all classes).

        Stamped pixels are rounded to 8 bits, as a poisoned file on a disk would be.

        Raises:
            InputError: see ``check``; or the trigger does not fit or has still to be learned.
        """
        self.check(images, rate)
        labels = images.require_labels("poisoning")
        generator = torch.Generator().manual_seed(seed)
        chosen = _some(self.candidates(labels), round(rate * len(images)), generator)
        free = self.cover_candidates(labels)
        free[chosen] = False
        cover = _some(free, round(self.cover_rate_for(rate) * len(images)), generator)
        pixels, new_labels = images.images.clone(), labels.clone()
        for where, is_cover in ((chosen, False), (cover, True)):
            for part in torch.split(where, _CHUNK):
                stamped = self.stamp_for_training(
                    pixels[part].float() / 255, labels[part], generator, cover=is_cover
                )
                pixels[part] = (stamped * 255).round().clamp(0, 255).to(torch.uint8)
        if not self.clean_label:
            new_labels[chosen] = self.relabel(labels[chosen])
        flags = [torch.zeros(len(images), dtype=torch.bool, device=labels.device) for _ in range(2)]
        flags[0][chosen], flags[1][cover] = True, True
        return Poisoned(ImageSet(pixels, new_labels, images.classes), *flags)

    # -- planting ----------------------------------------------------------------------------------

    def prepare(
        self,
        images: ImageSet,
        *,
        seed: int,
        surrogate: Classifier | None = None,
        progress: Progress = no_progress,
    ) -> Self:
        """This attack with its trigger learned; itself where there is nothing to learn.

        Args:
            images: labelled clean training images.
            seed: of all draws.
            surrogate: a classifier trained on clean images, where ``needs_surrogate``.
            progress: called while it works.
        """
        return self

    def plant(
        self,
        classifier: Classifier,
        images: ImageSet,
        rate: float,
        recipe: Recipe,
        *,
        seed: int,
        surrogate: Classifier | None = None,
        checkpoint: Path | None = None,
        progress: Progress = no_progress,
    ) -> Planted:
        """Trains ``classifier.network`` in place, with this backdoor in it.

        Args:
            classifier: with a fresh network.
            images: labelled clean training images.
            rate: poison rate, a share of all images, in (0, 1].
            recipe: of the training.
            seed: of everything that is drawn.
            surrogate: a classifier trained on clean images; where one is needed and none is given,
                a copy of ``classifier`` is trained with the same recipe.
            checkpoint: a file from which an interrupted training goes on; see ``fit``.
            progress: called while it works.

        Raises:
            InputError: see ``check``; or the training diverged.
        """
        attack = self.prepared(
            classifier, images, rate, recipe, seed=seed, surrogate=surrogate, progress=progress
        )
        poisoned = attack.poison(images, rate, seed=seed)
        history = fit(
            classifier,
            poisoned.images,
            recipe,
            seed=seed,
            checkpoint=checkpoint,
            progress=progress,
            what=f"training with {self.name}",
        )
        return Planted(attack, history, int(poisoned.where.sum()), int(poisoned.covered.sum()))

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
        """Checks everything, then prepares, with a surrogate where one is needed."""
        classifier.trace(images.shape)
        self.check(images, rate, classifier.num_classes)
        if self.needs_surrogate and surrogate is None:
            surrogate = classifier.copy()
            fit(
                surrogate, images, recipe, seed=seed, progress=progress, what="training a surrogate"
            )
        resident = images.to(classifier.device)
        attack = self.prepare(resident, seed=seed, surrogate=surrogate, progress=progress)
        for part in attack.parts:  # a trigger that does not fit shows now, not after the training
            part.stamp(resident.images[:1].float() / 255)
        return attack


def _some(candidates: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """``count`` positions at random among those that are true, on the candidates' device."""
    where = torch.nonzero(candidates).flatten()
    order = torch.randperm(len(where), generator=generator)[:count]
    return where[order.to(where.device)]


attacks: Registry[type[Attack]] = Registry("attack")
