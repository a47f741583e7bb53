"""Shared adversarial unlearning: the examples, the masks, and what is unlearned of them."""

import math

import pytest
import torch
from msgspec.structs import replace
from torch import nn

from bezoar.classifier import Classifier
from bezoar.errors import InputError
from bezoar.methods import SAU
from bezoar.methods.sau import SharedUnlearning, shared_risk
from bezoar.methods.sau_examples import (
    Answers,
    Examples,
    jensen_shannon,
    search_loss,
    shared_examples,
)
from bezoar.training import Recipe

SHORT = Recipe(epochs=2, batch_size=32, learning_rate=1e-3, weight_decay=0.0, batch_norm="eval")


def drawn(seed, *shape):
    return torch.rand(shape, generator=generator(seed))


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def bytes_of(classifier):
    return {k: v.numpy().tobytes() for k, v in classifier.network.state_dict().items()}


def frozen(classifier):
    twin = classifier.copy()
    twin.network.requires_grad_(False).eval()
    return twin


@pytest.fixture(scope="module")
def few(digits):
    return digits.clean.sample(64, seed=0)


@pytest.fixture(scope="module")
def batch(few):
    return few.images / 255, few.labels


# -- the divergence --------------------------------------------------------------------------------


def test_the_divergence_is_that_of_the_plain_formula():
    a, b = 6 * drawn(0, 7, 5) - 3, 6 * drawn(1, 7, 5) - 3
    for row, x, y in zip(jensen_shannon(a, b).tolist(), a.softmax(1), b.softmax(1), strict=True):
        slow = 0.0
        for p, q in zip(x.tolist(), y.tolist(), strict=True):
            m = (p + q) / 2
            slow += p * math.log(p / m) / 2 + q * math.log(q / m) / 2
        assert row == pytest.approx(slow, abs=1e-6)


def test_the_divergence_is_symmetric_and_between_zero_and_log_two():
    a, b = 50 * drawn(2, 40, 6), 50 * drawn(3, 40, 6)
    values = jensen_shannon(a, b)
    assert torch.allclose(values, jensen_shannon(b, a), atol=1e-6)
    assert float(values.min()) >= 0 and float(values.max()) <= math.log(2) + 1e-6
    assert jensen_shannon(a, a).tolist() == pytest.approx([0.0] * 40, abs=1e-6)
    sure = torch.tensor([[200.0, 0, 0], [0, 200.0, 0]])
    assert jensen_shannon(sure, sure.flip(0)).tolist() == pytest.approx([math.log(2)] * 2)


def test_the_gradient_of_the_divergence_is_finite_where_the_networks_are_sure():
    a = torch.tensor([[500.0, 0, -500.0]], requires_grad=True)
    jensen_shannon(a, torch.tensor([[0.0, 500.0, 0]])).sum().backward()
    assert bool(torch.isfinite(a.grad).all())


# -- the masks -------------------------------------------------------------------------------------

ANSWERS = Answers(
    plain=torch.tensor([0, 0, 0, 0, 1]),
    original_plain=torch.tensor([0, 0, 0, 0, 2]),
    perturbed=torch.tensor([0, 1, 1, 1, 2]),
    original_perturbed=torch.tensor([0, 0, 1, 2, 2]),
)  # nobody fooled; f alone; both alike; both, not alike; f alone, onto what f_0 says anyway


def test_fooled_and_shared_are_what_the_answers_say():
    assert ANSWERS.fooled.tolist() == [False, True, True, True, True]
    assert ANSWERS.original_fooled.tolist() == [False, False, True, True, False]
    assert ANSWERS.shared.tolist() == [False, False, True, False, False]


def test_each_term_counts_only_until_it_is_reached():
    logits, others = 3 * drawn(4, 5, 3), 3 * drawn(5, 5, 3)
    logits.requires_grad_(True)
    others.requires_grad_(True)
    labels = torch.tensor([0, 0, 0, 0, 1])
    settings = Examples(fooling=0.7, sharing=0.3)
    value = search_loss(logits, others, labels, ANSWERS, settings)

    def ce(rows, i):
        return -float(rows.detach()[i].log_softmax(0)[labels[i]])

    apart = jensen_shannon(logits.detach(), others.detach()).tolist()
    slow = -0.7 * ce(logits, 0) / 2  # f is not fooled by image 0 alone
    slow -= 0.7 * (ce(others, 0) + ce(others, 1) + ce(others, 4)) / 2
    slow += 0.3 * sum(apart[i] for i in (0, 1, 3, 4))
    assert value.item() == pytest.approx(slow / 5, abs=1e-6)
    value.backward()
    assert not bool(logits.grad[2].any()) and not bool(others.grad[2].any()), "image 2 is finished"


def test_the_search_raises_the_loss_of_both_and_brings_them_together():
    logits, others = torch.zeros(1, 3), torch.tensor([[0.0, 1.0, 0.0]])
    logits.requires_grad_(True)
    answers = Answers(*(torch.zeros(1, dtype=torch.int64),) * 4)
    label = torch.zeros(1, dtype=torch.int64)
    fooling = search_loss(logits, others, label, answers, Examples(fooling=1.0, sharing=0.0))
    (slope,) = torch.autograd.grad(fooling, logits)
    assert float(slope[0, 0]) > 0  # descent lowers the right logit
    sharing = search_loss(logits, others, label, answers, Examples(fooling=0.0, sharing=1.0))
    (slope,) = torch.autograd.grad(sharing, logits)
    assert float(slope[0, 1]) < 0  # descent raises what the other network says


# -- the examples ----------------------------------------------------------------------------------


@pytest.mark.parametrize("start", ["random", "upper"])
@pytest.mark.parametrize("steps", [0, 3])
def test_examples_stay_in_the_ball_and_are_images(start, steps, digits, batch):
    """Public code leaves the range of pixels, where no image lies."""
    settings = Examples(radius=0.15, step_size=0.1, start=start, steps=steps)
    found, _ = shared_examples(
        digits.planted.copy(), frozen(digits.planted), *batch, settings, generator()
    )
    assert float((found - batch[0]).abs().max()) <= 0.15 + 1e-6
    assert float(found.min()) >= 0 and float(found.max()) <= 1
    assert not torch.equal(found, batch[0]) and not found.requires_grad


def test_the_published_examples_start_at_the_upper_corner_and_leave_the_range(digits, batch):
    settings = replace(Examples.published(), steps=0)
    found, _ = shared_examples(
        digits.planted.copy(), frozen(digits.planted), *batch, settings, generator()
    )
    assert torch.allclose(found, batch[0] + 0.2)
    settings = Examples.published()
    found, _ = shared_examples(
        digits.planted.copy(), frozen(digits.planted), *batch, settings, generator()
    )
    assert float((found - batch[0]).abs().max()) <= 0.2 + 1e-6
    assert float(found.max()) > 1


def test_steps_shorter_than_the_radius_do_not_only_visit_corners(digits, batch):
    """With a step as long as the radius, every pixel of a perturbation is -r, 0 or r."""
    original = frozen(digits.planted)
    inner = []
    for settings in (Examples(), replace(Examples.published(), clamp=False)):
        found, _ = shared_examples(digits.planted.copy(), original, *batch, settings, generator())
        change = (found - batch[0]).abs()
        inner.append(float(((change > 0.01) & (change < 0.19)).float().mean()))
    assert inner[0] > 0.2 and inner[1] == 0


def test_the_search_makes_more_shared_examples_than_chance(digits, batch):
    classifier, original = digits.planted.copy(), frozen(digits.twin)
    shares = []
    for steps in (0, 8):
        settings = Examples(radius=0.4, steps=steps, step_size=0.1)
        found, plain = shared_examples(classifier, original, *batch, settings, generator())
        with torch.no_grad(), classifier.evaluating():
            answers = Answers(
                classifier(batch[0]).argmax(1),
                plain,
                classifier(found).argmax(1),
                original(found).argmax(1),
            )
        assert torch.equal(plain, original(batch[0]).argmax(1))
        shares.append(float(answers.shared.float().mean()))
    assert shares[1] > shares[0] + 0.3


def test_no_gradient_of_the_search_reaches_a_weight(digits, batch):
    classifier, original = digits.planted.copy(), digits.planted.copy()
    original.network.eval()  # not even where the original is not frozen
    classifier.network.train()
    before = bytes_of(classifier)
    shared_examples(classifier, original, *batch, Examples(), generator())
    for network in (classifier.network, original.network):
        assert all(parameter.grad is None for parameter in network.parameters())
    assert bytes_of(classifier) == before, "running statistics moved"
    assert all(module.training for module in classifier.network.modules())


# -- what is unlearned -----------------------------------------------------------------------------


def test_the_shared_risk_is_that_of_the_plain_formula():
    logits, classes = 4 * drawn(6, 6, 5), torch.tensor([0, 1, 2, 3, 4, 0])
    fooled = torch.tensor([True, False, True, True, False, True])
    p = logits.softmax(1)
    slow = sum(-math.log(1 - float(p[i, classes[i]])) for i in range(6) if fooled[i]) / 6
    assert shared_risk(logits, classes, fooled).item() == pytest.approx(slow, rel=1e-5)
    assert shared_risk(logits, classes, torch.zeros(6, dtype=torch.bool)).item() == 0


def test_a_step_along_the_shared_risk_lowers_the_shared_class_where_the_original_was_fooled():
    logits = (2 * drawn(7, 4, 5)).requires_grad_(True)
    classes, fooled = torch.tensor([0, 1, 2, 3]), torch.tensor([True, True, True, False])
    (slope,) = torch.autograd.grad(shared_risk(logits, classes, fooled), logits)
    rows = range(4)
    before = logits.softmax(1)[rows, classes]
    after = (logits - 0.5 * slope).softmax(1)[rows, classes]
    assert bool((after[:3] < before[:3]).all())
    assert after[3].item() == before[3].item()


def test_the_shared_risk_is_finite_where_the_network_is_sure():
    logits = torch.tensor([[300.0, 0, 0]], requires_grad=True)
    value = shared_risk(logits, torch.tensor([0]), torch.tensor([True]))
    value.backward()
    assert value.item() == pytest.approx(300 - math.log(2), rel=1e-5)
    assert bool(torch.isfinite(logits.grad).all())


def test_the_loss_weighs_its_three_parts(digits, batch):
    images, labels = batch
    original = frozen(digits.planted)
    how = SAU(examples=Examples(radius=0.4), clean=0.5, adversarial=0.2, shared=2.0)
    classifier = frozen(digits.twin)
    unlearning = SharedUnlearning(original, how)
    unlearning.begin(0)
    value = unlearning(classifier, images, labels, generator(3))
    found, plain = shared_examples(classifier, original, images, labels, how.examples, generator(3))
    wrong = original(found).argmax(1)
    fooled = (wrong != labels) & (wrong != plain)
    ce = nn.functional.cross_entropy
    slow = 0.5 * ce(classifier(images), labels) + 0.2 * ce(classifier(found), labels)
    slow += 2 * shared_risk(classifier(found), wrong, fooled)
    assert value.item() == pytest.approx(slow.item(), rel=1e-4)
    assert unlearning.shares()[0] == pytest.approx([fooled.float().mean().item()])


def test_the_original_stays_as_it_was_to_the_bit(digits, few, monkeypatch):
    before = bytes_of(digits.planted)
    kept = []
    make = SharedUnlearning.__init__

    def spy(self, original, settings):
        kept.append(original)
        make(self, original, settings)

    monkeypatch.setattr(SharedUnlearning, "__init__", spy)
    repair = SAU(recipe=SHORT).remove(digits.planted, few)
    assert bytes_of(digits.planted) == before
    assert bytes_of(kept[0]) == before and kept[0].network is not digits.planted.network
    assert all(parameter.grad is None for parameter in kept[0].network.parameters())
    assert bytes_of(repair.classifier) != before


@pytest.mark.parametrize("norms", ["eval", "train"])
def test_running_statistics_move_only_where_norms_train(norms, digits, few):
    repair = SAU(recipe=replace(SHORT, batch_norm=norms)).remove(digits.planted, few)
    after, before = bytes_of(repair.classifier), bytes_of(digits.planted)
    moved = [name for name in before if "running" in name and after[name] != before[name]]
    assert bool(moved) == (norms == "train")


def test_the_record_has_a_share_for_each_epoch(digits, few):
    record = SAU(recipe=SHORT).remove(digits.planted, few).record
    for name in ("original fooled", "shared"):
        assert len(record[name]) == 2
        assert all(0 <= share <= 1 for share in record[name])
    assert all(s <= f for s, f in zip(record["shared"], record["original fooled"], strict=True))
    assert [curve["x"] for curve in record["curves"]] == [[1, 2]] * 3


def test_a_single_image_with_batch_statistics_is_no_error(digits, few):
    repair = SAU(recipe=replace(SHORT, batch_norm="train")).remove(digits.planted, few.subset([0]))
    assert len(repair.record["shared"]) == 1


def test_examples_that_fool_nobody_are_said(digits, few):
    method = SAU(examples=Examples(radius=0.001, step_size=0.001), recipe=SHORT)
    (flag,) = method.remove(digits.planted, few).record["flags"]
    assert flag.startswith("At most 0% of the examples fooled the original network")


def test_examples_that_are_still_shared_are_said(digits, few):
    method = SAU(examples=Examples(radius=0.5), recipe=replace(SHORT, learning_rate=1e-6))
    (flag,) = method.remove(digits.planted, few).record["flags"]
    assert "into the same class; a part of a backdoor may be left" in flag


def test_a_network_without_norms_is_unlearned(few):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10))
    classifier = Classifier(network, mean=0.3, std=0.35)
    repair = SAU(examples=Examples(radius=0.5), recipe=SHORT).remove(classifier, few)
    assert bytes_of(repair.classifier) != bytes_of(classifier)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (lambda: Examples(radius=0), "radius is 0"),
        (lambda: Examples(step_size=math.inf), "step_size is inf"),
        (lambda: Examples(steps=-1), "steps is -1"),
        (lambda: Examples(fooling=-1), "fooling is -1"),
        (lambda: Examples(sharing=math.nan), "sharing is nan"),
        (lambda: SAU(clean=-1), "clean is -1"),
        (lambda: SAU(shared=math.inf), "shared is inf"),
    ],
)
def test_settings_out_of_range_are_refused(wrong, told):
    with pytest.raises(InputError, match=told):
        wrong()


def test_published_is_the_authors_code():
    method = SAU.published()
    how, recipe = method.examples, method.recipe
    assert (how.radius, how.steps, how.step_size, how.start) == (0.2, 5, 0.2, "upper")
    assert (how.fooling, how.sharing, how.clamp) == (0.01, 1.0, False)
    assert (method.clean, method.adversarial, method.shared) == (1.0, 0.0, 1.0)
    assert (recipe.epochs, recipe.batch_size, recipe.learning_rate) == (100, 256, 1e-4)
    assert (recipe.momentum, recipe.weight_decay, recipe.batch_norm) == (0.9, 0.0, "eval")
    assert (recipe.schedule, recipe.flip, recipe.crop_padding) == ("constant", False, 0)
