"""Families of patterns: where they lie, how large they are, and how they share a batch."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bezoar.errors import InputError
from bezoar.methods.dhbe_patterns import PatternFamily, fitting_sizes, mixed_stamps
from bezoar.networks.pattern_generators import PatternGenerator

IMAGE = (9, 12)


def family(size, *, each=True, scale=1.0, seed=0, image=IMAGE, channels=2):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        generator = PatternGenerator(channels, size, latent=6, width=4)
    return PatternFamily(
        generator,
        image,
        scale=scale * torch.ones(channels, 1, 1),
        each=each,
        learning_rate=1e-3,
        device=torch.device("cpu"),
        seed=seed,
    )


def boxes(stamps):
    """Of each stamp, the window that is not zero: top, left, height, width."""
    found = []
    for stamp in stamps:
        rows, columns = (stamp != 0).any(0).nonzero().unbind(1)
        corner = (int(rows.min()), int(columns.min()))
        found.append((*corner, int(rows.max()) + 1 - corner[0], int(columns.max()) + 1 - corner[1]))
    return found


@pytest.mark.parametrize("each", [True, False])
def test_small_patterns_are_windows_somewhere(each):
    (stamps,) = family(3, each=each).stamps(40)
    assert stamps.shape == (40, 2, *IMAGE)
    found = boxes(stamps)
    assert {box[2:] for box in found} == {(3, 3)}
    assert (
        (len({box[:2] for box in found}) > 10) if each else (len({box[:2] for box in found}) == 1)
    )
    assert len({tuple(stamp[stamp != 0].tolist()) for stamp in stamps}) == 40  # each its own


def test_the_scale_is_that_of_the_images():
    small, large = (family(3, scale=scale).stamps(16)[0] for scale in (1.0, 5.0))
    assert torch.allclose(5 * small, large) and 0.3 < float(small.detach().abs().amax()) < 1
    whole = (small**2).sum() / (small != 0).sum()
    assert 0.2 < float(whole.detach()) < 0.6  # tanh of standard normal numbers: E p² = 0.39


def test_a_large_family_covers_the_image_with_no_more_than_sigma_a_channel():
    sigma, std = 25.0, torch.tensor([0.2, 0.4]).view(2, 1, 1)
    scale = sigma / (IMAGE[0] * IMAGE[1]) / std
    (stamps,) = family(IMAGE, scale=scale).stamps(16)
    masses = (stamps.detach() * std).abs().sum((2, 3))
    assert float(masses.max()) <= sigma and float(masses.min()) > 0.3 * sigma
    assert (stamps != 0).float().mean() > 0.99


def test_batches_made_together_are_those_made_apart():
    apart, together = family(3), family(3)
    first, second = apart.stamps(5, 3), together.stamps(5, 3, together=True)
    for one, other in zip(first, second, strict=True):
        assert torch.allclose(one, other, atol=1e-5)
    assert not torch.allclose(first[0], first[1], atol=1e-2)
    for one, other in zip(
        apart.generator.state_dict().values(), together.generator.state_dict().values(), strict=True
    ):
        assert torch.allclose(one.double(), other.double(), atol=1e-5)


def test_families_share_a_batch_evenly_and_each_keeps_its_draws():
    sizes = (2, 3, 4)
    mixed = mixed_stamps([family(size, seed=size) for size in sizes], 8, 2)
    assert [len(batch) for batch in mixed] == [8, 8]
    for batch in mixed:
        assert [box[2] for box in boxes(batch)] == [2, 2, 2, 3, 3, 3, 4, 4]
    alone = family(3, seed=3).stamps(3, 2)
    assert all(torch.equal(batch[3:6], part) for batch, part in zip(mixed, alone, strict=True))


def test_every_family_learns_from_the_shared_batch():
    families = [family(2, seed=1), family(IMAGE, seed=2)]
    (batch,) = mixed_stamps(families, 6)
    (batch**3).sum().backward()
    for each in families:
        assert each.generator.last.weight.grad.abs().max() > 0


def test_a_share_of_one_image_is_refused():
    families = [family(2), family(3)]
    assert len(mixed_stamps(families, 4)[0]) == 4
    with pytest.raises(InputError, match=r"batch of 3 is shared by 2 families.*at least 4"):
        mixed_stamps(families, 3)


def test_a_family_repeats_with_its_seed():
    first, second = family(3, seed=4), family(3, seed=4)
    assert all(map(torch.equal, first.stamps(4, 2), second.stamps(4, 2)))
    assert not torch.equal(first.stamps(4)[0], first.stamps(4)[0])


@settings(max_examples=60, deadline=None, derandomize=True)
@given(height=st.integers(1, 400), width=st.integers(1, 400))
def test_fitting_sizes_fit_and_grow(height, width):
    sizes = fitting_sizes((height, width))
    assert sizes == fitting_sizes((width, height)) == tuple(sorted(set(sizes)))
    assert 1 <= len(sizes) <= 2 and sizes[0] >= 1 and sizes[-1] <= min(height, width)
    larger = fitting_sizes((height + 1, width + 1))
    assert larger[0] >= sizes[0] and larger[-1] >= sizes[-1]
