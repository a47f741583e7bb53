"""Feature shift tuning: the sphere the head stays on, the push, the drawn head, and the flags."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from bezoar import networks
from bezoar.classifier import Classifier
from bezoar.errors import InputError
from bezoar.images import ImageSet
from bezoar.methods import FST, fst
from bezoar.methods.fst import AwayFromOldHead, answer_loss, draw_head
from bezoar.training import Recipe, fit

SHORT = Recipe(epochs=2, batch_size=16, learning_rate=0.05, weight_decay=0.0)


class Pointwise(nn.Module):
    """The head is a 1x1 convolution over the map, averaged afterwards."""

    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Conv2d(1, 12, 3), nn.Conv2d(12, 10, 1)

    def forward(self, x):
        return self.head(self.body(x).relu()).mean((2, 3))


HEADS = {
    "linear": lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 10)),
    "no bias": lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 10, bias=False)),
    "pointwise": Pointwise,
}


def built(kind="linear", seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        classifier = Classifier(HEADS[kind](), mean=0.3, std=0.35)
    return classifier.trace((1, 8, 8))


@pytest.fixture(scope="module")
def few(digits):
    return digits.clean.sample(48, seed=0)


def head_of(classifier):
    return classifier.network.get_parameter(classifier.head.name)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


# -- the maths -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", HEADS)
def test_the_push_is_alpha_times_the_inner_product_and_its_gradient_the_old_head(kind):
    classifier = built(kind)
    old = head_of(classifier).detach().clone()
    away = AwayFromOldHead(classifier, alpha=0.3)
    draw_head(classifier, generator())
    value = away.penalty(classifier)
    slow = sum(a * b for a, b in zip(head_of(classifier).flatten(), old.flatten(), strict=True))
    assert value.item() == pytest.approx(0.3 * slow.item(), abs=1e-5)
    (slope,) = torch.autograd.grad(value, head_of(classifier))
    assert torch.allclose(slope, 0.3 * old)
    assert away.norm == pytest.approx(math.sqrt(float(old.square().sum())), rel=1e-6)
    expected = F.cosine_similarity(head_of(classifier).flatten(), old.flatten(), dim=0)
    assert away.cosine() == pytest.approx(expected.item(), abs=1e-5)


def test_a_step_away_from_the_old_head_stays_on_the_sphere():
    classifier = built()
    away = AwayFromOldHead(classifier, alpha=1.0)
    with torch.no_grad():
        head_of(classifier).mul_(17.0)
    away.after_backward()
    assert head_of(classifier).norm().item() == pytest.approx(away.norm, rel=1e-6)
    assert away.cosine() == pytest.approx(1.0)  # the projection keeps the direction


@pytest.mark.parametrize("kind", HEADS)
def test_the_norm_of_the_head_is_c_after_every_step(kind, few):
    classifier = built(kind)
    with torch.no_grad():
        head_of(classifier).mul_(3)  # as a trained one, longer than a drawn one
    away = AwayFromOldHead(classifier, alpha=0.2)
    draw_head(classifier, generator())
    norms = []

    def watched(classifier, images, labels, _generator):
        norms.append(head_of(classifier).norm().item())
        return F.cross_entropy(classifier(images), labels)

    fit(classifier, few, SHORT, seed=0, loss=watched, hook=away)
    norms.append(head_of(classifier).norm().item())
    assert len(norms) == 1 + 2 * 3
    assert norms[1:] == pytest.approx([away.norm] * 6, rel=1e-5)
    assert norms[0] != pytest.approx(away.norm, rel=0.01), "the drawn head would pass by accident"


def test_without_a_push_and_a_new_head_it_is_fine_tuning_with_projection(few, monkeypatch):
    monkeypatch.setattr(fst, "draw_head", lambda _classifier, _generator: None)
    recipe = Recipe(
        epochs=3, batch_size=48, learning_rate=0.05, weight_decay=0.0, schedule="constant"
    )
    classifier = built()
    method = FST(alpha=0.0, distillation=0.0, recipe=recipe, augment="recipe")
    repaired = method.remove(classifier, few).classifier

    plain = classifier.copy()
    weight = head_of(plain)
    optimizer = torch.optim.SGD(plain.network.parameters(), 0.05, momentum=0.9)
    for _ in range(3):  # one batch of all images: their order does not matter
        optimizer.zero_grad()
        F.cross_entropy(plain(few.images / 255), few.labels).backward()
        optimizer.step()
        with torch.no_grad():
            weight.mul_(classifier.head.weight.norm() / weight.norm())
    assert torch.allclose(head_of(repaired), weight, atol=1e-5)
    assert not torch.allclose(weight, classifier.head.weight, atol=1e-2)


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_the_answers_are_labels_or_the_original_s_or_a_mixture(share):
    classifier, original = built(seed=1), built(seed=2)
    images, labels = torch.rand(5, 1, 8, 8), torch.tensor([0, 1, 2, 3, 4])
    value = answer_loss(original, share, 2.0)(classifier, images, labels, generator())
    p = (original(images) / 2).softmax(1)
    logits = classifier(images)
    divergence = 4 * (p * (p.log() - (logits / 2).log_softmax(1))).sum(1).mean()
    ce = -logits.log_softmax(1)[range(5), labels].mean()
    assert value.item() == pytest.approx(((1 - share) * ce + share * divergence).item(), rel=1e-4)
    value.backward()
    assert all(p.grad is None for p in original.network.parameters())


# -- the new head ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "d"), [("linear", 64), ("no bias", 64), ("pointwise", 12)])
def test_the_head_and_its_bias_are_drawn_uniformly_and_nothing_else_is(kind, d):
    classifier = built(kind)
    before = {k: v.clone() for k, v in classifier.network.state_dict().items()}
    draw_head(classifier, generator(7))
    prefix = classifier.head.name.removesuffix("weight")
    for name, value in classifier.network.state_dict().items():
        if not name.startswith(prefix):
            assert torch.equal(value, before[name])
            continue
        assert not torch.equal(value, before[name])
        assert value.abs().max().item() <= 1 / math.sqrt(d)
    weight = head_of(classifier)
    assert weight.std().item() == pytest.approx(1 / math.sqrt(3 * d), rel=0.15)
    again = built(kind)
    draw_head(again, generator(7))
    assert torch.equal(head_of(again), weight)
    draw_head(again, generator(8))
    assert not torch.equal(head_of(again), weight)


def test_a_head_that_is_not_called_linear_is_found(few):
    """Public code asks for the layer's name, and finds nothing, or another layer."""
    classifier = built("pointwise")
    repair = FST(recipe=SHORT).remove(classifier, few)
    assert repair.record["head"] == "head.weight"
    norm = float(repair.classifier.head.weight.norm())
    assert norm == pytest.approx(repair.record["norm"], rel=1e-5)
    assert not torch.equal(repair.classifier.network.body.weight, classifier.network.body.weight)


def test_the_push_turns_the_head_and_the_features_move(digits, few):
    turned = FST(alpha=0.5, recipe=SHORT).remove(digits.planted, few, seed=1)
    plain = FST(alpha=0.0, recipe=SHORT).remove(digits.planted, few, seed=1)
    assert turned.record["cosine"] < plain.record["cosine"] - 0.1
    after, before = (c.network.state_dict() for c in (turned.classifier, digits.planted))
    weights = [name for name, p in digits.planted.network.named_parameters() if p.ndim == 4]
    assert weights and all(not torch.equal(after[name], before[name]) for name in weights)


def test_the_record_tells_the_norm_and_the_way_of_the_head(digits, few):
    record = FST(recipe=SHORT).remove(digits.planted, few).record
    assert record["alpha"] == pytest.approx(0.02)  # 0.2 / classes
    assert record["norm"] == pytest.approx(float(digits.planted.head.weight.norm()), rel=1e-6)
    curve = record["curves"][0]
    assert curve["x"] == [0, 1, 2] and curve["y"][-1] == record["cosine"]
    assert abs(curve["y"][0]) < 0.2  # a drawn head knows nothing of the old one


# -- what the user is told -------------------------------------------------------------------------


def test_a_class_with_few_images_or_none_is_named(digits):
    labels = digits.clean.labels
    kept = torch.cat([torch.nonzero(labels > 1).flatten(), torch.nonzero(labels == 1)[:3, 0]])
    (flag,) = FST(recipe=SHORT).remove(digits.planted, digits.clean.subset(kept)).record["flags"]
    assert flag.startswith("Fewer than 5 clean images show these classes: 0 (0), 1 (3).")


def test_enough_images_of_every_class_raise_no_flag(digits):
    assert FST(recipe=SHORT).remove(digits.planted, digits.clean).record["flags"] == []


def test_a_head_that_turned_back_is_flagged(few, monkeypatch):
    monkeypatch.setattr(fst, "draw_head", lambda _classifier, _generator: None)
    method = FST(alpha=0.0, recipe=SHORT)
    flags = method.remove(built(), few).record["flags"]
    assert any("turned back to its old direction" in flag for flag in flags)


def test_a_head_of_zeros_is_refused(few):
    classifier = built()
    with torch.no_grad():
        head_of(classifier).zero_()
    with pytest.raises(InputError, match=r"'1.weight' are all zero; FST needs a trained head"):
        FST(recipe=SHORT).remove(classifier, few)


def test_a_network_without_a_final_linear_layer_is_refused(digits):
    network = nn.Sequential(networks.build("small-cnn"), nn.Softmax(1))
    with pytest.raises(InputError, match="no final linear layer"):
        FST().remove(Classifier(network, mean=0.3, std=0.35), digits.clean)


def test_labels_that_the_network_has_no_logit_for_are_refused(few):
    with pytest.raises(InputError, match="label"):
        FST().remove(built(), ImageSet(few.images, few.labels + 5))


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"alpha": -0.1}, "alpha is -0.1"),
        ({"alpha": math.inf}, "alpha is inf"),
        ({"distillation": 1.5}, "distillation is 1.5"),
        ({"temperature": 0.0}, "temperature 0.0"),
    ],
)
def test_settings_out_of_range_are_refused(wrong, told):
    with pytest.raises(InputError, match=told):
        FST(**wrong)


def test_published_is_the_released_code():
    method = FST.published()
    recipe = method.recipe
    assert (method.alpha, method.distillation, method.augment) == (0.2, 0.0, "recipe")
    assert (recipe.epochs, recipe.batch_size, recipe.learning_rate) == (10, 128, 0.01)
    assert (recipe.momentum, recipe.weight_decay, recipe.schedule) == (0.9, 0.0, "cosine")
    assert recipe.clip_norm == 0
