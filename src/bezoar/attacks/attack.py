"""What an attack is: a configuration that can stamp images and poison a training set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import msgspec
import torch
from torch import Tensor

from bezoar.errors import InputError
from bezoar.images import ImageSet
from bezoar.registry import Registry


@dataclass(frozen=True)
class Poisoned:
    """A training set after poisoning.

    Attributes:
        images: all images, the stamped ones among them, with their new labels.
        where: bool, shape (n,): which ones were stamped.
    """

    images: ImageSet
    where: Tensor


class Attack(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All-to-one backdoor: stamped images of any class are answered with ``target``.

    Attributes:
        target: index of the target class.
    """

    name: ClassVar[str] = ""
    title: ClassVar[str] = ""
    paper: ClassVar[str] = ""

    target: int = 0

    def __post_init__(self) -> None:
        if self.target < 0:
            raise InputError(f"target is {self.target}; class indices count from 0")

    def stamp(self, images: Tensor) -> Tensor:
        """Images (n, c, h, w) in [0, 1] with the trigger on each; the input stays as it was."""
        raise NotImplementedError

    def relabel(self, labels: Tensor) -> Tensor:
        """The labels (n,) that the attacker wants for stamped images."""
        return torch.full_like(labels, self.target)

    def applies_to(self, labels: Tensor) -> Tensor:
        """Bool, (n,): the images that count for ASR, those not of the target class already."""
        return labels != self.target

    def poison(self, images: ImageSet, rate: float, *, seed: int) -> Poisoned:
        """Stamps and relabels a random share ``rate`` of all images, none of the target class.

        Stamped pixels are rounded to 8 bits, as a poisoned file on a disk would be.

        Raises:
            InputError: the rate is no share, or more than all images of other classes.
        """
        labels = images.require_labels("poisoning")
        if not 0 <= rate <= 1:
            raise InputError(f"poison rate {rate} must lie between 0 and 1")
        candidates = torch.nonzero(self.applies_to(labels)).flatten()
        count = round(rate * len(images))
        if count > len(candidates):
            raise InputError(
                f"poison rate {rate} asks for {count} images, and only {len(candidates)} are not "
                "of the target class"
            )
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(candidates), generator=generator)[:count]
        chosen = candidates[order.to(candidates.device)]
        pixels, new_labels = images.images.clone(), labels.clone()
        if count:
            stamped = self.stamp(pixels[chosen].float() / 255)
            pixels[chosen] = (stamped * 255).round().clamp(0, 255).to(torch.uint8)
            new_labels[chosen] = self.relabel(labels[chosen])
        where = torch.zeros(len(images), dtype=torch.bool, device=labels.device)
        where[chosen] = True
        return Poisoned(ImageSet(pixels, new_labels, images.classes), where)


attacks: Registry[type[Attack]] = Registry("attack")


def parse_attack(spec: str) -> Attack:
    """Reads an attack from text: ``NAME`` or ``NAME:key=value,key=value``.

    >>> parse_attack("bad-nets:target=3,size=4")
    BadNets(target=3, size=4, pattern='checker', position='bottom-right', margin=0)

    Raises:
        InputError: there is no such attack, or it has no such parameter.
    """
    name, _, rest = spec.partition(":")
    kind = attacks.get(name.strip())
    values: dict[str, str] = {}
    for part in filter(None, (part.strip() for part in rest.split(","))):
        key, equals, value = part.partition("=")
        if not equals:
            raise InputError(f"trigger {spec!r}: {part!r} is no key=value pair")
        values[key.strip()] = value.strip()
    try:
        return msgspec.convert(values, kind, strict=False)
    except msgspec.ValidationError as error:
        fields = ", ".join(field.name for field in msgspec.structs.fields(kind))
        raise InputError(f"trigger {spec!r}: {error} (parameters: {fields})") from None
