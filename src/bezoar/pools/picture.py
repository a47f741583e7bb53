"""A picture of a trigger: images, the same images stamped, and what changed."""

from __future__ import annotations

import io

import torch
from PIL import Image

from bezoar.attacks import Attack
from bezoar.images import ImageSet

_COLUMNS = 8
_GAP = 2
_HEIGHT = 96  # of an image on the sheet, at least


def picture_of(attack: Attack, images: ImageSet) -> bytes:
    """A PNG with three rows: images, stamped images, and twice the difference on grey.

    Images that the attack is about come first; an attack of several triggers takes turns.
    """
    labels = images.require_labels("a picture").cpu()
    parts = attack.parts
    rows: list[list[torch.Tensor]] = [[], [], []]
    for column in range(_COLUMNS):
        part = parts[column % len(parts)]
        about = torch.nonzero(part.applies_to(labels)).flatten()
        if len(about) <= column:
            break
        image = images.images[about[column]].float()[None] / 255
        stamped = part.stamp(image)
        difference = (0.5 + 2 * (stamped - image)).clamp(0, 1)
        for row, shown in zip(rows, (image, stamped, difference), strict=True):
            row.append(torch.nn.functional.pad(shown[0], (_GAP,) * 4, value=1.0))
    sheet = torch.cat([torch.cat(row, 2) for row in rows], 1)
    pixels = (sheet * 255).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()
    picture = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    factor = max(1, -(-_HEIGHT // (images.shape[1] + 2 * _GAP)))
    size = (picture.width * factor, picture.height * factor)
    buffer = io.BytesIO()
    picture.resize(size, Image.Resampling.NEAREST).save(buffer, "PNG")
    return buffer.getvalue()
