import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bezoar.errors import InputError
from bezoar.images import ImageSet


def make(labels, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (len(labels), 3, 4, 4), dtype=np.uint8)
    return ImageSet.from_arrays(pixels, labels)


def numbered(count):
    """Images whose pixels tell their number."""
    pixels = np.arange(count, dtype=np.uint8)[:, None, None, None] * np.ones((1, 1, 2, 2), np.uint8)
    return ImageSet.from_arrays(pixels, np.arange(count) % 3)


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (np.zeros((2, 3, 4, 4), np.float32), None, "dtype torch.float32 and shape"),
        (np.zeros((3, 4, 4), np.uint8), None, r"expected uint8 of shape \(images, channels"),
        (np.zeros((2, 3, 4, 4), np.uint8), [0], "one for each image"),
        (np.zeros((2, 3, 4, 4), np.uint8), [0, -1], "label -1 is negative"),
        (np.zeros((2, 3, 4, 4), np.uint8), [0.0, 1.0], "expected whole numbers"),
    ],
)
def test_arrays_of_another_kind_are_refused(images, labels, message):
    with pytest.raises(InputError, match=message):
        ImageSet.from_arrays(images, labels)


def test_batches_are_floats_from_0_to_1_in_order():
    images = make([0, 1, 2, 0, 1])
    batches = list(images.batches(2))
    assert [len(batch) for batch, _ in batches] == [2, 2, 1]
    joined = torch.cat([batch for batch, _ in batches])
    assert joined.dtype == torch.float32
    assert torch.equal((joined * 255).round().to(torch.uint8), images.images)
    assert torch.cat([labels for _, labels in batches]).tolist() == [0, 1, 2, 0, 1]
    assert images.images.dtype == torch.uint8


def test_extremes_become_exactly_0_and_1():
    pixels = np.array([0, 255], np.uint8).reshape(1, 1, 1, 2)
    batch, labels = next(ImageSet.from_arrays(pixels).batches(1))
    assert batch.flatten().tolist() == [0.0, 1.0]
    assert labels is None


@given(count=st.integers(1, 60), size=st.integers(1, 70), seed=st.integers(0, 2**31))
def test_shuffled_batches_have_every_image_once_with_its_label(count, size, seed):
    images = numbered(count)
    numbers = []
    for batch, labels in images.batches(size, generator=torch.Generator().manual_seed(seed)):
        found = (batch[:, 0, 0, 0] * 255).round().long()
        assert torch.equal(found % 3, labels)
        numbers += found.tolist()
    assert sorted(numbers) == list(range(count))


def test_shuffling_follows_the_generator():
    def order(seed):
        generator = torch.Generator().manual_seed(seed)
        return [b[0, 0, 0, 0].item() for b, _ in numbered(50).batches(1, generator=generator)]

    assert order(1) == order(1) != order(2)


@given(
    labels=st.lists(st.integers(0, 4), min_size=1, max_size=60),
    fraction=st.floats(0.05, 0.95),
    seed=st.integers(0, 2**31),
)
def test_split_divides_every_class_and_loses_nothing(labels, fraction, seed):
    images = make(labels)
    first, second = images.split(fraction, seed=seed)
    assert len(first) + len(second) == len(images)
    together = torch.cat([first.images, second.images])
    assert sorted(x.numpy().tobytes() for x in together) == sorted(
        x.numpy().tobytes() for x in images.images
    )
    total, part = images.class_counts(5), first.class_counts(5)
    assert torch.equal(part + second.class_counts(5), total)
    for count, taken in zip(total.tolist(), part.tolist(), strict=True):
        assert abs(taken - fraction * count) <= 1
        if count > 1:
            assert 0 < taken < count


def test_split_repeats_with_the_seed():
    images = make([0, 1] * 20)
    one, again, other = (images.split(0.5, seed=seed)[0].sha256() for seed in (1, 1, 2))
    assert one == again != other


def test_split_without_labels():
    images = ImageSet(make([0] * 10).images)
    first, second = images.split(0.3, seed=0)
    assert (len(first), len(second)) == (3, 7)
    assert first.labels is None


@pytest.mark.parametrize("fraction", [0, 1, -0.5, 2])
def test_split_by_no_fraction_is_refused(fraction):
    with pytest.raises(InputError, match="must lie between 0 and 1"):
        make([0, 1]).split(fraction, seed=0)


def shares_alone(labels, count, seed):
    """Which images a draw takes by shares alone, which may leave a class out."""
    labels = torch.tensor(labels)
    generator = torch.Generator().manual_seed(seed)
    keys = torch.empty(len(labels))
    for label in torch.unique(labels):
        members = torch.nonzero(labels == label).flatten()
        ranks = torch.randperm(len(members), generator=generator)
        keys[members] = (ranks + 0.5) / len(members)
    return keys.argsort(stable=True)[:count].sort().values


@given(
    labels=st.lists(st.sampled_from([0, 0, 0, 0, 0, 0, 1, 1, 2, 3]), min_size=2, max_size=60),
    share=st.floats(0, 1, exclude_max=True),
    seed=st.integers(0, 2**31),
)
def test_a_draw_is_by_shares_wherever_these_give_each_class_an_image(labels, share, seed):
    images = ImageSet(numbered(len(labels)).images, torch.tensor(labels))
    count = 1 + int(share * (len(labels) - 1))
    drawn, by_shares = images.sample(count, seed=seed), shares_alone(labels, count, seed)
    assert len(drawn) == count
    present = set(labels)
    whole = set(images.labels[by_shares].tolist()) == present
    if whole or count < len(present):
        assert torch.equal(drawn.images, images.images[by_shares])
        assert torch.equal(drawn.labels, images.labels[by_shares])
    else:
        assert set(drawn.labels.tolist()) == present


@pytest.mark.parametrize("seed", range(5))
def test_a_limit_leaves_no_rare_class_out(seed):
    images = make([k % 9 for k in range(1040)] + [9, 9])
    assert 9 not in images.labels[shares_alone(images.labels.tolist(), 100, seed)], "the symptom"
    counts = images.sample(100, seed=seed).class_counts(10).tolist()
    assert counts[9] == 1 and set(counts[:9]) <= {10, 11, 12}


def test_a_draw_without_labels_is_plain():
    images = ImageSet(numbered(40).images)
    drawn = images.sample(7, seed=3)
    assert torch.equal(drawn.images, images.images[shares_alone([0] * 40, 7, 3)])


def test_subset_keeps_order_labels_and_names():
    images = ImageSet.from_arrays(make([0, 1, 2]).images, [0, 1, 2], ["a", "b", "c"])
    part = images.subset([2, 0])
    assert part.labels.tolist() == [2, 0]
    assert torch.equal(part.images, images.images[[2, 0]])
    assert part.classes == ("a", "b", "c")


def test_hash_depends_on_pixels_labels_and_shape_only():
    images = make([0, 1, 2, 3])
    assert images.sha256() == make([0, 1, 2, 3]).sha256()
    strided = ImageSet.from_arrays(
        images.images.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2),
        np.array([0, 1, 2, 3], np.int32),
        ["a", "b", "c", "d"],
    )
    assert strided.sha256() == images.sha256()
    changed = images.images.clone()
    changed[3, 2, 3, 3] ^= 1
    others = [
        ImageSet(changed, images.labels),
        make([0, 1, 2, 2]),
        ImageSet(images.images),
        ImageSet(images.images.reshape(4, 3, 2, 8), images.labels),
        images.subset([1, 0, 2, 3]),
    ]
    assert len({images.sha256(), *(other.sha256() for other in others)}) == 6


def test_hash_of_known_content_stays_the_same_between_versions():
    images = ImageSet.from_arrays(np.arange(8, dtype=np.uint8).reshape(2, 1, 2, 2), [1, 0])
    assert images.sha256() == "52ad15cc2377398192db5743e2a539e670a50c0319fc4b30160f8eaa9226b468"


def test_class_counts():
    counts = make([0, 2, 2]).class_counts(4)
    assert counts.tolist() == [1, 0, 2, 0]
    with pytest.raises(InputError, match="label 2; expected labels below 2"):
        make([0, 2, 2]).class_counts(2)
    with pytest.raises(InputError, match="needs labelled images"):
        ImageSet(make([0]).images).class_counts(2)


def test_to_a_device_that_is_full_is_a_clear_error(monkeypatch):
    images = make([0, 1])

    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch.Tensor, "to", full)
    with pytest.raises(InputError, match="do not fit on cpu; leave them in memory"):
        images.to(torch.device("cpu"))


def test_names_follow_their_images():
    pixels = np.arange(4, dtype=np.uint8).reshape(4, 1, 1, 1)
    images = ImageSet(torch.from_numpy(pixels), names=["a", "b", "c", "d"])
    part = images.subset([3, 1])
    assert part.names == ("d", "b") and part.images.flatten().tolist() == [3, 1]
    first, second = images.split(0.5, seed=0)
    assert sorted(first.names + second.names) == ["a", "b", "c", "d"]
    assert images.to(torch.device("cpu")).names == images.names
    assert ImageSet(torch.from_numpy(pixels)).subset([0]).names is None
    with pytest.raises(InputError, match="3 names were given for 4 images"):
        ImageSet(torch.from_numpy(pixels), names=["a", "b", "c"])
