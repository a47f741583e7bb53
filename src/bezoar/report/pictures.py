"""Example images for the page, embedded as PNG data."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass

import numpy as np
from PIL import Image

from bezoar.errors import InputError
from bezoar.report import fields

LARGEST_SIDE = 192  # pixels; twice what the page shows, for sharp screens
_PIXEL_ART_UP_TO = 64  # images this small are shown with their pixels as squares


@dataclass(frozen=True, eq=False)
class Picture:
    """A row of images with a title, for example a suspected class.

    Args:
        title: what the images are.
        caption: one or two sentences below the title.
        images: ``uint8`` array of shape (n, height, width, channels), 1, 3 or 4 channels.
        captions: one short line for each image, or none at all.

    Raises:
        InputError: the array has another type or shape, or the captions another number.
    """

    title: str
    caption: str
    images: np.ndarray
    captions: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        images = self.images
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] not in (1, 3, 4):
            raise InputError(
                f"picture {self.title!r} has dtype {images.dtype} and shape {images.shape}; "
                "expected uint8 of shape (images, height, width, 1, 3 or 4 channels)"
            )
        if len(images) and not images[0].size:
            raise InputError(f"picture {self.title!r} has images without pixels: {images.shape}")
        if self.captions and len(self.captions) != len(images):
            raise InputError(
                f"picture {self.title!r} has {len(self.captions)} captions for {len(images)} "
                "images; give one for each image, or none"
            )


@dataclass(frozen=True)
class Thumbnail:
    """One image as the page embeds it."""

    source: str
    alt: str
    caption: str
    width: int
    height: int
    enlarged: bool


@dataclass(frozen=True)
class Gallery:
    """A picture as the page shows it."""

    title: str
    caption: str
    thumbnails: list[Thumbnail]


def gallery(picture: Picture) -> Gallery:
    """Encodes the images of a picture; larger ones are reduced to ``LARGEST_SIDE`` pixels."""
    title = fields.text(picture.title)
    thumbnails = []
    for place, pixels in enumerate(picture.images):
        caption = fields.text(picture.captions[place], 120) if picture.captions else ""
        alt = f"{title}, image {place + 1}" + (f": {caption}" if caption else "")
        thumbnails.append(thumbnail(pixels, alt, caption))
    return Gallery(title, fields.text(picture.caption, 1000), thumbnails)


def thumbnail(
    pixels: np.ndarray, alt: str, caption: str = "", *, largest: int = LARGEST_SIDE
) -> Thumbnail:
    """Encodes one image (h, w, c), reduced to sides of ``largest`` pixels where it is larger."""
    shown = _reduced(pixels, largest)
    return Thumbnail(
        source=data_uri(shown),
        alt=alt,
        caption=caption,
        width=shown.width,
        height=shown.height,
        enlarged=max(pixels.shape[:2]) <= min(largest, _PIXEL_ART_UP_TO),
    )


def data_uri(image: Image.Image) -> str:
    """The image as a ``data:`` address with a PNG inside."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _reduced(pixels: np.ndarray, largest: int) -> Image.Image:
    channels = pixels.shape[2]
    image = Image.fromarray(np.ascontiguousarray(pixels[:, :, 0] if channels == 1 else pixels))
    if max(image.size) > largest:
        image.thumbnail((largest, largest), Image.Resampling.LANCZOS)
    return image
