import itertools

import msgspec
import pytest
import torch
from victims import planted

from bezoar.attacks.bad_nets import BadNets
from bezoar.attacks.spelling import load_attack, parse_attack, save_attack
from bezoar.demo import DIGITS_RECIPE
from bezoar.errors import InputError
from bezoar.evaluation import evaluate

QUICK = msgspec.structs.replace(DIGITS_RECIPE, epochs=8)


def grey(count=2, channels=3, side=5):
    return torch.full((count, channels, side, side), 0.5)


@pytest.mark.parametrize("position", ["bottom-right", "bottom-left", "top-right", "top-left"])
@pytest.mark.parametrize("margin", [0, 1])
def test_the_patch_lies_in_its_corner_and_nowhere_else(position, margin):
    images = grey()
    stamped = BadNets(size=3, pattern="square", position=position, margin=margin).stamp(images)
    changed = stamped != images
    rows = range(margin, margin + 3) if "top" in position else range(2 - margin, 5 - margin)
    columns = range(margin, margin + 3) if "left" in position else range(2 - margin, 5 - margin)
    for row, column in itertools.product(range(5), range(5)):
        inside = row in rows and column in columns
        assert bool(changed[:, :, row, column].all()) == inside
        assert bool(changed[:, :, row, column].any()) == inside
    assert bool((stamped[changed] == 1).all())
    assert bool((images == 0.5).all())


def test_the_checkerboard_alternates_and_is_white_in_its_corner():
    stamped = BadNets(size=3, pattern="checker").stamp(grey())
    board = torch.tensor([[1.0, 0, 1], [0, 1, 0], [1, 0, 1]])
    assert torch.equal(stamped[1, 2, 2:, 2:], board)


def test_the_grid_has_the_rows_of_rnps_demo():
    stamped = BadNets(pattern="grid").stamp(grey())
    rows = torch.tensor([[0.0, 0, 1], [0, 1, 0], [1, 0, 1]])
    assert torch.equal(stamped[:, :, 2:, 2:], rows.expand(2, 3, 3, 3))
    assert bool((stamped[:, :, :2] == 0.5).all()) and bool((stamped[:, :, :, :2] == 0.5).all())


@pytest.mark.parametrize(
    ("attack", "top", "left"),
    [
        (BadNets(size=2, position="center"), 1, 2),
        (BadNets(size=2, at=(0, 3)), 0, 3),
        (BadNets(size=2, at=(-2, -6)), 2, 0),
        (BadNets(size=2, at=(1, -2)), 1, 4),
    ],
)
def test_the_patch_can_lie_anywhere(attack, top, left):
    images = torch.full((1, 1, 4, 6), 0.5)
    changed = torch.nonzero((attack.stamp(images) != images)[0, 0])
    assert changed.min(0).values.tolist() == [top, left]
    assert changed.max(0).values.tolist() == [top + 1, left + 1]
    assert len(changed) == 4


@pytest.mark.parametrize("at", [(4, 0), (0, 5), (-7, 0), (0, -1)])
def test_a_patch_that_leaves_the_image_is_refused(at):
    with pytest.raises(InputError, match=r"a patch of 2 pixels, at \(.*\), does not fit"):
        BadNets(size=2, at=at).stamp(grey(side=5))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"size": 0}, "must be at least 1"),
        ({"margin": -1}, "at least 0"),
        ({"pattern": "grid", "size": 4}, "the grid has 3x3 pixels and size is 4"),
        ({"at": (0, 0), "margin": 1}, "margin 1 is a distance from a corner"),
        ({"position": "center", "margin": 1}, "margin 1 is a distance from a corner"),
        ({"position": "top-left", "at": (0, 0)}, "position 'top-left' or at"),
    ],
)
def test_what_contradicts_itself_is_refused(values, message):
    with pytest.raises(InputError, match=message):
        BadNets(**values)


def test_a_patch_larger_than_the_image_is_refused():
    with pytest.raises(InputError, match="a patch of 6 pixels, 0 from the edge, does not fit"):
        BadNets(size=6).stamp(grey(side=5))


def test_a_place_is_spelled_with_a_plus():
    assert parse_attack("bad-nets:at=3+-4,size=2") == BadNets(at=(3, -4), size=2)


def test_a_saved_trigger_stamps_the_same_pixels(tmp_path):
    attack = BadNets(pattern="grid", at=(1, -4))
    save_attack(attack, tmp_path / "trigger.safetensors", (3, 8, 8))
    loaded = load_attack(tmp_path / "trigger.safetensors")
    images = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    assert loaded == attack
    assert torch.equal(loaded.stamp(images), attack.stamp(images))


def test_it_takes_hold_on_digits():
    result = planted(BadNets(target=3, size=2), 0.1, recipe=QUICK)
    assert result.scores.asr >= 0.95 and result.twin_scores.asr < 0.2
    assert result.scores.acc > result.twin_scores.acc - 0.03


def test_all_to_all_takes_hold_on_digits():
    result = planted(BadNets(size=2, mode="all-to-all", num_classes=10), 0.5, recipe=QUICK)
    assert result.scores.asr >= 0.9 and result.twin_scores.asr < 0.1
    assert result.scores.acc > result.twin_scores.acc - 0.05
    assert int(result.scores.intervals["asr"].count) == len(result.test), "every class counts"


def test_source_specific_takes_hold_on_its_sources_and_leaves_the_others_alone():
    attack = BadNets(target=3, size=2, mode="source-specific", sources=(1, 4))
    result = planted(attack, 0.1, recipe=QUICK)
    assert result.planted.poisoned == result.planted.covered == 100
    assert result.scores.asr >= 0.9 and result.twin_scores.asr < 0.2
    assert result.scores.acc > result.twin_scores.acc - 0.03
    labels = result.test.labels
    others = (labels != 1) & (labels != 4) & (labels != 3)
    innocent = result.test.subset(torch.nonzero(others).flatten())
    answers = evaluate(result.classifier, innocent, BadNets(target=3, size=2))
    assert answers.asr < 0.1 and answers.ra > 0.9, "the trigger does nothing on other classes"
