"""The purifier: what stands in front, what is minimised, and that nothing else learns."""

import math

import pytest
import torch
from halves import back, front, same_slopes
from purified_models import purifier
from torch import nn

from bezoar.classifier import Classifier
from bezoar.errors import InputError
from bezoar.images import ImageSet
from bezoar.methods.bti_dbf_purifying import Purifying, in_front, purifying_loss
from bezoar.networks.generators import drawn
from bezoar.networks.purified import Purified
from bezoar.networks.trigger_generators import ResidualGenerator
from bezoar.recipe import Recipe
from bezoar.training import fit


def draws(seed=0):
    return torch.Generator().manual_seed(seed)


def darker(x):
    return (x - 0.3).clamp(0, 1)


# -- what stands in front --------------------------------------------------------------------------


def test_the_network_is_put_behind_the_purifier_and_not_copied(digits):
    digits.planted.trace(digits.clean.shape)
    classifier, q = digits.planted, purifier(strength=0.3)
    whole = in_front(classifier, q, Purifying())
    assert whole.network.network is classifier.network and whole.network.purifier is q
    assert (whole.mean, whole.std, whole.classes) == ((0.3,), (0.35,), classifier.classes)
    assert (whole.input_shape, whole.num_classes) == ((1, 8, 8), 10)
    assert whole.network.noise == 0
    x = digits.clean.images[:20] / 255
    with whole.evaluating(), torch.no_grad():
        torch.testing.assert_close(whole(x), classifier(q(x).clamp(0, 1)), rtol=1e-4, atol=1e-4)
        assert (whole(x) - classifier(x)).abs().max() > 0.1


def test_noise_is_told_in_normalised_pixels_and_added_in_pixels():
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 5))
    for std, expected in (((0.2, 0.3, 0.4), 0.03 * 0.3), ((0.5,), 0.015)):
        classifier = Classifier(
            network, mean=0.4, std=std, classes=list("abcde"), input_size=(2, 2)
        )
        classifier.trace((3, 2, 2))
        q = ResidualGenerator(3, 2, 2, features=1, depth=1)
        whole = in_front(classifier, q, Purifying(noise=0.03))
        assert whole.network.noise == pytest.approx(expected)
        assert (whole.classes, whole.input_size) == (tuple("abcde"), (2, 2))
        torch.testing.assert_close(whole.network.std, torch.tensor(std))


# -- what is minimised -----------------------------------------------------------------------------


def plain_loss(network, q, x, y, stamps, how, seed):
    """The formula on the images in the order in which the generator draws."""
    generator = draws(seed)
    stamp = stamps[int(torch.randint(len(stamps), (), generator=generator))]
    shown = x.clone()
    count = int(how.share * len(x)) + 1
    rows = torch.randperm(len(x), generator=generator)[:count].tolist()
    factors = torch.rand(count, generator=generator) * 0.75 + 0.25
    for row, factor in zip(rows, factors, strict=True):
        change = stamp(x[row : row + 1])[0] - x[row]
        shown[row] = x[row] + change.detach() * (factor if how.strengths == "all" else 1)
    if how.noise:
        shown = shown + 0.35 * how.noise * torch.randn(shown.shape)
    z = q(shown).clamp(0, 1)
    new, old = front(network, z), front(network, x).detach()
    p, plain = back(network, new), back(network, old)
    t = how.temperature
    wanted = (plain / t).softmax(1)
    kl = (wanted * (wanted.log() - (p / t).log_softmax(1))).sum(1).mean()
    away = ((z - x) / 0.35).pow(2).mean()
    loss = (1 - how.distillation) * -p.log_softmax(1)[range(len(y)), y].mean()
    loss = loss + how.distillation * t**2 * kl + how.alignment * (new - old).pow(2).mean()
    return loss + (how.far if away > how.limit else how.pixels) * away, float(away.detach())


CASES = {
    "published": Purifying.published(),
    "ours": Purifying(share=0.5, distillation=1.0, temperature=2.0, pixels=1.0, far=1.0),
    "within": Purifying(distillation=0.3, alignment=0.5, pixels=0.7, far=50.0, limit=9.0),
    "beyond": Purifying(distillation=0.3, alignment=0.5, pixels=0.7, far=50.0, limit=0.0001),
    "noise": Purifying(noise=0.2, strengths="full", temperature=3.0),
}


@pytest.mark.parametrize("name", CASES)
def test_the_loss_and_its_gradient_are_those_of_the_formula(name, digits):
    how = CASES[name]
    classifier = digits.planted.copy().trace(digits.clean.shape)
    x, y = digits.clean.images[:30] / 255, digits.clean.labels[:30]
    trigger = purifier(strength=0.3, seed=4)
    stamps = [digits.attack.stamp, darker, lambda z: trigger(z).clamp(0, 1)]
    q, twin = purifier(strength=0.1), purifier(strength=0.1)
    whole = in_front(classifier, q, how)
    whole.network.network.requires_grad_(False)
    loss = purifying_loss(classifier, stamps, how, anchor=classifier.split())
    for seed in range(4):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            wanted, away = plain_loss(classifier.network, twin, x, y, stamps, how, seed)
            torch.manual_seed(seed)
            value = loss(whole, x, y, draws(seed))
        wanted.backward()
        value.backward()
        assert float(value.detach()) == pytest.approx(float(wanted.detach()), rel=1e-4)
        if name in ("within", "beyond"):
            assert (away > how.limit) == (name == "beyond")
    assert same_slopes(q, twin)
    assert q.pattern.grad.abs().max() > 1e-3
    assert all(p.grad is None for p in trigger.parameters()), "the trigger gets no gradients"


# -- what learns -----------------------------------------------------------------------------------


class Delicate(nn.Module):
    """Statistics that every pass in train mode changes, and dropout."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.seen = nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), []
        self.drop, self.fc = nn.Dropout(0.5), nn.Linear(6, 4)

    def forward(self, x):
        self.seen.append((self.training, self.norm.training, self.drop.training))
        return self.fc(self.drop(self.norm(self.conv(x)).relu().mean((2, 3))))


def delicate():
    classifier = Classifier(drawn(Delicate, 0).eval(), mean=0.3, std=0.35).trace((1, 8, 8))
    pixels = torch.randint(256, (48, 1, 8, 8), generator=draws())
    images = ImageSet.from_arrays(pixels.to(torch.uint8), torch.arange(48) % 4)
    return classifier, images


@pytest.mark.parametrize("batch_norm", ["train", "eval"])
def test_only_the_purifier_learns(batch_norm):
    classifier, images = delicate()
    state = {name: value.clone() for name, value in classifier.network.state_dict().items()}
    q, how = purifier(strength=0.05), Purifying(alignment=0.5)
    before = {name: value.clone() for name, value in q.state_dict().items()}
    whole = in_front(classifier, q, how)
    loss = purifying_loss(classifier, [darker], how, anchor=classifier.split("norm"))
    adam = torch.optim.Adam(q.parameters())
    recipe = Recipe(epochs=1, batch_size=16, learning_rate=1e-2, batch_norm=batch_norm)
    classifier.network.seen.clear()
    fit(whole, images, recipe, seed=0, loss=loss, parameters=q.parameters(), optimizer=adam)
    assert set(classifier.network.seen) == {(False, False, False)}
    for name, value in classifier.network.state_dict().items():
        assert torch.equal(value, state[name]), name
    assert all(p.grad is None and p.requires_grad for p in classifier.network.parameters())
    assert all(not torch.equal(v, before[n]) for n, v in q.named_parameters())


def test_a_method_that_changes_weights_still_trains_the_network_behind():
    classifier, images = delicate()
    whole = in_front(classifier, purifier(strength=0.05), Purifying())
    state = {name: value.clone() for name, value in classifier.network.state_dict().items()}
    classifier.network.requires_grad_(False)  # as a loaded network may be
    classifier.network.seen.clear()
    recipe = Recipe(epochs=1, batch_size=16, learning_rate=0.1)
    fit(whole, images, recipe, seed=0, parameters=whole.network.network.parameters())
    assert (True, True, True) in classifier.network.seen
    for name, value in classifier.network.state_dict().items():
        assert not torch.equal(value, state[name]), name
    assert not classifier.network.training


def test_the_mode_reaches_the_network_behind_where_a_weight_may_change():
    classifier, _ = delicate()
    outer = Purified(
        in_front(classifier, purifier(), Purifying()).network, purifier(), mean=0.3, std=0.35
    )
    modes = lambda: (outer.purifier.training, outer.network.training, classifier.network.training)  # noqa: E731
    assert outer.train() is outer and modes() == (True, True, True)
    assert outer.eval() is outer and modes() == (False, False, False)
    classifier.network.requires_grad_(False)
    assert outer.train() is outer and modes() == (True, True, False)
    outer.network.requires_grad_(False)
    assert outer.train() is outer and modes() == (True, False, False)
    classifier.network.fc.bias.requires_grad_(True)
    outer.train()
    assert modes() == (True, True, True) and classifier.network.drop.training


def test_it_takes_a_stamp_off_and_leaves_clean_images_their_class(digits):
    classifier = digits.planted.copy().trace(digits.clean.shape)
    how = Purifying(share=0.5, distillation=1.0, pixels=1.0, far=1.0)
    q = drawn(lambda: ResidualGenerator(1, 8, 8, features=8, depth=2), 0)
    whole = in_front(classifier, q, how)
    stamp = digits.attack.stamp
    loss = purifying_loss(classifier, [stamp], how, anchor=classifier.split())
    recipe = Recipe(epochs=6, batch_size=30, learning_rate=5e-3, clip_norm=5.0)
    adam = torch.optim.Adam(q.parameters())
    fit(whole, digits.clean, recipe, seed=0, loss=loss, parameters=q.parameters(), optimizer=adam)
    x, truth = digits.test.images / 255, digits.test.labels
    others = truth != 4
    with torch.no_grad():
        before = (classifier(stamp(x)).argmax(1)[others] == 4).float().mean()
        after = (whole(stamp(x)).argmax(1)[others] == 4).float().mean()
        accuracy, cleaned = ((c(x).argmax(1) == truth).float().mean() for c in (classifier, whole))
    assert before > 0.9 and after < 0.1
    assert cleaned > accuracy - 0.05


# -- settings --------------------------------------------------------------------------------------


def test_published_is_what_the_official_code_does():
    how = Purifying.published()
    recipe = how.recipe
    assert (recipe.epochs, recipe.batch_size, recipe.learning_rate) == (30, 128, 1e-3)
    assert (recipe.schedule, recipe.clip_norm) == ("constant", 0)
    assert (recipe.crop_padding, recipe.flip, how.augment) == (4, False, "recipe")
    assert (how.generator, how.share, how.strengths) == ("published", 0.1, "full")
    assert (how.distillation, how.alignment, how.noise) == (0, 1, 0.03)
    assert (how.pixels, how.far, how.limit) == (1, 100, 0.05)


@pytest.mark.parametrize(
    "wrong",
    [
        {"share": 1.1},
        {"distillation": -0.1},
        {"noise": -0.1},
        {"noise": math.nan},
        {"temperature": 0.0},
        {"features": 0},
        {"alignment": -1.0},
        {"pixels": -1.0},
        {"far": -1.0},
        {"limit": -1.0},
    ],
)
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        Purifying(**wrong)
