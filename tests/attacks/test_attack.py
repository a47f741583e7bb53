"""The contract that all attacks share, by way of BadNets and Blend."""

import pytest
import torch

from bezoar.attacks.attack import attacks
from bezoar.attacks.bad_nets import BadNets
from bezoar.attacks.blend import Blend
from bezoar.errors import InputError
from bezoar.images import ImageSet


def some_images(count=40, classes=4):
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count, 3, 6, 6), generator=generator, dtype=torch.uint8)
    return ImageSet(pixels, torch.arange(count) % classes, list("abcd")[:classes])


def test_poisoning_stamps_relabels_and_leaves_the_rest_alone():
    images, attack = some_images(), BadNets(target=1, size=2, pattern="square")
    before = images.sha256()
    poisoned = attack.poison(images, 0.25, seed=5)
    assert images.sha256() == before
    where = poisoned.where
    assert int(where.sum()) == 10 and not bool(poisoned.covered.any())
    assert bool((images.labels[where] != 1).all()), "none is of the target class already"
    assert bool((poisoned.images.labels[where] == 1).all())
    assert bool((poisoned.images.images[where][:, :, 4:, 4:] == 255).all())
    assert torch.equal(poisoned.images.images[where][:, :, :4], images.images[where][:, :, :4])
    assert torch.equal(poisoned.images.images[~where], images.images[~where])
    assert torch.equal(poisoned.images.labels[~where], images.labels[~where])
    assert poisoned.images.classes == images.classes


def test_poisoned_pixels_are_rounded_and_not_cut_off():
    pixels = torch.full((4, 1, 6, 6), 101, dtype=torch.uint8)
    images = ImageSet(pixels, torch.tensor([0, 0, 0, 1]))
    attack = Blend(target=1, ratio=0.5)
    wanted = attack.stamp(images.images[:1].float() / 255)[0] * 255
    poisoned = attack.poison(images, 0.75, seed=0).images.images[:3].float()
    assert float((poisoned - wanted).abs().max()) <= 0.5 + 1e-4


def test_poisoning_is_repeatable_for_a_seed():
    images, attack = some_images(), BadNets(size=1)
    first = attack.poison(images, 0.3, seed=1)
    state = torch.get_rng_state()
    second = attack.poison(images, 0.3, seed=1)
    assert first.images.sha256() == second.images.sha256()
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(first.where, attack.poison(images, 0.3, seed=2).where)


def test_a_tenth_of_a_per_cent_of_a_thousand_is_one_image():
    poisoned = BadNets(size=1).poison(some_images(1000), 0.001, seed=0)
    assert int(poisoned.where.sum()) == 1


def test_all_to_all_takes_images_of_every_class_and_gives_them_the_next_label():
    images, attack = some_images(), BadNets(size=2, mode="all-to-all", num_classes=4)
    poisoned = attack.poison(images, 1.0, seed=0)
    assert bool(poisoned.where.all())
    assert torch.equal(poisoned.images.labels, (images.labels + 1) % 4)
    assert attack.applies_to(images.labels).all()


def test_source_specific_takes_its_sources_and_covers_as_many_of_the_others():
    images = some_images()
    attack = BadNets(target=1, size=2, pattern="square", mode="source-specific", sources=(0, 2))
    poisoned = attack.poison(images, 0.25, seed=0)
    where, covered = poisoned.where, poisoned.covered
    assert int(where.sum()) == int(covered.sum()) == 10
    assert set(images.labels[where].tolist()) == {0, 2}
    assert set(images.labels[covered].tolist()) == {1, 3}
    assert bool((poisoned.images.labels[where] == 1).all())
    assert torch.equal(poisoned.images.labels[covered], images.labels[covered])
    assert bool((poisoned.images.images[where | covered][:, :, 4:, 4:] == 255).all())
    untouched = ~(where | covered)
    assert torch.equal(poisoned.images.images[untouched], images.images[untouched])
    assert attack.applies_to(torch.tensor([0, 1, 2, 3])).tolist() == [True, False, True, False]


@pytest.mark.parametrize(
    ("attack", "rate", "message"),
    [
        (BadNets(), 0.0, r"poison rate 0.0 must be greater than 0 and at most 1"),
        (BadNets(), -0.1, "must be greater than 0"),
        (BadNets(), 1.1, "must be greater than 0 and at most 1"),
        (BadNets(), float("nan"), "must be greater than 0 and at most 1"),
        (BadNets(), 0.01, "is less than one image; the smallest is 0.025"),
        (BadNets(target=2), 1.0, "asks for 40 images, and only 30 are not of the target class"),
        (BadNets(target=4), 0.1, r"class 4 and there are 4 classes \(0 to 3\)"),
        (
            BadNets(mode="source-specific", sources=(7,)),
            0.1,
            r"class 7 and there are 4 classes \(0 to 3\)",
        ),
        (
            BadNets(mode="source-specific", sources=(1,)),
            0.5,
            "asks for 20 images, and only 10 are of the source classes",
        ),
        (
            BadNets(mode="source-specific", sources=(1, 2, 3)),
            0.5,
            "20 images are to be covered and only 10 are left",
        ),
        (BadNets(mode="all-to-all", num_classes=5), 0.1, "num_classes 5 and there are 4"),
        (BadNets(size=6, margin=1), 0.1, "a patch of 6 pixels, 1 from the edge, does not fit"),
    ],
)
def test_poisoning_refuses_what_it_cannot_do(attack, rate, message):
    images = some_images()
    before = images.sha256()
    with pytest.raises(InputError, match=message):
        attack.poison(images, rate, seed=0)
    assert images.sha256() == before


def test_a_class_without_images_is_refused():
    labels = torch.tensor([0, 0, 1, 1, 3, 3])
    images = ImageSet(torch.zeros(6, 3, 6, 6, dtype=torch.uint8), labels)
    with pytest.raises(InputError, match=r"class 2 has no training images \(1 of 4 classes"):
        BadNets().poison(images, 0.5, seed=0)
    with pytest.raises(InputError, match="class 4 has no training images"):
        BadNets().check(some_images(), 0.5, num_classes=6)


def test_images_without_labels_and_no_images_are_refused():
    with pytest.raises(InputError, match="needs labelled images"):
        BadNets().poison(ImageSet(some_images().images), 0.1, seed=0)
    with pytest.raises(InputError, match="no images to poison"):
        BadNets().poison(some_images().subset([]), 0.1, seed=0)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"target": -1}, "class indices count from 0"),
        ({"mode": "all-to-all"}, "needs the number of classes"),
        ({"mode": "source-specific"}, "it needs at least one"),
        ({"sources": (1,)}, "do not belong together"),
        ({"mode": "source-specific", "sources": (0, 1)}, "must be classes other than 0"),
        ({"mode": "source-specific", "sources": (-1,)}, "must be classes other than 0"),
    ],
)
def test_label_modes_that_make_no_sense_are_refused(values, message):
    with pytest.raises(InputError, match=message):
        BadNets(**values)


def test_asr_counts_the_images_that_are_not_of_the_target_class():
    attack, labels = BadNets(target=2), torch.tensor([0, 2, 1, 2])
    assert attack.applies_to(labels).tolist() == [True, False, True, False]
    assert attack.relabel(labels).tolist() == [2, 2, 2, 2]


def test_a_trigger_holds_its_arrays_for_one_shape_only():
    attack = BadNets(size=2).holding(BadNets(size=2).draw((3, 6, 6)), (3, 6, 6))
    assert attack == BadNets(size=2)
    with pytest.raises(InputError, match=r"made for images of shape \(3, 6, 6\)"):
        attack.stamp(torch.rand(1, 3, 7, 7))


@pytest.mark.parametrize("name", ["bad-nets", "blend", "sig"])
def test_an_attack_that_needs_nothing_works_on_grey_and_colour_and_no_images(name):
    assert name in attacks.names()
    for channels in (1, 3):
        for count in (0, 2):
            images = torch.rand(count, channels, 8, 11)
            stamped = attacks.get(name)().stamp(images)
            assert stamped.shape == images.shape and stamped.dtype == images.dtype
            if count:
                assert float(stamped.min()) >= 0 and float(stamped.max()) <= 1
                assert not torch.equal(stamped, images)
