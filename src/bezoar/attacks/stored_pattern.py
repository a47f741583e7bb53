"""A trigger that lies in a file: pattern and mask, as many public checkpoints come with."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from bezoar.attacks.attack import Attack, attacks
from bezoar.errors import InputError


@attacks.register("stored-pattern")
class StoredPattern(Attack, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``clip(image * (1 - mask) + pattern, 0, 1)`` with arrays from an ``.npy`` file.

    Attributes:
        file: an array of shape (2, c, h, w), pattern and mask, or (k, 2, c, h, w) with k
            alternatives.
        index: which alternative.
    """

    name: ClassVar[str] = "stored-pattern"
    title: ClassVar[str] = "A pattern and its mask from a file"
    paper: ClassVar[str] = ""

    file: str
    index: int = 0

    def draw(self, shape: tuple[int, int, int]) -> dict[str, Tensor]:
        """``pattern`` and ``mask`` as in the file, each (c, h, w)."""
        pattern, mask = self._load()
        if pattern.shape != shape:
            raise InputError(
                f"the trigger in {self.file} has shape {tuple(pattern.shape)} and the images "
                f"{tuple(shape)}"
            )
        return {"pattern": pattern, "mask": mask}

    def apply(self, images: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
        """Puts the stored trigger on images (n, c, h, w) in [0, 1]."""
        pattern, mask = tensors["pattern"].to(images), tensors["mask"].to(images)
        return (images * (1 - mask) + pattern).clamp(0, 1)

    def _load(self) -> tuple[Tensor, Tensor]:
        try:
            with Path(self.file).open("rb") as stream:
                array = np.lib.format.read_array(stream, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            reason = getattr(error, "strerror", None) or str(error).splitlines()[0].rstrip(".")
            raise InputError(
                f"trigger file {self.file} cannot be read: {reason}; give an .npy file"
            ) from error
        if array.dtype.kind not in "fiub":
            raise InputError(
                f"trigger file {self.file} holds values of type {array.dtype}; expected numbers"
            )
        if array.ndim == 4:
            array = array[None]
        if array.ndim != 5 or array.shape[1] != 2:
            raise InputError(
                f"trigger file {self.file} has shape {array.shape}; expected (2, c, h, w) or "
                "(k, 2, c, h, w)"
            )
        if not 0 <= self.index < len(array):
            raise InputError(f"trigger file {self.file} has no alternative {self.index}")
        pattern, mask = torch.from_numpy(array[self.index].astype(np.float32))
        if not (pattern.abs().max() <= 1 and mask.min() >= 0 and mask.max() <= 1):  # nor is NaN
            raise InputError(
                f"trigger file {self.file} holds values from {float(array.min()):g} to "
                f"{float(array.max()):g}; expected pixels in units from 0 to 1, not 255, and a "
                "mask in [0, 1]"
            )
        return pattern, mask
