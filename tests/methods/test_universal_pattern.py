"""The universal pattern: its ball, its labels, its batches, and what is read off it."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from torch import nn

from bezoar.errors import InputError
from bezoar.images import ImageSet
from bezoar.methods.indexed_batches import answered, endless_batches, in_order, pixels
from bezoar.methods.pattern_effect import effect_of
from bezoar.methods.universal_pattern import Ascent, universal_ascent


def draws(seed=0):
    return torch.Generator().manual_seed(seed)


def images(count=30, shape=(2, 4, 4), classes=3):
    raw = torch.randint(0, 256, (count, *shape), generator=draws(), dtype=torch.uint8)
    return ImageSet(raw, torch.arange(count) % classes)


@pytest.fixture
def network():
    torch.manual_seed(0)
    body = (nn.Conv2d(2, 5, 3), nn.BatchNorm2d(5), nn.ELU(), nn.Flatten(), nn.Linear(20, 3))
    return nn.Sequential(*body).eval()


def plain(**options):
    """Settings of its own, whatever the defaults are."""
    return Ascent(**{"steps": 20, "rate": 0.1, "radius": 0.0902, "start": "zero"} | options)


def found(network, settings, seed=0, clean=None):
    return universal_ascent(network, clean or images(), settings, draws(seed))


# -- the ball --------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", ["unit", "sgd", "adam"])
@pytest.mark.parametrize("projection", ["every step", "end"])
def test_the_pattern_stays_in_the_ball_and_reaches_its_border(network, optimizer, projection):
    rate = {"unit": 0.5, "sgd": 10.0, "adam": 1.0}[optimizer]
    how = plain(steps=12, batch_size=8, optimizer=optimizer, rate=rate, projection=projection)
    norm = float(found(network, how).pattern.norm())
    longest = how.radius * math.sqrt(32)
    assert norm == pytest.approx(longest, rel=1e-5)
    assert norm <= longest * (1 + 1e-6)


def test_every_step_is_projected_not_only_the_last(network):
    how = plain(steps=6, batch_size=8, rate=3.0)
    shown = []

    def watched(x):
        if x.requires_grad:
            shown.append(x.detach())
        return network(x)

    clean = images(count=8)
    found(watched, replace(how, clamp=False), clean=clean)
    whole = pixels(clean, torch.arange(8)).flatten(1)
    for batch in shown[1:]:  # a pattern moves every image alike, so one image tells its length
        moved = (batch.flatten(1)[0] - whole).norm(dim=1).min()
        assert float(moved) <= how.radius * math.sqrt(32) * (1 + 1e-5)
    assert len(shown) == how.steps + 1


def test_without_a_projection_it_leaves_the_ball(network):
    how = plain(steps=12, batch_size=8, optimizer="sgd", rate=30.0, projection="none")
    assert float(found(network, how).pattern.norm()) > 2 * how.radius * math.sqrt(32)


@settings(derandomize=True, max_examples=15, deadline=None)
@given(st.floats(1e-3, 10), st.integers(0, 100))
def test_projection_is_the_nearest_point(radius, seed):
    how = Ascent(radius=radius)
    pattern = torch.randn(3, 4, 4, generator=draws(seed))
    projected = how.project(pattern)
    longest = radius * math.sqrt(48)
    if float(pattern.norm()) <= longest:
        torch.testing.assert_close(projected, pattern)
    else:
        assert float(projected.norm()) == pytest.approx(longest, rel=1e-5)
        torch.testing.assert_close(projected / projected.norm(), pattern / pattern.norm())


def test_the_radius_suits_every_size():
    for side in (8, 32, 64):
        pattern = Ascent(radius=0.1).project(torch.ones(3, side, side))
        assert float(pattern.square().mean().sqrt()) == pytest.approx(0.1, rel=1e-5)
    assert Ascent.published().radius * math.sqrt(3072) == pytest.approx(10)


# -- the steps -------------------------------------------------------------------------------------


def test_the_published_pass_is_plain_gradient_descent_in_order(network):
    clean, how = images(count=25), replace(Ascent.published(), batch_size=10, radius=0.2)
    x = clean.images.float() / 255
    y = network(x).argmax(1)
    delta = torch.zeros(2, 4, 4)
    for start in (0, 10, 20):
        delta.requires_grad_(True)
        value = F.cross_entropy(network(x[start : start + 10] + delta), y[start : start + 10])
        loss = -value + 0.001 * delta.norm() ** 2 if start else -value
        (slope,) = torch.autograd.grad(loss, delta)
        delta = (delta - 10 * slope).detach()
    delta *= min(1, 0.2 * math.sqrt(32) / float(delta.norm()))
    torch.testing.assert_close(found(network, how, clean=clean).pattern, delta)


def test_unit_steps_have_the_length_that_they_should(network):
    how = plain(steps=1, rate=0.1, batch_size=30)
    one = found(network, how)
    assert float(one.pattern.norm()) == pytest.approx(0.1 * how.radius * math.sqrt(32), rel=1e-5)
    assert len(one.cross_entropy) == 2
    assert one.cross_entropy[1] > one.cross_entropy[0]


def test_the_best_pattern_is_kept_not_the_last():
    """Answers turn as δ grows to 0.3 in every value, and back as it grows on: steps overshoot."""
    shown = []

    def logits(x):
        shown.append(x.detach())
        signal = x.flatten(1).mean(1)
        return torch.stack(
            (torch.full_like(signal, 0.5), 9 * (signal - (signal - 0.3).relu() * 2)), 1
        )

    clean = ImageSet(torch.zeros(4, 1, 2, 2, dtype=torch.uint8))
    how = plain(steps=4, batch_size=4, radius=1.0, rate=0.25, clamp=False)
    one = universal_ascent(logits, clean, how, draws())
    best = max(range(5), key=one.cross_entropy.__getitem__)
    assert best not in (0, 4), "the case tells the best from the first and the last"
    torch.testing.assert_close(one.pattern, shown[1 + best][0])
    last = universal_ascent(logits, clean, replace(how, projection="none"), draws())
    assert not torch.equal(last.pattern, one.pattern)


def test_a_random_start_is_short_and_another_each_time(network):
    generator = draws()
    how = plain(steps=1, rate=1e-9, start="random", batch_size=30)
    clean = images()
    first, second = (universal_ascent(network, clean, how, generator).pattern for _ in range(2))
    for one in (first, second):
        share = float(one.norm()) / (how.radius * math.sqrt(32))
        assert 0.05 < share < 0.15
    assert not torch.equal(first, second)


def test_no_gradient_no_step():
    clean = images(classes=3)
    flat = universal_ascent(
        lambda x: torch.zeros(len(x), 3) + 0 * x.flatten(1)[:, :3], clean, plain(), draws()
    )
    assert torch.equal(flat.pattern, torch.zeros(2, 4, 4))


# -- labels ----------------------------------------------------------------------------------------


def test_the_ascent_leads_away_from_the_network_s_own_answers(network):
    clean = images()
    own = ImageSet(clean.images, network(clean.images.float() / 255).argmax(1))
    assert not torch.equal(own.labels, clean.labels)
    how = plain(batch_size=10)
    model = found(network, how, clean=clean).pattern
    assert torch.equal(model, found(network, how, clean=own).pattern)
    assert torch.equal(model, found(network, how, clean=ImageSet(clean.images)).pattern)
    given_labels = replace(how, labels="given")
    assert torch.equal(model, found(network, given_labels, clean=own).pattern)
    assert not torch.equal(model, found(network, given_labels, clean=clean).pattern)
    with pytest.raises(InputError, match="needs labelled images"):
        found(network, given_labels, clean=ImageSet(clean.images))


def test_it_reads_the_network_and_repeats_itself(network):
    before = {k: v.clone() for k, v in network.state_dict().items()}
    first, second, third = (found(network, plain(batch_size=8), seed=s).pattern for s in (1, 1, 2))
    assert torch.equal(first, second) and not torch.equal(first, third)
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())


@pytest.mark.parametrize(
    "wrong",
    [{"steps": -1}, {"batch_size": 0}, {"rate": 0.0}, {"radius": -1.0}, {"penalty": float("inf")}],
)
def test_settings_that_mean_nothing_are_refused(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        Ascent(**wrong)


# -- batches ---------------------------------------------------------------------------------------


@settings(derandomize=True, max_examples=20, deadline=None)
@given(st.integers(1, 40), st.integers(1, 12))
def test_a_pass_in_order_has_every_image_once(count, size):
    rows = list(in_order(count, size))
    assert torch.cat(rows).tolist() == list(range(count))
    assert all(len(row) == size for row in rows[:-1])


@settings(derandomize=True, max_examples=20, deadline=None)
@given(st.integers(1, 40), st.integers(1, 12))
def test_endless_batches_go_through_all_images_in_new_orders(count, size):
    rows = list(itertools.islice(endless_batches(count, size, draws()), 60))
    assert all(2 * len(row) >= min(size, count) for row in rows)
    assert all(len(set(row.tolist())) == len(row) for row in rows)
    if count >= 2 * size or count % size == 0:
        assert set(torch.cat(rows).tolist()) == set(range(count))


# -- what is read off a pattern --------------------------------------------------------------------


def test_the_effect_is_counted_as_it_says():
    """Class 0 below a mean of 0.5, class 1 above it, and class 2 from 0.9 on."""

    def logits(x):
        m = x.flatten(1).mean(1)
        return torch.stack((-(m - 0.25).abs(), -(m - 0.75).abs(), -(m - 1.05).abs()), 1)

    levels = torch.tensor([20, 60, 120, 150, 200, 250], dtype=torch.uint8)
    clean = ImageSet(levels.view(-1, 1, 1, 1).expand(-1, 1, 2, 2).contiguous())
    assert answered(logits, clean).tolist() == [0, 0, 0, 1, 1, 2]
    pattern = torch.full((1, 2, 2), 80 / 255)
    effect = effect_of(logits, clean, pattern, Ascent(clamp=False))
    # 100, 140, 200, 230, 280, 330 of 255
    assert effect.towards == (0, 2, 2)
    assert effect.changed == pytest.approx(4 / 6)
    assert effect.target == 1
    assert effect.led == pytest.approx(2 / 4)
    assert effect.norm == pytest.approx(160 / 255)
    shown = logits(clean.images.float() / 255 + pattern)
    wanted = F.cross_entropy(shown, torch.tensor([0, 0, 0, 1, 1, 2]))
    assert effect.cross_entropy == pytest.approx(float(wanted))
    record = effect.as_record(("a", "b", "c"))
    assert (record["suspected_target"], record["suspected_class"]) == (1, "b")
    assert record["target_share"] == 0.5


def test_no_target_is_named_where_nothing_changes(network):
    effect = effect_of(network, images(), torch.zeros(2, 4, 4), Ascent())
    record = effect.as_record(("a", "b", "c"))
    assert effect.changed == 0 and effect.led == 0
    assert record["suspected_target"] is record["suspected_class"] is record["target_share"] is None
