"""Unlearning of generated triggers: who is stamped, how strongly, and what is minimised."""

import copy
import math

import pytest
import torch
from halves import back, front, same_slopes
from purified_models import purifier

from bezoar.errors import InputError
from bezoar.methods.bti_dbf_unlearning import GeneratedUnlearning, generated_loss, stamp_some
from bezoar.recipe import Recipe
from bezoar.training import fit

FULL = {"strengths": "full"}


def draws(seed=0):
    return torch.Generator().manual_seed(seed)


def lighter(x):
    return x + 0.4


# -- who is stamped --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("share", "count", "stamped"),
    [(0.1, 128, 13), (0.5, 32, 17), (0.1, 9, 1), (1.0, 8, 8), (0.99, 8, 8), (0.0, 8, 0)],
)
@pytest.mark.parametrize("strengths", ["all", "full"])
def test_the_share_and_one_more_is_stamped_and_the_others_stay(share, count, stamped, strengths):
    how = GeneratedUnlearning(share=share, strengths=strengths)
    x = 0.5 * torch.rand(count, 1, 3, 4, generator=draws())
    before = x.clone()
    shown = stamp_some(x, lighter, how, draws(1))
    assert torch.equal(x, before), "in place would change the plain image as well"
    change = (shown - x).flatten(1)
    hit = change.abs().amax(1) > 0
    assert int(hit.sum()) == stamped
    assert torch.equal(shown[~hit], x[~hit])
    factor = change[hit] / 0.4
    if strengths == "full":
        torch.testing.assert_close(factor, torch.ones_like(factor))
    else:
        torch.testing.assert_close(factor, factor[:, :1].expand_as(factor))  # one an image
        assert (factor >= 0.25 - 1e-6).all() and (factor <= 1).all()
    assert torch.equal(shown, stamp_some(x, lighter, how, draws(1)))
    if 0 < stamped < count:
        assert not torch.equal(shown, stamp_some(x, lighter, how, draws(2)))


def test_strengths_fill_their_range():
    x = torch.zeros(400, 1, 1, 1)
    how = GeneratedUnlearning(share=1.0, strengths="all")
    factor = stamp_some(x, lighter, how, draws()).flatten() / 0.4
    assert factor.min() < 0.27 and factor.max() > 0.98
    assert float(factor.mean()) == pytest.approx(0.625, abs=0.03)


def test_a_stamped_image_is_an_image():
    x = torch.rand(64, 3, 4, 4, generator=draws())
    wild = torch.rand(64, 3, 4, 4, generator=draws(1)).round()
    for strengths in ("all", "full"):
        how = GeneratedUnlearning(share=1.0, strengths=strengths)
        shown = stamp_some(x, lambda z: wild[: len(z)], how, draws(2))
        assert shown.min() >= 0 and shown.max() <= 1


@pytest.mark.parametrize("share", [0.25, 1.0])
def test_images_that_need_gradients_keep_their_graph_and_the_trigger_gets_none(share):
    """Without it torch's GroupNorm, as the first layer, once ended the process."""
    x, generator = torch.rand(8, 1, 8, 8, generator=draws()).requires_grad_(), purifier()
    shown = stamp_some(x, generator, GeneratedUnlearning(share=share), draws(1))
    assert shown.requires_grad
    shown.sum().backward()
    assert int((x.grad.flatten(1) == 1).all(1).sum()) == 8 - min(8, int(share * 8) + 1)
    assert all(parameter.grad is None for parameter in generator.parameters())


# -- what is minimised -----------------------------------------------------------------------------


def plain_loss(network, original, x, y, stamps, how, seed):
    """The formula on the images in the order in which the generator draws."""
    generator = draws(seed)
    stamp = stamps[int(torch.randint(len(stamps), (), generator=generator))]
    shown = x.clone()
    count = int(how.share * len(x)) + 1
    rows = torch.randperm(len(x), generator=generator)[:count].tolist()
    factors = torch.rand(count, 1, 1, 1, generator=generator) * 0.75 + 0.25
    for row, factor in zip(rows, factors, strict=True):
        change = (stamp(x[row : row + 1])[0] - x[row]).detach()
        shown[row] = x[row] + change * (factor if how.strengths == "all" else 1)
    maps = front(network, shown)
    p = back(network, maps)
    loss = (1 - how.distillation) * -p.log_softmax(1)[range(len(y)), y].mean()
    with torch.no_grad():
        first = front(original, x)
        wanted = (back(original, first) / how.temperature).softmax(1)
    kl = (wanted * (wanted.log() - (p / how.temperature).log_softmax(1))).sum(1).mean()
    loss = loss + how.distillation * how.temperature**2 * kl
    if how.alignment:
        goal = front(network, x) if how.anchor == "live" else first
        loss = loss + how.alignment * (maps - goal).pow(2).mean()
    return loss


PLAIN = {
    "published": GeneratedUnlearning.published(),
    "ours": GeneratedUnlearning(share=0.5, distillation=1.0, temperature=2.0, alignment=0.0),
    "labels": GeneratedUnlearning(share=0.3, distillation=0.0, alignment=0.0, **FULL),
    "half and half": GeneratedUnlearning(share=0.3, distillation=0.4, temperature=3.0),
    "anchored": GeneratedUnlearning(distillation=0.4, alignment=0.7, anchor="original"),
    "live": GeneratedUnlearning(distillation=0.4, alignment=0.7, anchor="live"),
}


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize("training", [True, False])
def test_the_loss_and_its_gradient_are_those_of_the_formula(name, training, digits):
    how = PLAIN[name]
    original = digits.planted.copy().trace(digits.clean.shape)
    tuned = digits.twin.copy().trace(digits.clean.shape)  # other weights than the original
    x, y = digits.clean.images[:40] / 255, digits.clean.labels[:40]
    by_hand = copy.deepcopy(tuned.network).train(training)
    generators = [purifier(strength=0.3, seed=seed) for seed in (0, 1, 2)]
    stamps = [lambda z, g=g: g(z).clamp(0, 1) for g in generators]
    live, anchor = tuned.split(), original.split()
    tuned.network.train(training)
    for network in (by_hand, tuned.network, original.network):
        network.zero_grad(set_to_none=True)
    for seed in (0, 1, 2):
        wanted = plain_loss(by_hand, original.network, x, y, stamps, how, seed)
        wanted.backward()
        loss = generated_loss(original, stamps, how, live=live, anchor=anchor)
        value = loss(tuned, x, y, draws(seed))
        value.backward()
        assert float(value.detach()) == pytest.approx(float(wanted.detach()), rel=1e-4)
    assert same_slopes(tuned.network, by_hand)
    assert all(p.grad is None for p in original.network.parameters())
    assert all(p.grad is None for g in generators for p in g.parameters())


def test_every_stamp_gets_its_turn(digits):
    seen = []

    def stamp(number):
        def keep(images):
            seen.append((number, len(images)))
            return images

        return keep

    classifier = digits.planted.copy().trace(digits.clean.shape)
    split = classifier.split()
    how = GeneratedUnlearning(share=0.25)
    stamps = [stamp(0), stamp(1)]
    loss = generated_loss(classifier, stamps, how, live=split, anchor=split)
    x, y = digits.clean.images[:8] / 255, digits.clean.labels[:8]
    generator = draws(3)
    for _ in range(15):
        loss(classifier, x, y, generator)
    stamps.append(stamp(2))  # a later round's
    for _ in range(45):
        loss(classifier, x, y, generator)
    counts = [sum(number == k for number, _ in seen) for k in range(3)]
    assert sum(counts) == 60 and min(counts) >= 8
    assert {count for _, count in seen} == {3}


def test_it_unlearns_a_stamp_and_keeps_the_rest(digits):
    original, how = digits.planted, GeneratedUnlearning(share=0.5, distillation=1.0)
    recipe = Recipe(epochs=3, batch_size=32, learning_rate=0.01, clip_norm=5.0)
    state = {name: value.clone() for name, value in original.network.state_dict().items()}
    truth = digits.test.labels
    others = truth != 4
    rates = []
    for stamp in (digits.attack.stamp, lambda x: x):  # the second is fine-tuning alone
        tuned = original.copy().trace(digits.clean.shape)
        split = tuned.split()
        loss = generated_loss(original, [stamp], how, live=split, anchor=split)
        fit(tuned, digits.clean, recipe, seed=0, loss=loss)
        with torch.no_grad():
            x = digits.test.images / 255
            accuracy = float((tuned(x).argmax(1) == truth).float().mean())
            hits = tuned(digits.attack.stamp(x)).argmax(1)[others] == 4
        rates.append((float(hits.float().mean()), accuracy))
    assert rates[0][0] < 0.1 and rates[1][0] > 0.5
    assert min(accuracy for _, accuracy in rates) > 0.93
    for name, value in original.network.state_dict().items():
        assert torch.equal(value, state[name]), name


def test_one_adam_serves_all_rounds_at_the_rate_of_the_recipe(digits):
    tuned = digits.planted.copy().trace(digits.clean.shape)
    head = list(tuned.network.fc.parameters())
    adam = torch.optim.Adam(head, lr=123.0)
    before = {name: value.clone() for name, value in tuned.network.named_parameters()}
    flags = [
        p.requires_grad_(i != 1).requires_grad for i, p in enumerate(tuned.network.parameters())
    ]
    recipe = Recipe(epochs=1, batch_size=100, learning_rate=1e-3, schedule="constant")
    for steps in (3, 6):
        fit(tuned, digits.clean, recipe, seed=0, parameters=head, optimizer=adam)
        assert {int(state["step"]) for state in adam.state.values()} == {steps}
    assert adam.param_groups[0]["lr"] == 1e-3
    assert [p.requires_grad for p in tuned.network.parameters()] == flags
    changed = {n for n, v in tuned.network.named_parameters() if not torch.equal(v, before[n])}
    assert changed == {"fc.weight", "fc.bias"}


# -- settings --------------------------------------------------------------------------------------


def test_published_is_what_the_official_code_does():
    how = GeneratedUnlearning.published()
    recipe = how.recipe
    assert (recipe.epochs, recipe.batch_size, recipe.learning_rate) == (30, 128, 1e-4)
    assert (recipe.schedule, recipe.batch_norm, recipe.clip_norm) == ("constant", "train", 0)
    assert (recipe.crop_padding, recipe.flip, how.augment) == (4, False, "recipe")
    assert (how.optimizer, how.share, how.strengths) == ("adam", 0.1, "full")
    assert (how.distillation, how.alignment, how.anchor) == (0, 1, "live")


@pytest.mark.parametrize(
    "wrong",
    [
        {"share": 1.1},
        {"share": -0.1},
        {"distillation": 1.1},
        {"distillation": math.nan},
        {"temperature": 0.0},
        {"temperature": math.inf},
        {"alignment": -1.0},
        {"alignment": math.nan},
    ],
)
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        GeneratedUnlearning(**wrong)
