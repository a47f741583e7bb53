import zipfile

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bezoar.errors import InputError
from bezoar.images import ImageSet
from bezoar.reading.npz import layout_of

NCHW = np.random.default_rng(0).integers(0, 256, (5, 3, 6, 7), dtype=np.uint8)


def save(path, **arrays):
    np.savez(path / "set.npz", **arrays)
    return path / "set.npz"


@pytest.mark.parametrize("key", ["images", "x", "X", "data", "x_test", "test_images", "arr_0"])
def test_usual_names_and_both_layouts(tmp_path, key):
    for array in (NCHW, NCHW.transpose(0, 2, 3, 1)):
        images = ImageSet.open(save(tmp_path, **{key: array}))
        assert torch.equal(images.images, torch.from_numpy(NCHW))
        assert images.labels is None


@pytest.mark.parametrize("key", ["labels", "y", "Y", "targets", "y_test", "arr_1"])
def test_labels_in_both_shapes(tmp_path, key):
    for labels in (np.array([2, 0, 1, 1, 0]), np.array([[2], [0], [1], [1], [0]], np.uint8)):
        images = ImageSet.open(save(tmp_path, images=NCHW, **{key: labels}))
        assert images.labels.tolist() == [2, 0, 1, 1, 0]
        assert images.labels.dtype == torch.int64


def test_greyscale_without_a_channel_axis(tmp_path):
    images = ImageSet.open(save(tmp_path, images=NCHW[:, 0]))
    assert images.shape == (1, 6, 7)
    assert np.array_equal(images.images[:, 0].numpy(), NCHW[:, 0])


sides = st.integers(4, 300)


@given(n=st.integers(1, 50), channels=st.sampled_from([1, 3]), height=sides, width=sides)
def test_layout_is_recognised_for_all_real_sizes(n, channels, height, width):
    assert layout_of((n, channels, height, width)) == "NCHW"
    assert layout_of((n, height, width, channels)) == "NHWC"
    assert layout_of((n, height, width)) == "NHW"


@given(shape=st.lists(st.integers(0, 40), max_size=6).map(tuple))
def test_layout_never_claims_other_channels_than_1_or_3(shape):
    try:
        layout = layout_of(shape)
    except InputError:
        return
    assert {"NCHW": shape[1] in (1, 3), "NHWC": shape[-1] in (1, 3), "NHW": len(shape) == 3}[layout]


def test_size_decides_where_both_axes_look_like_channels():
    with pytest.raises(InputError, match="not recognisable"):
        layout_of((5, 3, 9, 3))
    assert layout_of((5, 3, 9, 3), (9, 3)) == "NCHW"
    assert layout_of((5, 3, 9, 3), (3, 9)) == "NHWC"


@pytest.mark.parametrize("shape", [(32, 32, 3), (5, 784), (5, 4, 32, 32), (5, 2, 3, 8, 8), (5,)])
def test_other_shapes_are_refused(tmp_path, shape):
    with pytest.raises(InputError, match="not recognisable as images; expected"):
        ImageSet.open(save(tmp_path, images=np.zeros(shape, np.uint8)))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_floats_from_0_to_1_come_back_exactly(tmp_path, dtype):
    images = ImageSet.open(save(tmp_path, images=(NCHW / 255).astype(dtype)))
    assert np.array_equal(images.images.numpy(), NCHW)


@pytest.mark.parametrize("dtype", [np.int64, np.uint16])
def test_wide_whole_numbers_up_to_255_come_back_exactly(tmp_path, dtype):
    assert np.array_equal(ImageSet.open(save(tmp_path, x=NCHW.astype(dtype))).images.numpy(), NCHW)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (NCHW.astype(np.float32), "floating-point pixels from 0 to 255; expected 0 to 1"),
        ((NCHW / 255 - 0.5) / 0.25, "expected 0 to 1; undo the normalisation"),
        (np.where(NCHW > 200, np.nan, 0.5), "expected 0 to 1"),
        (NCHW.astype(np.int32) * 10, "expected 0 to 255"),
        (NCHW.astype(np.int32) - 1, "whole-number pixels from -1"),
        (NCHW > 5, "has type bool"),
        (NCHW.astype("U3"), "has type <U3"),
        (NCHW[:0], "is empty"),
    ],
)
def test_other_ranges_and_types_are_refused(tmp_path, array, message):
    with pytest.raises(InputError, match=message):
        ImageSet.open(save(tmp_path, images=array))


class Payload:
    def __reduce__(self):
        return (print, ("this must never run",))


def test_pickled_objects_are_refused_and_never_run(tmp_path, capsys):
    path = save(tmp_path, images=np.array([Payload()], dtype=object))
    with pytest.raises(InputError, match="pickled objects"):
        ImageSet.open(path)
    path = save(tmp_path, images=NCHW, labels=np.array([Payload()] * 5, dtype=object))
    with pytest.raises(InputError, match="pickled objects"):
        ImageSet.open(path)
    assert "never" not in capsys.readouterr().out


def test_damaged_archives_are_refused(tmp_path):
    path = save(tmp_path, images=NCHW)
    data = path.read_bytes()
    for content in (b"", b"hello", data[: len(data) // 2], data[:100] + b"xx" + data[102:]):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"set\.npz"):
            ImageSet.open(path)
    with zipfile.ZipFile(path, "w") as archive, archive.open("images.npy", "w") as member:
        shape = {"descr": "|u1", "fortran_order": False, "shape": (1 << 40, 3, 224, 224)}
        np.lib.format.write_array_header_1_0(member, shape)  # more than there can be
    with pytest.raises(InputError, match=r"set\.npz"):
        ImageSet.open(path)
    np.save(tmp_path / "one.npy", NCHW)
    (tmp_path / "one.npy").rename(path)
    with pytest.raises(InputError, match="a single array"):
        ImageSet.open(path)


def test_missing_and_ambiguous_arrays(tmp_path):
    with pytest.raises(InputError, match="has the arrays foo; expected the images under one of"):
        ImageSet.open(save(tmp_path, foo=NCHW))
    path = save(tmp_path, images=NCHW, x=NCHW[:2])
    with pytest.raises(InputError, match="several arrays that may be the images: images, x"):
        ImageSet.open(path)
    assert len(ImageSet.from_npz(path, image_key="x")) == 2
    with pytest.raises(InputError, match="has no array 'z'; it has images, x"):
        ImageSet.from_npz(path, image_key="z")


def test_arrays_left_out_are_named(tmp_path):
    path = save(tmp_path, x_train=NCHW, y_train=[0] * 5, x_test=NCHW[:2], y_test=[1, 0])
    images = ImageSet.open(path)
    assert images.labels.tolist() == [1, 0]
    assert images.notices == (f"Other arrays of {path} were left out: x_train, y_train.",)


def test_labels_that_do_not_fit_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"labels of .* have shape \(3,\); expected \(5,\)"):
        ImageSet.open(save(tmp_path, images=NCHW, labels=[0, 1, 2]))
    with pytest.raises(InputError, match="not whole numbers"):
        ImageSet.open(save(tmp_path, images=NCHW, labels=[0.5] * 5))
    with pytest.raises(InputError, match="label -7"):
        ImageSet.open(save(tmp_path, images=NCHW, labels=[0, 0, 0, 0, -7]))
    with pytest.raises(InputError, match="label 4, and there are 2 class names"):
        ImageSet.open(save(tmp_path, images=NCHW, labels=[0, 1, 2, 3, 4]), classes=["a", "b"])


def test_names_as_labels(tmp_path):
    path = save(tmp_path, images=NCHW, labels=np.array(["b", "a", "b", "c", "a"]))
    images = ImageSet.open(path)
    assert images.labels.tolist() == [1, 0, 1, 2, 0]
    assert images.classes == ("a", "b", "c")
    assert ImageSet.open(path, classes=["c", "b", "a"]).labels.tolist() == [1, 2, 1, 0, 2]


def test_labels_that_are_numbers_written_as_text_are_these_numbers(tmp_path):
    path = save(tmp_path, images=NCHW, labels=np.array(["2", "10", "0", "1", "2"]))
    images = ImageSet.open(path)
    assert images.labels.tolist() == [2, 10, 0, 1, 2] and images.classes is None
    named = ImageSet.open(path, classes=["10", "2", "1", "0"])
    assert named.labels.tolist() == [1, 0, 3, 2, 1], "names where names are given"
    path = save(tmp_path, images=NCHW, labels=np.array(["02", "10", "00", "01", "02"]))
    assert ImageSet.open(path).classes == ("00", "01", "02", "10")


def test_channels_and_size_are_converted_as_for_files(tmp_path):
    path = save(tmp_path, images=NCHW)
    assert ImageSet.open(path, channels=1).shape == (1, 6, 7)
    grey = ImageSet.open(save(tmp_path, images=NCHW[:, :1]), channels=3)
    assert np.array_equal(grey.images.numpy(), np.repeat(NCHW[:, :1], 3, axis=1))
    path = save(tmp_path, images=NCHW)
    assert ImageSet.open(path, size=(4, 4), resize="crop").shape == (3, 4, 4)
    with pytest.raises(InputError, match=r"image 0 of 'images' of .* is 7 pixels wide and 6 high"):
        ImageSet.open(path, size=(4, 4))


def test_almost_black_images_are_pointed_out(tmp_path):
    images = ImageSet.open(save(tmp_path, images=(NCHW > 9).astype(np.uint8)))
    assert "almost black" in images.notices[0]
