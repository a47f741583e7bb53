"""FT-SAM: the worst weights nearby in closed form, and whole trainings against one by hand."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from msgspec.structs import replace

from bezoar import networks
from bezoar.classifier import Classifier
from bezoar.errors import InputError
from bezoar.images import ImageSet
from bezoar.methods import FTSAM, FineTuning
from bezoar.methods.ft_sam import uphill
from bezoar.training import Recipe

PLAIN = Recipe(
    epochs=1, batch_size=4, learning_rate=0.1, schedule="constant", momentum=0.0, weight_decay=0.0
)


def few(count=12):
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count, 1, 8, 8), dtype=torch.uint8, generator=generator)
    return ImageSet(pixels, torch.arange(count) % 10)


def built():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = networks.build("small-cnn", width=4)
    return Classifier(network, mean=0.3, std=0.35)


def flat(tensors):
    return torch.cat([t.flatten() for t in tensors])


# -- the way ---------------------------------------------------------------------------------------

WEIGHTS = {"a": torch.tensor([1.0, -2.0, 0.0]), "b": torch.tensor([[3.0, 0.5]])}
GRADIENTS = {"a": torch.tensor([0.5, 1.0, 4.0]), "b": torch.tensor([[-1.0, 2.0]])}


def test_the_adaptive_way_is_the_papers_formula_over_all_tensors():
    found = uphill(WEIGHTS, GRADIENTS, rho=2.0, adaptive=True)
    # |theta| g = 0.5, 2, 0, 3, 1
    norm = math.sqrt(0.25 + 4 + 0 + 9 + 1)
    wanted = torch.tensor([0.5, 4.0, 0.0, -9.0, 0.5]) * 2 / norm
    torch.testing.assert_close(flat(found.values()), wanted)


def test_the_plain_way_has_length_rho_and_the_direction_of_the_gradient():
    found = flat(uphill(WEIGHTS, GRADIENTS, rho=0.3, adaptive=False).values())
    slope = flat(GRADIENTS.values())
    torch.testing.assert_close(found, 0.3 * slope / slope.norm())


def test_no_way_within_rho_climbs_more_to_first_order():
    """Against ten thousand others on the ellipsoid ||T^-1 e|| = rho."""
    theta, g = flat(WEIGHTS.values()), flat(GRADIENTS.values())
    best = flat(uphill(WEIGHTS, GRADIENTS, rho=2.0, adaptive=True).values())
    drawn = torch.randn(10_000, len(theta), generator=torch.Generator().manual_seed(0))
    others = 2.0 * drawn / drawn.norm(dim=1, keepdim=True) * theta.abs()
    moves = theta != 0
    assert float((best[moves] / theta[moves]).norm()) == pytest.approx(2.0)
    assert float(best @ g) >= float((others @ g).max())


def test_the_worst_point_of_a_quadratic_lies_where_it_is_known_to():
    """L = 1/2 k |theta|^2 has gradient k theta, so that the plain way only scales theta."""
    theta = torch.tensor([3.0, 4.0])
    for k in (0.1, 7.0):
        found = uphill({"t": theta}, {"t": k * theta}, rho=1.0, adaptive=False)["t"]
        torch.testing.assert_close(theta + found, theta * (1 + 1 / 5))
        adaptive = uphill({"t": theta}, {"t": k * theta}, rho=1.0, adaptive=True)["t"]
        torch.testing.assert_close(adaptive, theta**3 / theta.square().norm())


@pytest.mark.parametrize("adaptive", [True, False])
def test_a_gradient_of_zero_moves_nothing(adaptive):
    zero = {name: torch.zeros_like(value) for name, value in WEIGHTS.items()}
    found = flat(uphill(WEIGHTS, zero, rho=2.0, adaptive=adaptive).values())
    assert torch.equal(found, torch.zeros(5))


# -- the training ----------------------------------------------------------------------------------


def trained_by_hand(classifier, images, *, rho, adaptive, seed):
    """Plain SGD with two passes a step, weights moved in place and moved back."""
    model = copy.deepcopy(classifier)
    network = model.network.train()
    parameters = list(network.parameters())
    generator = torch.Generator().manual_seed(seed)
    for batch, labels in images.batches(4, generator=generator):
        F.cross_entropy(model(batch), labels).backward()
        slopes = [p.grad.clone() for p in parameters]
        before = [p.detach().clone() for p in parameters]
        statistics = {name: value.clone() for name, value in network.named_buffers()}
        scales = [p.detach().abs() if adaptive else torch.ones_like(p) for p in parameters]
        norm = flat([s * g for s, g in zip(scales, slopes, strict=True)]).norm()
        with torch.no_grad():
            for p, s, g in zip(parameters, scales, slopes, strict=True):
                p += rho * s**2 * g / norm
        network.zero_grad()
        F.cross_entropy(model(batch), labels).backward()
        with torch.no_grad():
            for p, old in zip(parameters, before, strict=True):
                p.copy_(old - 0.1 * p.grad)
            for name, value in network.named_buffers():
                value.copy_(statistics[name])
        network.zero_grad()
    return model


@pytest.mark.parametrize(("rho", "adaptive"), [(2.0, True), (0.05, False)])
def test_a_training_is_the_same_as_one_by_hand(rho, adaptive):
    classifier, images = built(), few()
    method = FTSAM(rho=rho, adaptive=adaptive, recipe=PLAIN, augment="recipe")
    repaired = method.remove(classifier, images, seed=5).classifier.network.state_dict()
    wanted = trained_by_hand(classifier, images, rho=rho, adaptive=adaptive, seed=5)
    for name, value in wanted.network.state_dict().items():
        torch.testing.assert_close(repaired[name], value, rtol=1e-4, atol=1e-5)
    tracked = [value for name, value in repaired.items() if name.endswith("batches_tracked")]
    assert tracked and all(int(value) == 3 for value in tracked)


def test_a_rho_of_zero_is_plain_fine_tuning():
    classifier, images = built(), few()
    ours = FTSAM(rho=0.0, recipe=PLAIN, augment="recipe").remove(classifier, images, seed=2)
    plain = FineTuning(recipe=PLAIN).remove(classifier, images, seed=2)
    theirs = plain.classifier.network.state_dict()
    for name, value in ours.classifier.network.state_dict().items():
        torch.testing.assert_close(value, theirs[name], rtol=1e-5, atol=1e-6)


def test_label_smoothing_counts():
    """A loss of one's own once went without it."""
    classifier, images = built(), few()
    made = [
        FTSAM(recipe=recipe, augment="recipe").remove(classifier, images).classifier.network
        for recipe in (PLAIN, replace(PLAIN, label_smoothing=0.3))
    ]
    assert not torch.equal(made[0].fc.weight, made[1].fc.weight)


def test_a_rho_that_breaks_the_network_is_said(digits):
    method = FTSAM(rho=100.0, recipe=Recipe(epochs=2, batch_size=32), augment="recipe")
    flags = method.remove(digits.planted, digits.clean).record["flags"]
    assert len(flags) == 1 and "rho is too large for this network" in flags[0]
    kept = replace(method, rho=0.5).remove(digits.planted, digits.clean)
    assert kept.record["flags"] == []
    assert kept.record["accuracy"]["after"] > 0.95


@pytest.mark.parametrize("rho", [-0.1, float("nan"), float("inf")])
def test_a_rho_that_is_no_distance_is_refused(rho):
    with pytest.raises(InputError, match=r"rho is .*; expected a finite distance"):
        FTSAM(rho=rho)


def test_the_published_preset_is_the_ports():
    method = FTSAM.published()
    assert (method.rho, method.adaptive, method.augment) == (2.0, True, "recipe")
    recipe = method.recipe
    assert (recipe.epochs, recipe.batch_size, recipe.learning_rate) == (100, 256, 0.01)
    assert (recipe.label_smoothing, recipe.weight_decay, recipe.momentum) == (0.1, 5e-4, 0.9)
