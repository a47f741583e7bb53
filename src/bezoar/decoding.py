"""One encoded image to 8-bit pixels, in the channels and the size that a network takes.

Conversions follow the loaders that networks are trained with (``PIL.Image.convert``): alpha is
dropped and not blended, palettes are looked up, colour becomes luminance (ITU-R 601-2), EXIF
orientation is *not* applied. Unlike Pillow, 16-bit greyscale is scaled to 8 bits instead of being
cut off at 255. A file that is cut short or damaged is refused, never filled up with grey.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, UnidentifiedImageError

from bezoar.errors import InputError

Resize = Literal["none", "stretch", "crop"]
"""What happens to an image of another size: refused, stretched, or fitted and cut at the centre."""

Box = tuple[float, float, float, float]
"""Left, upper, right and lower edge in pixels of the image."""

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
"""How names of image files end, in lower case."""

# Naming the formats also keeps Pillow from trying others, of which some start outside programs.
_FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "TIFF", "PPM")
_GREY_MODES = frozenset({"1", "L", "LA", "La", "I", "F", "I;16", "I;16L", "I;16B", "I;16N"})

_BITS_PER_SAMPLE, _PHOTOMETRIC, _WHITE_IS_ZERO = 258, 262, 0  # of TIFF


@dataclass(frozen=True, kw_only=True)
class Target:
    """What every decoded image must look like.

    Attributes:
        channels: 1 (luminance) or 3 (RGB).
        size: height and width in pixels.
        resize: what to do with an image of another size.
        size_from: where ``size`` comes from, for the message when an image does not have it.
    """

    channels: int
    size: tuple[int, int]
    resize: Resize = "none"
    size_from: str = "the size asked for"


def describe(source: Path | bytes, name: str) -> tuple[bool, tuple[int, int]]:
    """Reads an image's header: whether it is greyscale, and its (height, width).

    A palette counts as colour, also when all its entries are grey.

    Raises:
        InputError: ``source`` is no image that can be read; the message starts with ``name``.
    """
    with _opened(source, name) as image:
        return image.mode in _GREY_MODES, (image.height, image.width)


def decode(
    source: Path | bytes, name: str, target: Target, *, box: Box | None = None
) -> np.ndarray:
    """Decodes one image to ``uint8`` of shape (channels, height, width).

    Args:
        source: the file, or its content.
        name: what to call the image in messages.
        target: channels and size of the result.
        box: the part of the image to keep; it is resized (bicubic) to the size of the whole image.

    Raises:
        InputError: the image cannot be read, has another size and ``target.resize`` is "none", is
            too narrow to be cut, or the box does not lie in it.
    """
    with _opened(source, name) as image:
        image.load()
    image = _converted(image, target.channels, name)
    if box is not None:
        image = _cut_out(image, box, name)
    return _pixels(_fitted(image, target, name))


def adapt(pixels: np.ndarray, name: str, target: Target) -> np.ndarray:
    """Gives raw pixels, ``uint8`` of shape (1 or 3, height, width), the target's form.

    Raises:
        InputError: as for ``decode``.
    """
    picture = Image.fromarray(
        pixels[0] if len(pixels) == 1 else np.ascontiguousarray(pixels.transpose(1, 2, 0))
    )
    return _pixels(_fitted(_converted(picture, target.channels, name), target, name))


@contextlib.contextmanager
def _opened(source: Path | bytes, name: str) -> Iterator[Image.Image]:
    """Opens an image; whatever goes wrong with it inside the block becomes an ``InputError``."""
    try:
        file = io.BytesIO(source) if isinstance(source, bytes) else source
        with Image.open(file, formats=_FORMATS) as image:
            limit = Image.MAX_IMAGE_PIXELS
            if limit is not None and image.width * image.height > limit:
                raise Image.DecompressionBombError
            # A JPEG with embedded previews ("MPO") also counts several frames.
            if getattr(image, "n_frames", 1) > 1 and image.format != "MPO":
                raise InputError(
                    f"{name} holds several pictures in one file (an animation or pages); expected "
                    "one; save each as a file of its own"
                )
            yield image
    except InputError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise InputError(
            f"{name} has more than {Image.MAX_IMAGE_PIXELS:,} pixels, which may be a file made to "
            "fill the memory; expected a picture; take it out or make it smaller"
        ) from error
    except UnidentifiedImageError as error:
        raise InputError(
            f"{name} is not recognised as an image, or it is damaged; expected one of "
            f"{', '.join(_FORMATS)}; take it out or convert it"
        ) from error
    except Exception as error:
        # Pillow's readers meet broken files with a dozen kinds of exceptions.
        if isinstance(error, OSError) and error.errno is not None:
            reason = f"cannot be read ({error.strerror}); check that the file is there and readable"
        else:
            reason = f"is damaged or cut short ({error}); replace it or take it out"
        raise InputError(f"{name} {reason}") from error


def _converted(image: Image.Image, channels: int, name: str) -> Image.Image:
    """The image in mode L (one channel) or RGB (three)."""
    if image.mode.startswith("I"):
        image = _from_wide_integers(image, name)
    elif image.mode == "F":
        image = _from_floats(image, name)
    mode = "L" if channels == 1 else "RGB"
    if image.mode == mode:
        return image
    # A marked transparent colour would make Pillow warn; it has no meaning once alpha is dropped.
    image.info.pop("transparency", None)
    try:
        return image.convert(mode)
    except ValueError as error:
        raise InputError(
            f"{name} has colours of kind {image.mode}, which do not convert to {mode}; expected "
            "greyscale, RGB, palette or CMYK; save it as RGB"
        ) from error


def _from_wide_integers(image: Image.Image, name: str) -> Image.Image:
    """16-bit greyscale to 8 bits: 0..65535 becomes 0..255, rounded.

    Of a TIFF of 9 to 15 bits white is less, and it may say that white is 0; Pillow minds neither.
    """
    values = np.asarray(image).astype(np.int64)
    tags = getattr(image, "tag_v2", {}) if image.mode.startswith("I;16") else {}
    bits = int(tags.get(_BITS_PER_SAMPLE, (16,))[0])
    white = 2**bits - 1 if 8 < bits < 16 else 65535
    if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
        values = white - values
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > 65535:
        raise InputError(
            f"{name} holds whole numbers from {low} to {high}; expected 8-bit or 16-bit pixels; "
            "scale it to 0..65535 or 0..255 and save it as PNG"
        )
    if image.mode == "I" and image.format == "TIFF" and 1 <= high <= 255:
        raise InputError(
            f"{name} holds 32-bit whole numbers up to {high}, and it does not say whether white is "
            "255 or 65535; expected 8-bit or 16-bit pixels; save it as PNG"
        )
    return Image.fromarray(((255 * values + white // 2) // white).astype(np.uint8))


def _from_floats(image: Image.Image, name: str) -> Image.Image:
    """Floating-point greyscale in [0, 1] to 8 bits, rounded."""
    values = np.asarray(image)
    low, high = float(values.min()), float(values.max())
    if not (low >= 0 and high <= 1):
        raise InputError(
            f"{name} holds floating-point pixels from {low:g} to {high:g}; expected 0 to 1; scale "
            "it and save it as PNG"
        )
    return Image.fromarray(np.rint(values * 255).astype(np.uint8))


def _cut_out(image: Image.Image, box: Box, name: str) -> Image.Image:
    """The part inside ``box``, enlarged to the size of the whole image."""
    left, upper, right, lower = box
    if not (0 <= left < right <= image.width and 0 <= upper < lower <= image.height):
        raise InputError(
            f"{name} has the box ({left:g}, {upper:g}, {right:g}, {lower:g}); expected left, "
            f"upper, right, lower inside its {image.width} by {image.height} pixels; correct the "
            "box column or read without it"
        )
    return image.resize(image.size, Image.Resampling.BICUBIC, box=box)


def _fitted(image: Image.Image, target: Target, name: str) -> Image.Image:
    """The image in the target's size; bilinear with antialiasing where that needs resizing."""
    height, width = target.size
    if (image.height, image.width) == target.size:
        return image
    if target.resize == "none":
        raise InputError(
            f"{name} is {image.width} pixels wide and {image.height} high; expected {width} wide "
            f"and {height} high ({target.size_from}); pass --resize stretch or --resize crop"
        )
    if target.resize == "stretch":
        return image.resize((width, height), Image.Resampling.BILINEAR)
    # The side that needs the larger factor takes its size; the other overhangs and is cut.
    if height * image.width >= width * image.height:
        scaled = (max(width, height * image.width // image.height), height)
    else:
        scaled = (width, max(height, width * image.height // image.width))
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and scaled[0] * scaled[1] > limit:
        raise InputError(
            f"{name} is {image.width} pixels wide and {image.height} high; resized to be cut to "
            f"{width} wide and {height} high it would have {scaled[0] * scaled[1]:,} pixels, more "
            f"than {limit:,}; expected a picture; take it out, cut it yourself, or pass "
            "--resize stretch"
        )
    left, upper = round((scaled[0] - width) / 2), round((scaled[1] - height) / 2)
    image = image.resize(scaled, Image.Resampling.BILINEAR)
    return image.crop((left, upper, left + width, upper + height))


def _pixels(image: Image.Image) -> np.ndarray:
    """Mode L or RGB to ``uint8`` of shape (channels, height, width)."""
    values = np.asarray(image)
    return values[None] if values.ndim == 2 else values.transpose(2, 0, 1)
