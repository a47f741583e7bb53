"""Old and new network on fresh images: figures by hand, the pattern, and what controls tell."""

import pytest
import torch
from torch import nn

from bezoar.classifier import Classifier
from bezoar.images import ImageSet
from bezoar.methods.fred_comparing import Compared, compared, control_sentence, with_pattern
from bezoar.methods.universal_pattern import Ascent
from bezoar.metrics import rate


def linear(weight, bias=(0.0, 0.0)):
    """A network of two pixels and two classes."""
    layer = nn.Linear(2, 2)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(weight))
        layer.bias.copy_(torch.tensor(bias))
    network = nn.Sequential(nn.Flatten(), layer).eval()
    return Classifier(network, mean=0.0, std=1.0, input_size=(1, 2)).trace((1, 1, 2))


def pixels(*pairs):
    return ImageSet(torch.tensor(pairs, dtype=torch.uint8).view(-1, 1, 1, 2))


BRIGHTER = linear([[1.0, 0.0], [0.0, 1.0]])  # the class of the brighter pixel


def test_the_three_shares_are_those_counted_by_hand():
    fresh = pixels((200, 0), (0, 200), (200, 100), (100, 200), (0, 250))
    shown = pixels((0, 200), (0, 250), (100, 200), (90, 250), (0, 255))  # 2 of 5 change sides
    sure = linear([[1.0, 0.0], [0.0, 1.0]], (0.5, 0.0))  # class 0, unless 128 steps darker
    found = compared(BRIGHTER, sure, fresh, shown)
    # old 0 1 0 1 1 and, shown, 1 1 1 1 1; new 0 1 0 0 1 and, shown, 1 1 0 1 1
    assert (found.agreement.value, found.agreement.count) == (0.8, 5)
    assert found.before.value == 0.4 and found.after.value == 0.4
    record = found.as_record(real=True)
    assert record["agreement"]["synthetic"]["value"] == 0.8
    assert record["insensitivity"]["before"]["value"] == 0.4
    assert record["measured_on"]["images"] == "public images that took no part"
    assert found.as_record(real=False)["measured_on"]["images"] == "fresh generated images"
    assert found.as_control()["changed"] == found.after.as_record()


def test_a_network_beside_itself_agrees_and_is_moved_as_before():
    fresh, shown = pixels((200, 0), (0, 200)), pixels((0, 200), (0, 250))
    found = compared(BRIGHTER, BRIGHTER.copy(), fresh, shown)
    assert found.agreement.value == 1 and found.before == found.after


def test_the_pattern_is_one_for_all_images_within_its_radius(digits):
    ascent = Ascent(steps=5, batch_size=32, radius=0.1)
    fresh = digits.clean.subset(range(40))
    digits.planted.trace(digits.clean.shape)
    state = [tensor.clone() for tensor in digits.planted.network.state_dict().values()]
    global_state = torch.get_rng_state()
    shown = with_pattern(digits.planted, digits.clean.subset(range(40, 90)), fresh, ascent, seed=0)
    after = digits.planted.network.state_dict().values()
    assert all(map(torch.equal, state, after))
    assert torch.equal(torch.get_rng_state(), global_state)
    change = shown.images.int() - fresh.images.int()
    # Where no image is clipped, all move by the same whole number of steps.
    inner = (shown.images > 0).all(0) & (shown.images < 255).all(0)
    assert (change.amax(0) - change.amin(0))[inner].abs().max() <= 1
    least_clipped = change.abs().amax(0).float() / 255
    assert 0 < least_clipped.square().mean().sqrt() <= 0.1 + 1 / 255
    again = with_pattern(digits.planted, digits.clean.subset(range(40, 90)), fresh, ascent, seed=0)
    assert torch.equal(again.images, shown.images)


def test_the_pattern_moves_more_answers_than_noise_of_its_size(digits):
    fresh = digits.clean.subset(range(100))
    digits.planted.trace(digits.clean.shape)
    shown = with_pattern(
        digits.planted, digits.clean.subset(range(100, 300)), fresh, Ascent(radius=0.2), seed=0
    )
    drawn = torch.Generator().manual_seed(0)
    noise = 0.2 * 255 * torch.randn(fresh.images.shape, generator=drawn)
    noisy = ImageSet((fresh.images + noise).clamp(0, 255).round().byte())
    moved, by_noise = (
        compared(digits.planted, digits.planted, fresh, there).before.value
        for there in (shown, noisy)
    )
    assert moved > by_noise + 0.2


# -- controls --------------------------------------------------------------------------------------

GOOD = Compared(rate(90, 100), rate(80, 100), rate(10, 100))


def control(samples, kept, moved):
    found = Compared(rate(kept, 100), rate(80, 100), rate(moved, 100))
    return {"samples": samples} | found.as_control()


@pytest.mark.parametrize(
    ("kept", "moved", "equal"),
    [(91, 9, True), (95, 2, True), (84, 16, True), (60, 10, False), (90, 50, False)],
)
def test_a_control_did_as_well_if_both_intervals_meet(kept, moved, equal):
    said = control_sentence(GOOD, [control("random", kept, moved)])
    assert said.startswith("The same removal on random images of the generator did") is equal
    assert said.startswith("No control did as well") is not equal


def test_only_controls_that_did_as_well_are_named():
    controls = [control("random", 90, 10), control("public", 50, 10), control("pixels", 92, 12)]
    said = control_sentence(GOOD, controls)
    assert "random images of the generator and on images searched in pixels did" in said
    assert "public" not in said
