"""A picture of what a generator makes."""

from __future__ import annotations

import io

import torch
from PIL import Image

from bezoar.generators.public_generator import PublicGenerator

_COLUMNS = 8
_SIDE = 64  # pixels of an image on the sheet, at least


def sample_sheet(generator: PublicGenerator, *, seed: int) -> bytes:
    """A PNG of 64 images of random latent vectors, in rows of 8."""
    z = generator.latents(_COLUMNS**2, torch.Generator().manual_seed(seed))
    with torch.no_grad():
        images = generator(z).cpu().view(_COLUMNS, _COLUMNS, *generator.shape)
    sheet = images.permute(2, 0, 3, 1, 4).flatten(3, 4).flatten(1, 2)  # (c, 8 h, 8 w)
    pixels = (sheet.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    picture = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels[:, :, :3])
    factor = max(1, -(-_SIDE // min(generator.shape[1:])))
    buffer = io.BytesIO()
    size = (picture.width * factor, picture.height * factor)
    picture.resize(size, Image.Resampling.NEAREST).save(buffer, "PNG")
    return buffer.getvalue()
