"""The pictures of recovered triggers, with the attack's own patch as what was recovered."""

import numpy as np
import pytest
import torch

from bezoar.images import ImageSet
from bezoar.methods import Evidence
from bezoar.methods.generated_trigger import GeneratedTrigger
from bezoar.methods.neural_cleanse_triggers import Triggers
from bezoar.report.trigger_pictures import one_of_each, triggers


def evidence(classes, carried=None, method="neural-cleanse"):
    """The 2x2 patch of the fixture's attack, for each of ``classes``."""
    mask, pattern = torch.zeros(2, len(classes), 1, 8, 8)
    mask[..., 6:, 6:] = 1
    pattern[..., 6:, 6:] = torch.eye(2)
    count = (1,) * len(classes)
    found = Triggers(
        classes=tuple(classes),
        masks=mask,
        patterns=pattern,
        norms=mask.flatten(1).sum(1),
        success=torch.ones(len(classes)),
        counted=count,
        penalties=(1.0,) * len(classes),
        epochs=count,
        passes=1,
    )
    blank = (0.0,) * 10
    return Evidence(method, "", blank, blank, blank, "", carried, recovered=found)


def test_a_suspect_s_trigger_is_shown_and_tried_on_the_user_s_images(digits):
    shares = tuple(0.875 if k == 4 else 0.1 for k in range(10))
    seen = evidence(range(10), shares)
    trigger, stamped = triggers(digits.planted, digits.clean, [seen], [4])
    assert trigger.title == "Trigger recovered for class 4 by neural-cleanse"
    assert "adds up to 4.0 of 64 pixels. It works on 87.5 % of the held-out" in trigger.caption
    assert trigger.captions == ("mask", "pattern", "mask × pattern")
    mask, pattern, product = trigger.images
    assert mask.sum() == 4 * 255 and pattern.sum() == 2 * 255
    assert np.array_equal(product, pattern), "the pattern lies under the mask alone"

    others = [name for name in map(str, range(10)) if name != "4"][:8]
    assert stamped.captions == tuple(f"{name} → 4" for name in others), "the attack works"
    corner = np.array([[255, 0], [0, 255]], np.uint8)
    assert all(np.array_equal(image[6:, 6:, 0], corner) for image in stamped.images)


def test_the_twin_s_answers_stay_although_the_trigger_is_shown(digits):
    _, stamped = triggers(digits.twin, digits.clean, [evidence([4])], [4])
    assert sum(caption.endswith("→ 4") for caption in stamped.captions) == 0


def generated(generator, classes=(4,), bound=None, carried=None):
    blank = (0.0,) * 10
    found = GeneratedTrigger(tuple(classes), generator, bound)
    return Evidence("bti-dbf", "", blank, blank, blank, "", carried, recovered=found)


def test_a_generated_trigger_is_shown_by_what_it_does(digits):
    shares = tuple(0.875 if k == 4 else 0.1 for k in range(10))
    seen = generated(digits.attack.stamp, carried=shares)
    plain, stamped, change = triggers(digits.planted, digits.clean, [seen], [4])
    assert plain.title == "Trigger recovered for class 4 by bti-dbf: images without it"
    others = [name for name in map(str, range(10)) if name != "4"][:8]
    assert plain.captions == tuple(others)
    assert stamped.captions == tuple(f"{name} → 4" for name in others)
    assert "It works on 87.5 % of the held-out images" in stamped.caption
    moved = stamped.images.astype(int) - plain.images
    assert abs(moved).max() > 128, "a patch, so that nothing has to be amplified"
    assert "The difference, not amplified; grey is unchanged" in change.caption
    assert (change.images[:, :6] == 128).all() and change.images[moved > 0].min() > 128
    rms = np.sqrt((moved**2).mean((1, 2, 3)))
    assert change.captions == tuple(f"{value:.1f}" for value in rms)


def test_a_faint_change_is_amplified_and_says_by_how_much(digits):
    pattern = torch.zeros(1, 8, 8)
    pattern[0, 3:5, 3:5] = 0.02
    _, stamped, change = triggers(
        digits.planted, digits.clean, [generated(lambda x: (x - pattern).abs())], [4]
    )
    assert "The difference, 25 times amplified" in change.caption
    inside = change.images[:, 3:5, 3:5]
    assert set(np.unique(inside)) == {0, 255}, "half of the range, either way"
    assert "held-out" not in stamped.caption, "no share was measured"
    still = triggers(digits.planted, digits.clean, [generated(lambda x: x)], [4])[2]
    assert (still.images == 128).all() and "100 times amplified" in still.caption
    assert set(still.captions) == {"0.0"}


def test_a_generated_trigger_needs_images_and_a_suspect_of_its_classes(digits):
    seen = generated(digits.attack.stamp, classes=(4, 7))
    assert triggers(digits.planted, digits.clean, [seen], [2]) == []
    assert len(triggers(digits.planted, digits.clean, [seen], [4, 7])) == 6
    fours = digits.clean.subset(torch.nonzero(digits.clean.labels == 4).flatten())
    answered = digits.planted.logits(fours).argmax(1) == 4
    only = ImageSet(fours.images[answered], fours.labels[answered])
    assert triggers(digits.planted, only, [seen], [4]) == []


def test_only_what_was_recovered_for_a_suspect_is_shown(digits):
    def titles(witnesses, suspects, **options):
        rows = triggers(digits.planted, digits.clean, witnesses, suspects, **options)
        return [row.title for row in rows if row.title.startswith("Trigger")]

    blank = (0.0,) * 10
    blind = Evidence("tac", "", blank, blank, blank, "")
    first, second = evidence([4, 7]), evidence([4], method="rnp")
    assert titles([blind], [4]) == titles([first], []) == titles([second], [7]) == []
    assert titles([blind, first, second], [4, 7]) == [
        "Trigger recovered for class 4 by neural-cleanse",
        "Trigger recovered for class 4 by rnp",
        "Trigger recovered for class 7 by neural-cleanse",
    ]
    assert len(titles([first], [4, 7], most=1)) == 1
    (trigger, _) = triggers(digits.planted, digits.clean, [second], [4])
    assert "held-out" not in trigger.caption, "no share was measured"


def test_colours_and_images_of_one_class_are_no_obstacle(digits):
    fours = digits.clean.subset(torch.nonzero(digits.clean.labels == 4).flatten())
    answered = digits.planted.logits(fours).argmax(1) == 4
    only = ImageSet(fours.images[answered], fours.labels[answered])
    (trigger,) = triggers(digits.planted, only, [evidence([4])], [4])
    assert trigger.images.shape == (3, 8, 8, 1)


@pytest.mark.parametrize(
    ("answers", "most", "chosen"),
    [
        ([3, 3, 1, 0, 1, 3], 4, [2, 0, 4, 1]),  # first one of each class, then the second ones
        ([3, 3, 1, 0, 1, 3], 8, [2, 0, 4, 1, 5]),
        ([0, 0], 8, []),
        ([], 8, []),
    ],
)
def test_images_are_taken_from_each_class_in_turns(answers, most, chosen):
    assert one_of_each(torch.tensor(answers), 0, most).tolist() == chosen
