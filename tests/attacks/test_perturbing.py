import pytest
import torch

from bezoar.attacks.perturbing import perturb


def some(count=6):
    return torch.rand(count, 3, 4, 4, generator=torch.Generator().manual_seed(0))


def towards(goal):
    return lambda images: (images - goal).square().sum()


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_it_stays_in_the_ball_and_in_the_range_and_leaves_its_input(norm):
    images = some()
    before = images.clone()
    away = perturb(images, lambda x: -x.sum(), norm=norm, epsilon=0.3, step=0.2, steps=9)
    moved = (away - images).flatten(1)
    sizes = moved.abs().amax(1) if norm == "linf" else moved.norm(dim=1)
    assert torch.equal(images, before)
    assert bool((sizes <= 0.3 + 1e-6).all()) and bool((sizes > 0.2).all())
    assert float(away.min()) >= 0 and float(away.max()) <= 1
    assert not away.requires_grad


def test_the_largest_step_in_each_norm_has_a_closed_form():
    grey, slope = torch.full((1, 1, 1, 2), 0.5), torch.tensor([3.0, -4.0])
    linf = perturb(grey, lambda x: (x * slope).sum(), norm="linf", epsilon=0.1, step=1.0, steps=1)
    assert torch.allclose(linf - grey, torch.tensor([-0.1, 0.1]))
    l2 = perturb(grey, lambda x: (x * slope).sum(), norm="l2", epsilon=0.1, step=1.0, steps=1)
    assert torch.allclose(l2 - grey, torch.tensor([-0.06, 0.08]))


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_it_reaches_a_goal_inside_the_ball(norm):
    images = 0.25 + 0.5 * some()
    goal = images + 0.05 * some().sub(0.5).sign()
    found = perturb(images, towards(goal), norm=norm, epsilon=0.5, step=0.01, steps=90)
    assert float((found - goal).abs().max()) < 0.02


def test_an_image_does_not_depend_on_its_neighbours():
    goal = torch.zeros(())
    together = perturb(some(), towards(goal), norm="l2", epsilon=0.5, step=0.1, steps=4)
    alone = perturb(some()[2:3], towards(goal), norm="l2", epsilon=0.5, step=0.1, steps=4)
    assert torch.allclose(together[2:3], alone, atol=1e-6)


def test_a_flat_objective_moves_nothing_and_no_images_are_no_images():
    flat = perturb(some(), lambda x: 0 * x.sum(), norm="l2", epsilon=1.0, step=1.0, steps=2)
    assert torch.equal(flat, some())
    none = perturb(some()[:0], lambda x: x.sum(), norm="linf", epsilon=1.0, step=1.0, steps=2)
    assert none.shape == (0, 3, 4, 4)
