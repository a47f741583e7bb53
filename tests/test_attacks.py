import numpy as np
import pytest
import torch

from bezoar.attacks import BadNets, Blend, StoredPattern, attacks, parse_attack
from bezoar.errors import InputError
from bezoar.images import ImageSet


def grey(count=2, channels=3, side=5):
    return torch.full((count, channels, side, side), 0.5)


def some_images(count=40, classes=4):
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count, 3, 6, 6), generator=generator, dtype=torch.uint8)
    return ImageSet(pixels, torch.arange(count) % classes, list("abcd"))


@pytest.mark.parametrize("position", ["bottom-right", "bottom-left", "top-right", "top-left"])
@pytest.mark.parametrize("margin", [0, 1])
def test_bad_nets_puts_its_patch_into_the_corner_and_nowhere_else(position, margin):
    images = grey()
    stamped = BadNets(size=3, pattern="square", position=position, margin=margin).stamp(images)
    changed = stamped != images
    rows = range(margin, margin + 3) if "top" in position else range(2 - margin, 5 - margin)
    columns = range(margin, margin + 3) if "left" in position else range(2 - margin, 5 - margin)
    for row in range(5):
        for column in range(5):
            inside = row in rows and column in columns
            assert bool(changed[:, :, row, column].all()) == inside
            assert bool(changed[:, :, row, column].any()) == inside
    assert bool((stamped[changed] == 1).all())
    assert bool((images == 0.5).all())


def test_the_checkerboard_alternates_and_is_white_in_its_corner():
    stamped = BadNets(size=3, pattern="checker").stamp(grey())
    board = torch.tensor([[1.0, 0, 1], [0, 1, 0], [1, 0, 1]])
    assert torch.equal(stamped[1, 2, 2:, 2:], board)


def test_blend_mixes_the_same_noise_into_every_image():
    attack = Blend(ratio=0.25, pattern_seed=3)
    first, second = torch.rand(2, 3, 5, 5).split(1)
    noise = (attack.stamp(first) - 0.75 * first) / 0.25
    assert torch.allclose(noise, (attack.stamp(second) - 0.75 * second) / 0.25, atol=1e-6)
    assert 0 <= float(noise.min()) < 0.2 and 0.8 < float(noise.max()) <= 1 + 1e-6
    assert torch.equal(attack.stamp(first), Blend(ratio=0.25, pattern_seed=3).stamp(first))
    assert not torch.allclose(attack.stamp(first), Blend(ratio=0.25).stamp(first))
    assert torch.allclose(Blend(ratio=1.0).stamp(first), Blend(ratio=1.0).stamp(second))


def test_a_stored_pattern_follows_its_formula(tmp_path):
    pattern, mask = np.zeros((2, 3, 5, 5), np.float64)
    pattern[:, 0, 0], mask[:, 0, 0] = 0.9, 1.0  # replaced
    pattern[:, 1, 1] = 0.8  # added, and cut off at white
    np.save(tmp_path / "trigger.npy", np.stack([pattern, mask]))
    stamped = StoredPattern(file=str(tmp_path / "trigger.npy")).stamp(grey())
    assert stamped[0, 0, 0, 0] == pytest.approx(0.9)
    assert stamped[1, 2, 1, 1] == 1
    assert int((stamped != 0.5).sum()) == 2 * 3 * 2


def test_a_stored_pattern_can_have_alternatives(tmp_path):
    several = np.zeros((3, 2, 3, 5, 5), np.float32)
    several[2, :, :, 4, 4] = 1
    np.save(tmp_path / "triggers.npy", several)
    file = str(tmp_path / "triggers.npy")
    assert torch.equal(StoredPattern(file=file).stamp(grey()), grey())
    assert StoredPattern(file=file, index=2).stamp(grey())[0, 0, 4, 4] == 1
    for index in (3, -1):
        with pytest.raises(InputError, match=f"no alternative {index}"):
            StoredPattern(file=file, index=index).stamp(grey())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (np.zeros((2, 1, 5, 5)), r"shape \(1, 5, 5\) and the images \(3, 5, 5\)"),
        (np.zeros((3, 5, 5)), r"expected \(2, c, h, w\)"),
        (np.zeros((3, 3, 5, 5)), r"expected \(2, c, h, w\)"),
        (np.full((2, 3, 5, 5), "x"), "expected numbers"),
        (np.full((2, 3, 5, 5), None), "cannot be read: Object arrays"),
        (b"PK\x03\x04 half an archive", "cannot be read"),
        (b"", "cannot be read"),
        (None, "No such file"),
    ],
)
def test_a_file_that_is_no_trigger_is_named(tmp_path, content, message):
    path = tmp_path / "trigger.npy"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        np.save(path, content)
    with pytest.raises(InputError, match=message) as caught:
        StoredPattern(file=str(path)).stamp(grey())
    assert "trigger.npy" in str(caught.value)


def test_poisoning_stamps_relabels_and_leaves_the_rest_alone():
    images, attack = some_images(), BadNets(target=1, size=2, pattern="square")
    before = images.sha256()
    poisoned = attack.poison(images, 0.25, seed=5)
    assert images.sha256() == before
    where = poisoned.where
    assert int(where.sum()) == 10
    assert bool((images.labels[where] != 1).all()), "none is of the target class already"
    assert bool((poisoned.images.labels[where] == 1).all())
    assert bool((poisoned.images.images[where][:, :, 4:, 4:] == 255).all())
    assert torch.equal(poisoned.images.images[where][:, :, :4], images.images[where][:, :, :4])
    assert torch.equal(poisoned.images.images[~where], images.images[~where])
    assert torch.equal(poisoned.images.labels[~where], images.labels[~where])
    assert poisoned.images.classes == images.classes


def test_poisoned_pixels_are_rounded_and_not_cut_off():
    images = ImageSet(torch.full((4, 1, 6, 6), 101, dtype=torch.uint8), torch.zeros(4).long())
    attack = Blend(target=1, ratio=0.5)
    wanted = attack.stamp(images.images[:1].float() / 255)[0] * 255
    poisoned = attack.poison(images, 1.0, seed=0).images.images.float()
    assert float((poisoned - wanted).abs().max()) <= 0.5 + 1e-4


def test_poisoning_is_repeatable_for_a_seed():
    images, attack = some_images(), BadNets(size=1)
    first = attack.poison(images, 0.3, seed=1)
    state = torch.get_rng_state()
    second = attack.poison(images, 0.3, seed=1)
    assert first.images.sha256() == second.images.sha256()
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(first.where, attack.poison(images, 0.3, seed=2).where)


def test_no_poison_changes_nothing():
    images = some_images()
    poisoned = BadNets(size=2).poison(images, 0.0, seed=0)
    assert poisoned.images.sha256() == images.sha256()
    assert not bool(poisoned.where.any())


def test_poisoning_refuses_what_it_cannot_do():
    images = some_images()
    with pytest.raises(InputError, match=r"poison rate 1.5 must lie between 0 and 1"):
        BadNets().poison(images, 1.5, seed=0)
    with pytest.raises(InputError, match="asks for 40 images, and only 30"):
        BadNets(target=2).poison(images, 1.0, seed=0)
    with pytest.raises(InputError, match="needs labelled images"):
        BadNets().poison(ImageSet(images.images), 0.1, seed=0)
    with pytest.raises(InputError, match="a patch of 6 pixels, 1 from the edge, does not fit"):
        BadNets(size=6, margin=1).poison(images, 0.1, seed=0)


def test_asr_counts_the_images_that_are_not_of_the_target_class():
    attack, labels = BadNets(target=2), torch.tensor([0, 2, 1, 2])
    assert attack.applies_to(labels).tolist() == [True, False, True, False]
    assert attack.relabel(labels).tolist() == [2, 2, 2, 2]


@pytest.mark.parametrize(
    ("spec", "attack"),
    [
        ("bad-nets", BadNets()),
        ("bad-nets:target=3,size=4", BadNets(target=3, size=4)),
        (" bad-nets : target = 3 , pattern=square,", BadNets(target=3, pattern="square")),
        ("blend:ratio=0.1", Blend(ratio=0.1)),
        ("stored-pattern:file=a/b.npy,index=1", StoredPattern(file="a/b.npy", index=1)),
    ],
)
def test_an_attack_is_read_from_text(spec, attack):
    assert parse_attack(spec) == attack
    assert repr(parse_attack(spec)) == repr(attack)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("badnets", "perhaps you meant 'bad-nets'"),
        ("", "there is no attack ''"),
        ("bad-nets:size", "'size' is no key=value pair"),
        ("bad-nets:sise=3", "unknown field `sise` .*parameters: target, size"),
        ("bad-nets:size=big", "Expected `int`"),
        ("bad-nets:position=middle", "Invalid enum value 'middle'"),
        ("bad-nets:target=-1", "class indices count from 0"),
        ("bad-nets:size=0", "must be at least 1"),
        ("blend:ratio=0", "greater than 0"),
        ("blend:ratio=nan", "greater than 0"),
        ("stored-pattern", "missing required field `file`"),
    ],
)
def test_a_wrong_trigger_says_what_was_expected(spec, message):
    with pytest.raises(InputError, match=message):
        parse_attack(spec)


@pytest.mark.parametrize("name", ["bad-nets", "blend"])
def test_every_attack_without_a_file_works_on_grey_and_colour(name):
    assert name in attacks.names()
    for channels in (1, 3):
        images = torch.rand(2, channels, 8, 8)
        stamped = attacks.get(name)().stamp(images)
        assert stamped.shape == images.shape and stamped.dtype == images.dtype
        assert float(stamped.min()) >= 0 and float(stamped.max()) <= 1
        assert not torch.equal(stamped, images)
