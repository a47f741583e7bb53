"""What a user's odd image files become, or the sentence they are refused with."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from bezoar.decoding import Target, adapt, decode, describe
from bezoar.errors import InputError

RGB = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)  # 8 wide, 6 high
GREY = RGB[:, :, 0]
SIZE = (6, 8)


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def read(data, channels=3, size=SIZE, resize="none", box=None):
    return decode(data, "a.png", Target(channels=channels, size=size, resize=resize), box=box)


def wide_png(color_type, values):
    """A 16-bit PNG from (height, width, samples) uint16; Pillow writes greyscale ones only."""

    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    height, width = values.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", width, height, 16, color_type, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM"])
def test_colour_keeps_every_pixel(kind):
    assert np.array_equal(read(encoded(Image.fromarray(RGB), kind)), RGB.transpose(2, 0, 1))


def test_lossless_webp_keeps_every_pixel():
    data = encoded(Image.fromarray(RGB), "WEBP", lossless=True)
    assert np.array_equal(read(data), RGB.transpose(2, 0, 1))


def test_greyscale_becomes_three_equal_channels():
    assert np.array_equal(read(encoded(Image.fromarray(GREY))), np.stack([GREY] * 3))


def test_colour_becomes_luminance():
    pixels = read(encoded(Image.fromarray(RGB)), channels=1)
    luminance = RGB @ np.array([0.299, 0.587, 0.114])
    assert pixels.shape == (1, *SIZE)
    assert np.abs(pixels[0] - luminance).max() < 1


def test_alpha_is_dropped_not_blended():
    alpha = np.full((6, 8, 1), 7, np.uint8)
    rgba = Image.fromarray(np.concatenate([RGB, alpha], axis=2))
    assert np.array_equal(read(encoded(rgba)), RGB.transpose(2, 0, 1))
    la = Image.fromarray(np.concatenate([GREY[:, :, None], alpha], axis=2))
    assert np.array_equal(read(encoded(la), channels=1)[0], GREY)


@pytest.mark.parametrize("transparency", [None, 3, bytes(range(48))])
@pytest.mark.filterwarnings("error")
def test_palette_gives_the_colours_also_with_transparency(transparency):
    image = Image.fromarray(np.arange(48, dtype=np.uint8).reshape(SIZE)).convert("P")
    image.putpalette(RGB.reshape(48, 3).tobytes())
    options = {} if transparency is None else {"transparency": transparency}
    pixels = read(encoded(image, **options))
    assert np.array_equal(pixels, RGB.transpose(2, 0, 1))


def test_one_bit_becomes_black_and_white():
    image = Image.fromarray(GREY).point(lambda value: 255 * (value > 100), "1")
    assert np.array_equal(read(encoded(image), channels=1)[0], np.where(GREY > 100, 255, 0))


def test_cmyk_becomes_rgb():
    image = Image.new("CMYK", (8, 6), (0, 255, 255, 0))
    pixels = read(encoded(image, "TIFF"))
    assert pixels[:, 0, 0].tolist() == [255, 0, 0]


WIDE = np.array([0, 128, 129, 255, 257, 25700, 65406, 65535] * 6, np.uint16).reshape(SIZE)
SCALED = np.array([0, 0, 1, 1, 1, 100, 254, 255] * 6).reshape(SIZE)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_16_bit_greyscale_is_scaled_not_cut_off(kind):
    expected = np.rint(WIDE / 257)
    assert np.array_equal(expected[:, 5], SCALED[:, 5])
    assert np.array_equal(read(encoded(Image.fromarray(WIDE), kind), channels=1)[0], expected)


def test_16_bit_big_endian_tiff_is_scaled():
    image = Image.frombytes("I;16B", (8, 6), WIDE.astype(">u2").tobytes())
    assert np.array_equal(read(encoded(image, "TIFF"), channels=1)[0], np.rint(WIDE / 257))


def grey_tiff(bits, photometric, data):
    """A greyscale TIFF of SIZE, uncompressed, in one strip."""
    height, width = SIZE
    tags = (
        *((256, width), (257, height), (258, bits), (259, 1), (262, photometric)),
        *((273, None), (277, 1), (278, height), (279, len(data))),
    )
    begins = 8 + 2 + 12 * len(tags) + 4
    entries = [
        struct.pack("<HHII", tag, 4, 1, begins if value is None else value) for tag, value in tags
    ]
    head = struct.pack("<2sHIH", b"II", 42, 8, len(tags))
    return head + b"".join(entries) + struct.pack("<I", 0) + data


def test_of_12_bits_the_largest_number_is_white():
    values = np.array([0, 8, 9, 2048, 4095, 16, 4000, 1] * 6)
    pairs = values.reshape(-1, 2)  # two numbers in three bytes
    packed = np.stack(
        [pairs[:, 0] >> 4, (pairs[:, 0] & 15) << 4 | pairs[:, 1] >> 8, pairs[:, 1] & 255], 1
    )
    found = read(grey_tiff(12, 1, packed.astype(np.uint8).tobytes()), channels=1)[0]
    assert np.array_equal(found, np.rint(values / 4095 * 255).reshape(SIZE))


@pytest.mark.parametrize("bits", [8, 16])
def test_a_tiff_may_say_that_white_is_zero(bits):
    values = WIDE if bits == 16 else (WIDE >> 8)
    data = values.astype("<u2" if bits == 16 else "u1").tobytes()
    assert np.array_equal(
        read(grey_tiff(bits, 0, data), channels=1)[0],
        255 - read(grey_tiff(bits, 1, data), channels=1)[0],
    )
    assert int(read(grey_tiff(bits, 0, bytes(len(data))), channels=1).min()) == 255


@pytest.mark.parametrize(("color_type", "samples"), [(2, 3), (6, 4), (4, 2)])
def test_16_bit_colour_and_alpha_png(color_type, samples):
    data = wide_png(color_type, np.full((6, 8, samples), 100 * 257, np.uint16))
    assert (read(data) == 100).all()


def test_32_bit_tiff_within_16_bits_is_scaled_and_others_refused():
    def tiff(values):
        return encoded(Image.fromarray(values.astype(np.int32)), "TIFF")

    assert np.array_equal(read(tiff(WIDE), channels=1)[0], np.rint(WIDE / 257))
    with pytest.raises(InputError, match=r"from 0 to 131070; expected 8-bit or 16-bit"):
        read(tiff(WIDE.astype(np.int32) * 2))
    with pytest.raises(InputError, match="does not say whether white is 255 or 65535"):
        read(tiff(GREY))


def test_float_tiff_in_0_to_1_is_scaled_and_others_refused():
    def tiff(values):
        return encoded(Image.fromarray(values.astype(np.float32)), "TIFF")

    assert np.array_equal(read(tiff(GREY / 255), channels=1)[0], GREY)
    with pytest.raises(InputError, match="expected 0 to 1"):
        read(tiff(GREY))
    broken = GREY / 255
    broken[2, 2] = np.nan
    with pytest.raises(InputError, match="expected 0 to 1"):
        read(tiff(broken))


def test_orientation_tag_is_not_applied():
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(Image.fromarray(RGB), exif=exif)
    assert np.array_equal(read(data), RGB.transpose(2, 0, 1))


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's own remarks on cut tags
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "PPM", "TIFF"])
def test_a_file_cut_anywhere_is_refused_unless_every_pixel_is_there(kind):
    data = encoded(Image.fromarray(RGB).resize((16, 16)), kind)
    whole = read(data, size=(16, 16))
    refused = 0
    for length in range(0, len(data), 5):
        try:
            pixels = read(data[:length], size=(16, 16))
        except InputError as caught:
            message = str(caught)
        else:
            assert np.array_equal(pixels, whole)
            continue
        assert message.startswith("a.png ")
        refused += 1
    assert refused > len(data) / 5 * 0.7


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's own remarks on broken tags
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "PPM", "TIFF"])
def test_damaged_bytes_give_pixels_or_one_clear_error(kind):
    random = np.random.default_rng(1)
    data = encoded(Image.fromarray(RGB).resize((32, 32)), kind)
    for _ in range(150):
        broken = bytearray(data)
        for position in random.integers(0, len(data), 3):
            broken[position] = random.integers(256)
        try:
            assert read(bytes(broken), size=(32, 32)).shape == (3, 32, 32)
        except InputError as caught:
            message = str(caught)
        else:
            continue
        assert message.startswith("a.png")


def test_text_and_gif_are_refused():
    with pytest.raises(InputError, match=r"a\.png is not recognised as an image"):
        read(b"hello")
    with pytest.raises(InputError, match=r"a\.png is not recognised as an image"):
        read(encoded(Image.fromarray(RGB), "GIF"))


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_animations_and_pages_are_refused(kind):
    frames = [Image.fromarray(RGB), Image.fromarray(255 - RGB)]
    with pytest.raises(InputError, match="several pictures in one file"):
        read(encoded(frames[0], kind, save_all=True, append_images=frames[1:]))


@pytest.mark.filterwarnings("ignore:Image size:PIL.Image.DecompressionBombWarning")
def test_decompression_bomb_is_refused(monkeypatch):
    data = encoded(Image.new("1", (100, 100)))
    for limit in (9_000, 1_000):  # Pillow itself warns at the first and raises at the second
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        with pytest.raises(InputError, match=f"more than {limit:,} pixels"):
            read(data, size=(100, 100))


def test_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"a\.png cannot be read \(No such file"):
        read(tmp_path / "a.png")


def test_header_tells_greyscale_and_size():
    assert describe(encoded(Image.fromarray(GREY)), "a") == (True, SIZE)
    assert describe(encoded(Image.fromarray(RGB)), "a") == (False, SIZE)
    assert describe(encoded(Image.fromarray(WIDE)), "a") == (True, SIZE)
    assert describe(encoded(Image.fromarray(RGB).convert("P")), "a") == (False, SIZE)


def test_another_size_is_refused_with_both_sizes_and_the_option():
    with pytest.raises(InputError) as caught:
        read(encoded(Image.fromarray(RGB)), size=(32, 30))
    assert str(caught.value) == (
        "a.png is 8 pixels wide and 6 high; expected 30 wide and 32 high (the size asked for); "
        "pass --resize stretch or --resize crop"
    )


def test_stretch_fills_the_size_and_averages_when_shrinking():
    rows, columns = np.indices((16, 24))
    board = Image.fromarray(((rows + columns) % 2 * 255).astype(np.uint8))
    pixels = read(encoded(board), channels=1, size=(8, 4), resize="stretch")[0]
    assert pixels.shape == (8, 4)
    assert np.abs(pixels.astype(int) - 127).max() < 40  # without averaging: 0 or 255
    assert read(encoded(Image.fromarray(RGB)), size=(12, 5), resize="stretch").shape == (3, 12, 5)


@pytest.mark.parametrize(
    ("width", "height", "size"), [(80, 40, (20, 20)), (40, 80, (20, 20)), (33, 17, (8, 16))]
)
def test_crop_keeps_the_proportions_and_the_centre(width, height, size):
    values = np.zeros((height, width), np.uint8)
    values[:, : width // 2] = 200  # a vertical edge in the middle
    pixels = read(encoded(Image.fromarray(values)), channels=1, size=size, resize="crop")[0]
    assert pixels.shape == size
    middle = size[1] // 2
    assert (pixels[:, : middle - 1] > 150).all()
    assert (pixels[:, middle + 1 :] < 50).all()


def test_crop_cuts_the_overhanging_sides():
    values = np.zeros((10, 30), np.uint8)
    values[:, 10:20] = 255
    assert (read(encoded(Image.fromarray(values)), 1, (10, 10), "crop") == 255).all()


@pytest.mark.parametrize(("width", "height"), [(65_000, 1), (1, 65_000), (20_000_000, 1)])
def test_a_narrow_strip_is_not_blown_up_to_be_cut(width, height):
    """The part that overhangs is resized before it is cut off, here to gigabytes."""
    strip = encoded(Image.new("L", (width, height)))
    with pytest.raises(InputError) as caught:
        read(strip, 1, (224, 224), "crop")
    scaled = 224 * 224 * max(width, height)
    assert str(caught.value).startswith(f"a.png is {width} pixels wide and {height} high; ")
    assert f"would have {scaled:,} pixels, more than {Image.MAX_IMAGE_PIXELS:,};" in str(
        caught.value
    )
    assert read(strip, 1, (224, 224), "stretch").shape == (1, 224, 224)


def test_box_is_cut_out_and_enlarged_to_the_size_of_the_whole():
    image = Image.fromarray(RGB)
    box = (1.5, 2.0, 6.25, 5.0)
    expected = image.resize(image.size, Image.Resampling.BICUBIC, box=box)
    assert np.array_equal(read(encoded(image), box=box), np.asarray(expected).transpose(2, 0, 1))


@pytest.mark.parametrize("box", [(-1, 0, 4, 4), (0, 0, 9, 4), (3, 0, 3, 4), (0, 0, 4, np.nan)])
def test_box_outside_the_image_is_refused(box):
    with pytest.raises(InputError, match=r"a\.png has the box"):
        read(encoded(Image.fromarray(RGB)), box=box)


def test_raw_pixels_take_the_same_way_as_files():
    target = Target(channels=1, size=(3, 3), resize="crop")
    direct = adapt(RGB.transpose(2, 0, 1), "x", target)
    assert np.array_equal(direct, decode(encoded(Image.fromarray(RGB)), "x", target))
