import pytest
import torch
import torch.nn.functional as functional

from bezoar.augmentation import crop_and_flip, draw
from bezoar.errors import InputError


def slowly(images, padding, flip, seed, border):
    """The same image by image, with the same random numbers."""
    generator = torch.Generator().manual_seed(seed)
    shifts, flips = draw(len(images), padding=padding, flip=flip, generator=generator)
    height, width = images.shape[2:]
    results = []
    for image, top, left, mirror in zip(images, *shifts.tolist(), flips.tolist(), strict=True):
        mode = "constant" if border == "zeros" else border
        padded = functional.pad(image[None].double(), (padding,) * 4, mode=mode)[0]
        window = padded[:, top : top + height, left : left + width]
        results.append(window.flip(2) if mirror else window)
    return torch.stack(results).to(images.dtype)


@pytest.mark.parametrize("border", ["zeros", "reflect"])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("shape", "padding", "flip"),
    [((40, 3, 8, 8), 2, True), ((40, 1, 5, 9), 4, True), ((40, 3, 6, 4), 0, True),
     ((40, 2, 6, 7), 3, False), ((1, 3, 32, 32), 4, True)],
)  # fmt: skip
def test_equals_the_loop_over_images(shape, padding, flip, dtype, border):
    images = torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(5)).to(dtype)
    before = images.clone()
    result = crop_and_flip(
        images,
        padding=padding,
        flip=flip,
        generator=torch.Generator().manual_seed(9),
        border=border,
    )
    assert result.dtype == dtype
    assert torch.equal(result, slowly(images, padding, flip, 9, border))
    assert torch.equal(images, before)


def test_takes_images_that_are_not_contiguous():
    images = torch.rand(6, 8, 8, 3).permute(0, 3, 1, 2)
    result = crop_and_flip(images, padding=2, flip=True, generator=torch.Generator())
    again = crop_and_flip(images.contiguous(), padding=2, flip=True, generator=torch.Generator())
    assert torch.equal(result, again)


def test_every_shift_and_both_directions_come_up_equally_often():
    shifts, flips = draw(9000, padding=1, flip=True, generator=torch.Generator().manual_seed(0))
    counts = torch.bincount(shifts[0] * 3 + shifts[1], minlength=9)
    assert counts.min() > 850
    assert counts.max() < 1150
    assert 0.47 < flips.float().mean() < 0.53


def test_no_flip_and_no_padding_changes_nothing():
    images = torch.rand(5, 3, 4, 4)
    result = crop_and_flip(images, padding=0, flip=False, generator=torch.Generator())
    assert torch.equal(result, images)


def test_repeats_with_the_seed_and_moves_on_without():
    images = torch.rand(16, 3, 8, 8)
    generator = torch.Generator().manual_seed(3)
    first = crop_and_flip(images, padding=2, flip=True, generator=generator)
    second = crop_and_flip(images, padding=2, flip=True, generator=generator)
    again = crop_and_flip(images, padding=2, flip=True, generator=torch.Generator().manual_seed(3))
    assert torch.equal(first, again)
    assert not torch.equal(first, second)


@pytest.mark.parametrize(("padding", "border"), [(-1, "zeros"), (4, "reflect")])
def test_padding_that_does_not_suit_is_refused(padding, border):
    with pytest.raises(InputError, match=f"padding {padding} does not suit images of 4x6"):
        crop_and_flip(
            torch.rand(2, 3, 4, 6),
            padding=padding,
            flip=True,
            generator=torch.Generator(),
            border=border,
        )


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_same_result_on_the_accelerator():
    images = torch.rand(32, 3, 8, 8)
    on_cpu = crop_and_flip(images, padding=2, flip=True, generator=torch.Generator().manual_seed(1))
    on_gpu = crop_and_flip(
        images.cuda(), padding=2, flip=True, generator=torch.Generator().manual_seed(1)
    )
    assert torch.equal(on_cpu, on_gpu.cpu())
