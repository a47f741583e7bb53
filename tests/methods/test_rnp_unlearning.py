import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from msgspec.structs import replace
from odd_state_dicts import OtherNames, VersionedLinear
from torch import nn

from bezoar.augmentation import crop_and_flip
from bezoar.classifier import Classifier
from bezoar.device import to_fast_layout
from bezoar.errors import InputError
from bezoar.images import ImageSet
from bezoar.methods import rnp_unlearning
from bezoar.methods.rnp_unlearning import LEVELS, Unlearned, Unlearning, unlearn
from bezoar.training import Recipe, fit

PLAIN = Unlearning(adapt=False, check_every=1, batch_size=64, max_epochs=1)


@pytest.fixture(scope="module")
def few(digits):
    return digits.clean.sample(100, seed=0)


@pytest.fixture(scope="module")
def unlearned(digits, few):
    """The planted network without what it knew of 100 images."""
    settings = Unlearning(learning_rate=0.01, batch_size=50, max_epochs=60)
    return unlearn(digits.planted, few, settings, seed=0)


def everything(network):
    return {name: value.clone() for name, value in network.state_dict().items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def right(classifier, images):
    return (classifier.logits(images).argmax(1) == images.labels).double()


def balanced(classifier, images):
    hits = right(classifier, images)
    return float(torch.stack([hits[images.labels == k].mean() for k in range(10)]).mean())


# -- the ascent ------------------------------------------------------------------------------------


def plain_ascent(classifier, images, settings, seed):
    """Gradient ascent as the official code has it: one epoch after the other, then the stop."""
    twin = classifier.copy()
    network = twin.network.train()
    to_fast_layout(network, classifier.device)  # else rounding alone leads the two ways apart
    sgd = torch.optim.SGD(
        network.parameters(),
        settings.learning_rate,
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
    )
    rates = torch.optim.lr_scheduler.MultiStepLR(sgd, settings.drops, gamma=0.1)
    generator = torch.Generator().manual_seed(seed)
    running = []
    for _ in range(settings.max_epochs):
        hits = 0
        for rows in torch.randperm(len(images), generator=generator).split(settings.batch_size):
            batch = images.images[rows].float() / 255
            batch = crop_and_flip(
                batch, padding=settings.crop_padding, flip=settings.flip, generator=generator
            )
            logits = network((batch - twin.mean[0]) / twin.std[0])
            sgd.zero_grad()
            loss = -F.cross_entropy(logits, images.labels[rows])
            loss.backward()
            sgd.step()
            hits += int((logits.argmax(1) == images.labels[rows]).sum())
        running.append(hits / len(images))
        rates.step()
        if running[-1] <= settings.stop:
            break
    return network.state_dict(), running


def test_the_published_ascent_and_its_stop_equal_a_plain_loop(digits, few):
    settings = replace(Unlearning.published(), batch_size=50, crop_padding=1, drops=(4,), stop=0.16)
    run = unlearn(digits.planted, few, settings, seed=4)
    state, running = plain_ascent(digits.planted, few, settings, seed=4)
    assert 4 < len(running) < 21, "the loop neither passed a drop of the rate nor stopped early"
    assert run.accuracy == pytest.approx(running)
    assert run.steps == [2 * (epoch + 1) for epoch in range(len(running))]
    assert run.reached and run.learning_rate == settings.learning_rate and not run.overshoots
    for name, value in run.classifier.network.state_dict().items():
        torch.testing.assert_close(value, state[name], rtol=1e-3, atol=1e-4)


def test_the_published_stop_that_is_not_reached_is_said(digits, few):
    settings = replace(Unlearning.published(), learning_rate=1e-5, max_epochs=2, crop_padding=0)
    run = unlearn(digits.planted, few, settings, seed=0)
    assert not run.reached and len(run.accuracy) == 2 and run.accuracy[-1] > 0.5


def test_the_published_settings():
    published = Unlearning.published()
    assert (published.learning_rate, published.momentum, published.weight_decay) == (
        *(0.01, 0.9),
        5e-4,
    )
    assert (published.batch_size, published.max_epochs, published.drops) == (128, 21, (10, 20))
    assert (published.stop, published.check_every, published.adapt) == (0.2, 0, False)
    assert (published.clip_norm, published.crop_padding, published.flip) == (0.0, 4, True)


def test_only_the_gradient_norm_is_clipped(digits, few):
    settings = replace(
        PLAIN, learning_rate=0.01, momentum=0.0, weight_decay=0.0, batch_size=100, stop=0.0
    )
    before = dict(digits.planted.network.named_parameters())
    moved = []
    for clip_norm in (0.0, 1e-3):
        run = unlearn(digits.planted, few, replace(settings, clip_norm=clip_norm), seed=0)
        after = dict(run.classifier.network.named_parameters())
        steps = [(after[name] - before[name]).detach().flatten() for name in before]
        moved.append(torch.cat(steps))
    assert float(moved[1].norm()) == pytest.approx(0.01 * 1e-3, rel=0.02)
    assert float(moved[0].norm()) > 2 * float(moved[1].norm())
    assert float(F.cosine_similarity(*moved, dim=0)) > 0.99, "clipping turned the gradient"


# -- the stop --------------------------------------------------------------------------------------


def test_it_stops_at_the_first_test_in_eval_mode_at_twice_chance(digits, few, unlearned):
    assert unlearned.reached and unlearned.stop == pytest.approx(0.2)
    assert unlearned.accuracy[-1] <= 0.2 < min(unlearned.accuracy[:-1])
    assert unlearned.accuracy[-1] == pytest.approx(balanced(unlearned.classifier, few))
    assert unlearned.first_accuracy == pytest.approx(balanced(digits.planted, few))
    assert all(step % 2 == 0 for step in unlearned.steps)
    assert not any(module.training for module in unlearned.classifier.network.modules())


@pytest.mark.parametrize("every", [1, 3])
def test_the_stop_is_tested_every_few_steps(every, digits, few):
    settings = replace(PLAIN, check_every=every, batch_size=20, max_epochs=2, stop=0.0)
    run = unlearn(digits.planted, few, settings, seed=0)
    assert run.steps == list(range(every, 11, every))
    assert len(run.steps) == len(run.accuracy) == len(run.top_share)


def test_there_are_half_as_many_tests_while_little_happens(unlearned):
    tests = list(zip([0, *unlearned.steps], [1.0, *unlearned.accuracy], strict=True))
    gaps = {True: set(), False: set()}  # after a test above nine tenths, and after another
    for (before, accuracy), (after, _) in itertools.pairwise(tests[1:]):
        gaps[accuracy > 0.9 * unlearned.first_accuracy].add(after - before)
    assert unlearned.steps[0] == 2 and gaps == {True: {4}, False: {2}}


def test_what_it_answers_with_afterwards(few, unlearned):
    answers = unlearned.classifier.logits(few).argmax(1)
    counts = [int((answers == k).sum()) for k in range(10)]
    assert unlearned.answers.tolist() == pytest.approx([count / 100 for count in counts])
    assert unlearned.top_share[-1] == pytest.approx(max(counts) / 100)


@pytest.fixture
def one_answer():
    """A network that answers everything with class 0, and images that mostly show it."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    nn.init.zeros_(network[1].weight)
    network[1].bias.data = torch.tensor([5.0, 0.0, 0.0])
    labels = torch.tensor([0] * 18 + [1, 2])
    images = ImageSet(torch.zeros(20, 1, 2, 2, dtype=torch.uint8), labels)
    return Classifier(network, mean=0.5, std=0.5), images


def test_a_network_that_answers_one_frequent_class_is_at_chance(one_answer):
    run = unlearn(*one_answer, replace(PLAIN, learning_rate=1e-6), seed=0)
    assert run.first_accuracy == pytest.approx(1 / 3)
    assert run.stop == pytest.approx(1.1 / 3) and run.reached
    of_all = unlearn(*one_answer, replace(PLAIN, learning_rate=1e-6, stop=0.5), seed=0)
    assert of_all.first_accuracy == pytest.approx(0.9) and not of_all.reached


def test_a_class_without_images_has_no_accuracy():
    images = ImageSet(torch.zeros(4, 1, 2, 2, dtype=torch.uint8), torch.tensor([0, 0, 2, 2]))
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    nn.init.zeros_(network[1].weight)
    network[1].bias.data = torch.tensor([5.0, 0.0, 0.0])
    run = unlearn(Classifier(network, mean=0.5, std=0.5), images, PLAIN, seed=0)
    assert run.first_accuracy == pytest.approx(0.5)


# -- rates that do not suit ------------------------------------------------------------------------


def test_an_overshoot_goes_back_to_the_last_good_state_and_slows_down(digits, few):
    settings = Unlearning(learning_rate=50.0, batch_size=100, check_every=2, max_epochs=3)
    run = unlearn(digits.planted, few, settings, seed=0)
    assert run.overshoots == 1 and not run.reached and not run.steps
    # Two steps, the way back; then one step that no test has seen: undone by no test either.
    twice = replace(settings, max_epochs=2)
    run = unlearn(digits.planted, few, twice, seed=0)
    assert run.overshoots == 1 and same(
        everything(run.classifier.network), everything(digits.planted.network)
    )
    assert run.learning_rate == pytest.approx(50 * 3 / 3)  # tripled after the first of two epochs


def test_a_rate_that_is_too_large_does_not_ruin_the_network(digits, few):
    settings = Unlearning(learning_rate=3.0, batch_size=50, max_epochs=60)
    run = unlearn(digits.planted, few, settings, seed=0)
    assert run.overshoots and run.reached and run.learning_rate < 3.0
    falls = [a - b for a, b in zip([run.first_accuracy, *run.accuracy], run.accuracy, strict=False)]
    assert max(falls) <= run.first_accuracy / 3 + 1e-6
    ruined = unlearn(
        digits.planted, few, replace(settings, adapt=False, max_epochs=1, stop=0.0), seed=0
    )
    assert ruined.accuracy[0] < run.first_accuracy - run.first_accuracy / 3


def test_an_overshoot_does_not_forget_the_drops_of_the_rate(digits, few, monkeypatch):
    rates = []
    step = rnp_unlearning._Ascent.step

    def noted(self, classifier, images, labels, rate):
        rates.append(rate)
        return step(self, classifier, images, labels, rate)

    monkeypatch.setattr(rnp_unlearning._Ascent, "step", noted)
    settings = Unlearning(
        learning_rate=500.0, batch_size=25, max_epochs=1, drops=(0,), check_every=2
    )
    run = unlearn(digits.planted, few, settings, seed=0)
    assert run.overshoots == 2
    assert rates == pytest.approx([50, 50, 50 / 3, 50 / 3])


def test_a_rate_that_is_too_small_is_raised_and_the_stop_not_reached_is_said(digits, few):
    settings = Unlearning(learning_rate=1e-6, batch_size=100, max_epochs=8, check_every=4)
    run = unlearn(digits.planted, few, settings, seed=0)
    assert run.learning_rate == pytest.approx(27e-6)  # after 2, 4 and 6 of 8 epochs
    assert not run.reached and not run.overshoots and run.accuracy[-1] > 0.9
    assert run.levels == {}
    assert same(run.at(0.5).network.state_dict(), run.classifier.network.state_dict())


def test_a_network_that_every_rate_breaks_is_refused(digits, few, monkeypatch):
    monkeypatch.setattr(rnp_unlearning, "SLOWEST", 40.0)
    settings = Unlearning(learning_rate=50.0, batch_size=50, check_every=1, max_epochs=1)
    with pytest.raises(InputError, match="breaks the network at every rate; its accuracy on the"):
        unlearn(digits.planted, few, settings, seed=0)


@pytest.mark.parametrize("every", [0, 1])
def test_without_adapting_a_rate_that_diverges_is_refused(every, digits, few):
    settings = replace(PLAIN, learning_rate=1e38, batch_size=20, check_every=every, stop=0.0)
    with pytest.raises(InputError, match="unlearning diverged; use a smaller learning rate"):
        unlearn(digits.planted, few, settings, seed=0)


# -- states on the way -----------------------------------------------------------------------------


def test_each_level_is_the_state_at_the_first_test_at_or_below_it(few, unlearned):
    assert set(unlearned.levels) == set(LEVELS) == {0.75, 0.5, 0.25}
    for level in LEVELS:
        below = [a for a in unlearned.accuracy if a <= level * unlearned.first_accuracy]
        twin = unlearned.at(level)
        assert balanced(twin, few) == pytest.approx(below[0])
        assert twin.network is not unlearned.classifier.network
    ends = [everything(unlearned.at(level).network) for level in LEVELS]
    assert not same(ends[0], ends[2]), "the same state was kept for all levels"


def test_the_lost_images_tell_which_class_pulls(digits, few, unlearned):
    known = digits.planted.logits(few).argmax(1) == few.labels
    for level in LEVELS:
        answers = unlearned.at(level).logits(few).argmax(1)
        gone = answers[known & (answers != few.labels)].tolist()
        by_hand = [gone.count(k) / len(gone) for k in range(10)]
        assert unlearned.lost[level].tolist() == pytest.approx(by_hand)
    pull = (unlearned.lost[0.75] + unlearned.lost[0.5]) / 2  # the end has no say
    assert torch.allclose(unlearned.pull, pull) and float(pull.sum()) == pytest.approx(1)
    assert unlearned.fallback == int(pull.argmax()) == digits.attack.target


def test_without_an_early_level_the_last_answers_tell():
    run = Unlearned(Classifier(nn.Linear(2, 3), mean=0.5, std=0.5), 1.0, 0.2, 0.01)
    run.answers = torch.tensor([0.2, 0.7, 0.1])
    run.lost[0.25] = torch.tensor([1.0, 0.0, 0.0])
    assert run.fallback == 1 and torch.equal(run.pull, run.answers)


def test_it_can_stop_at_a_share_of_the_first_accuracy(digits, few):
    settings = Unlearning(learning_rate=0.01, batch_size=50, max_epochs=60)
    run = unlearn(digits.planted, few, settings, seed=0, until=0.5)
    assert run.reached and run.stop == pytest.approx(0.5 * run.first_accuracy)
    assert run.accuracy[-1] <= run.stop < min(run.accuracy[:-1])
    assert {0.75, 0.5} <= set(run.levels)
    deep = unlearn(digits.planted, few, settings, seed=0, until=0.01)
    assert deep.stop == pytest.approx(0.2), "the stop itself is reached first"


def test_two_classes_are_unlearned_too(digits):
    """Twice chance would be an accuracy of 1, where the network begins."""
    two = digits.clean.subset(torch.nonzero(digits.clean.labels < 2).flatten())
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 2))
    classifier = Classifier(network, mean=0.3, std=0.35)
    fit(classifier, two, Recipe(epochs=8, batch_size=16, learning_rate=0.05), seed=0)
    run = unlearn(classifier, two, Unlearning(learning_rate=0.01, batch_size=16), seed=0)
    assert run.first_accuracy > 0.9 and run.stop == pytest.approx(0.55)
    assert run.reached and run.accuracy[-1] <= run.stop and 0.75 in run.levels


@pytest.mark.parametrize("layer", [VersionedLinear, OtherNames])
def test_whatever_its_state_dict_is_a_layer_goes_back_to_a_level(few, layer):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = nn.Sequential(nn.Flatten(), layer(64, 10))
    classifier = Classifier(network, mean=0.3, std=0.35)
    fit(classifier, few, Recipe(epochs=20, batch_size=25, learning_rate=0.05), seed=0)
    run = unlearn(classifier, few, Unlearning(batch_size=50), seed=0)
    level, end = (dict(c.network.named_parameters()) for c in (run.at(0.75), run.classifier))
    assert run.levels and not same(level, end)


def test_a_level_that_was_skipped_is_the_end():
    network = nn.Linear(2, 2)
    run = Unlearned(Classifier(network, mean=0.5, std=0.5), 1.0, 0.2, 0.01)
    assert same(everything(run.at(0.5).network), everything(network))


def test_its_record_is_made_of_plain_figures(unlearned):
    record = unlearned.as_record()
    assert record["accuracy"] == unlearned.accuracy[-1] and record["steps"] == unlearned.steps[-1]
    assert record["fallback"] == unlearned.fallback and sum(record["answers"]) == pytest.approx(1)
    assert all(isinstance(v, int | float | bool | list) for v in record.values())


# -- the caller's network, and other networks ------------------------------------------------------


class Dropping(nn.Module):
    """No norm, and dropout, which draws from the global generator."""

    def __init__(self):
        super().__init__()
        self.conv, self.drop, self.fc = nn.Conv2d(1, 8, 3), nn.Dropout(0.3), nn.Linear(288, 10)

    def forward(self, x):
        return self.fc(self.drop(F.relu(self.conv(x)).flatten(1)))


@pytest.fixture
def dropping():
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return Classifier(Dropping(), mean=0.3, std=0.35)


def test_a_seed_repeats_it_and_nothing_else_has_a_say(dropping, few):
    dropping.network.conv.weight.requires_grad_(False)
    dropping.network.fc.eval()
    before, modes = everything(dropping.network), [m.training for m in dropping.network.modules()]
    states = []
    for seed in (1, 1, 2):
        torch.manual_seed(len(states))
        generator = torch.get_rng_state()
        run = unlearn(dropping, few, replace(PLAIN, stop=0.0), seed=seed)
        assert torch.equal(torch.get_rng_state(), generator), "the global generator was used"
        states.append(everything(run.classifier.network))
    assert same(states[0], states[1]) and not same(states[0], states[2])
    assert same(everything(dropping.network), before)
    assert [m.training for m in dropping.network.modules()] == modes
    flags = {name: p.requires_grad for name, p in run.classifier.network.named_parameters()}
    assert flags.pop("conv.weight") is False and all(flags.values())
    assert all(p.grad is None for p in run.classifier.network.parameters())
    assert not torch.equal(states[0]["conv.weight"], before["conv.weight"]), "frozen weights too"


def test_a_network_without_norms_unlearns(dropping, few):
    fit(dropping, few, Recipe(epochs=20, batch_size=25, learning_rate=0.05), seed=0)
    settings = Unlearning(batch_size=50, clip_norm=5.0)
    run = unlearn(dropping, few, settings, seed=0)
    assert run.first_accuracy > 0.9 and run.reached
    assert all(math.isfinite(v) for v in run.classifier.logits(few).flatten().tolist())


def test_a_group_norm_can_be_the_first_layer(few):
    """It once ended the process: its input is the image, which needed no gradient."""
    torch.manual_seed(0)
    layers = (nn.GroupNorm(1, 3), nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10))
    classifier = Classifier(nn.Sequential(*layers), mean=0.3, std=0.35)
    coloured = ImageSet(few.images.expand(-1, 3, -1, -1), few.labels)
    run = unlearn(classifier, coloured, replace(PLAIN, stop=0.0), seed=0)
    weight = run.classifier.network[0].weight
    assert not torch.equal(weight, torch.ones(3)) and weight.grad is None


def test_batches_are_even_and_never_one_image(few):
    sizes = []
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    network[1].register_forward_hook(
        lambda module, inputs, _output: sizes.append(len(inputs[0])) if module.training else None
    )
    classifier = Classifier(network, mean=0.3, std=0.35)
    settings = replace(PLAIN, learning_rate=1e-6, check_every=0)
    unlearn(classifier, few.subset(range(9)), replace(settings, batch_size=4), seed=0)
    assert sizes == [3, 3, 3]
    sizes.clear()
    unlearn(classifier, few.subset(range(5)), replace(settings, batch_size=2), seed=0)
    assert sizes == [2, 2]


# -- bad input -------------------------------------------------------------------------------------


def test_images_that_cannot_be_unlearned_are_refused(digits, few):
    with pytest.raises(InputError, match="unlearning needs labelled images"):
        unlearn(digits.planted, ImageSet(few.images), PLAIN, seed=0)
    with pytest.raises(InputError, match="at least two images"):
        unlearn(digits.planted, few.subset([0]), PLAIN, seed=0)
    with pytest.raises(InputError, match="an image has label 10; expected labels below 10"):
        unlearn(digits.planted, ImageSet(few.images, few.labels + 1), PLAIN, seed=0)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"batch_size": 1}, "batch_size is 1; expected at least 2"),
        ({"max_epochs": 0}, "max_epochs is 0; expected at least 1"),
        ({"check_every": -1}, "check_every is -1; expected at least 0"),
        ({"crop_padding": -1}, "crop_padding is -1"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0; expected more than 0"),
        ({"learning_rate": math.nan}, "learning_rate is nan"),
        ({"stop_over_chance": 0.0}, "stop_over_chance is 0.0"),
        ({"momentum": -0.1}, "momentum is -0.1; expected 0 or more"),
        ({"clip_norm": math.inf}, "clip_norm is inf"),
        ({"stop": 1.0}, r"stop is 1.0; expected an accuracy in \[0, 1\)"),
    ],
)
def test_settings_that_cannot_work_are_refused(wrong, message):
    with pytest.raises(InputError, match=message):
        Unlearning(**wrong)
