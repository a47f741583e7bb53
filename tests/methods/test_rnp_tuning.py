from types import SimpleNamespace

import pytest
import torch
from msgspec.structs import replace

from bezoar.errors import InputError
from bezoar.methods import rnp_tuning, tolerated
from bezoar.methods.neural_cleanse_triggers import Triggers
from bezoar.methods.rnp_tuning import StayPruned, Tuning, tune
from bezoar.training import Recipe
from bezoar.units import find_units

SHORT = Tuning(recipe=Recipe(epochs=1, batch_size=32, learning_rate=0.01), back=0.1)
CORNER = torch.nn.functional.pad(torch.ones(1, 1, 2, 2), (6, 0, 6, 0))
GONE = [0, 40, 100, 101, 159]  # in each of the three norms


@pytest.fixture(scope="module")
def few(digits):
    return digits.clean.sample(96, seed=0)


@pytest.fixture(scope="module")
def units(digits, few):
    return find_units(digits.planted, few.shape, sites="norm")


@pytest.fixture(scope="module")
def kept(units):
    return torch.ones(len(units)).index_fill(0, torch.tensor(GONE), 0.0)


@pytest.fixture(scope="module")
def original(digits):
    twin = digits.planted.copy()
    twin.network.eval()
    return twin


@pytest.fixture(scope="module")
def job(original, units, kept, few):
    """Tunes; ``trigger`` and ``second`` are made up, ``asked`` counts how often the latter is."""

    def run(
        trigger=None, *, died=False, excess=0.0, second=0.0, bias=False, settings=SHORT, seed=0
    ):
        pruned = units.write(original, kept, kept if bias else None)
        before = [state(original), state(pruned)]
        asked, judged = [], []

        def invert_another():
            asked.append(True)
            return fake(second, judged=judged)

        tuned = tune(
            *(original, pruned),
            lambda network: StayPruned(network, units, kept, bias=bias),
            *(few, few.subset(range(10)), settings),
            trigger=trigger,
            died=died,
            excess=excess,
            second=invert_another,
            seed=seed,
            progress=lambda *_: None,
        )
        assert same(before[0], state(original)), "the original was changed"
        assert same(before[1], state(pruned)), "the pruned network was changed"
        return SimpleNamespace(tuned=tuned, pruned=pruned, asked=len(asked), judged=judged)

    return run


def state(classifier):
    return {name: value.clone() for name, value in classifier.network.state_dict().items()}


def same(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


def fake(carried, *, covers=0.5, judged=None, pattern=CORNER):
    """A recovered trigger in the lower right corner that carries what it is told to."""
    mask = CORNER
    triggers = Triggers(
        *((4,), mask, pattern, mask.sum((1, 2, 3)), torch.ones(1)),
        *((90,), (0.1,), (1,), 1),
    )

    def carried_by(classifier, images):
        (judged if judged is not None else []).append((classifier, len(images)))
        return carried

    return SimpleNamespace(triggers=triggers, covers=covers, carried_by=carried_by)


def statistics(classifier):
    return {k: v for k, v in state(classifier).items() if "running" in k}


# -- what stays pruned -----------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("died", [False, True])
def test_pruned_units_stay_exactly_zero_and_the_others_learn(bias, died, job, units, kept):
    done = job(fake(0.9), died=died, bias=bias)
    scales = torch.cat([norm.weight for norm in done.tuned.classifier.network.norms]).detach()
    shifts = torch.cat([norm.bias for norm in done.tuned.classifier.network.norms]).detach()
    before = torch.cat([norm.weight for norm in done.pruned.network.norms]).detach()
    assert not scales[kept == 0].any()
    assert bool((scales != before)[kept == 1].float().mean() > 0.9)
    assert bool((shifts[kept == 0] == 0).all()) is bias


def test_without_the_hook_they_would_come_back(job, monkeypatch, kept):
    monkeypatch.setattr(StayPruned, "after_backward", lambda _self: None)
    done = job(fake(0.9), died=True)  # with batch statistics even a scale of 0 has a gradient
    scales = torch.cat([norm.weight for norm in done.tuned.classifier.network.norms])
    assert scales[kept == 0].any()


# -- which tuning is taken -------------------------------------------------------------------------


def test_without_a_trigger_it_is_plain_and_keeps_the_running_statistics(job):
    done = job(None)
    assert done.tuned.taken == "plain" and done.tuned.carried is None and not done.asked
    assert same(statistics(done.pruned), statistics(done.tuned.classifier))
    assert not same(state(done.pruned), state(done.tuned.classifier))
    assert len(done.tuned.loss) == 1


def test_a_large_trigger_that_did_not_die_is_not_believed(job):
    done = job(fake(1.0, covers=0.03), settings=replace(SHORT, small=0.025))
    assert done.tuned.taken == "plain" and not done.asked
    assert same(state(done.tuned.classifier), state(job(None).tuned.classifier))


def test_where_a_class_draws_the_lost_images_nothing_is_tuned_without_a_believed_trigger(job):
    settings = replace(SHORT, drawn=0.4)
    done = job(fake(1.0), excess=0.4, settings=settings)
    assert done.tuned.taken == "none" and done.tuned.loss == [] and not done.asked
    assert same(state(done.tuned.classifier), state(done.pruned))
    assert job(fake(1.0), excess=0.39, settings=settings).tuned.taken == "plain"
    believed = job(fake(1.0), excess=1.0, died=True, settings=settings)
    assert believed.tuned.taken == "against the trigger"


def test_who_wants_no_trigger_is_tuned_whatever_the_images_say(job):
    assert job(None, excess=1.0).tuned.taken == "plain"


def test_a_trigger_that_died_is_tuned_against_and_another_one_judges(job):
    done = job(fake(1.0), died=True, second=0.1)
    assert done.tuned.taken == "against the trigger" and done.tuned.carried == 0.1
    assert done.asked == 1
    assert [(c is done.tuned.classifier, n) for c, n in done.judged] == [(True, 10)]
    assert not same(statistics(done.pruned), statistics(done.tuned.classifier))
    record = done.tuned.as_record()
    assert record["taken"] == "against the trigger" and record["loss"] == done.tuned.loss


def test_where_the_other_one_works_again_the_pruned_network_stays(job):
    done = job(fake(1.0), died=True, second=0.11)
    assert done.tuned.taken == "none" and done.tuned.loss == [] and done.tuned.carried == 0.11
    assert same(state(done.tuned.classifier), state(done.pruned))


@pytest.mark.parametrize("second", [0.0, 0.9])
def test_a_small_trigger_is_tuned_against_although_nothing_died(second, job):
    done = job(fake(1.0, covers=0.025), second=second, settings=replace(SHORT, small=0.025))
    assert done.tuned.taken == "against the trigger" and done.tuned.carried == second


def test_it_learns_the_original_s_answers_whatever_the_image_carries(job, original, few, digits):
    settings = replace(SHORT, recipe=Recipe(epochs=8, batch_size=32, learning_rate=0.02), share=0.5)
    trigger = fake(1.0, pattern=digits.attack.stamp(torch.zeros(1, 1, 8, 8)))
    done = job(trigger, died=True, settings=settings)
    pixels = few.images.float() / 255
    stamped = trigger.triggers.stamp(pixels, 4)
    with torch.no_grad():
        wanted = original(pixels).argmax(1)
        agree = [
            float((network(stamped).argmax(1) == wanted).float().mean())
            for network in (original, done.tuned.classifier)
        ]
    assert agree[0] < 0.3 and agree[1] > 0.9


def test_the_plain_loss_is_the_divergence_from_the_original_s_answers(original, few):
    loss = rnp_tuning._loss(original, None, 0.2)
    other = original.copy()
    other.network.fc.weight.data *= 0.5
    pixels = few.images[:7].float() / 255
    with torch.no_grad():
        value = loss(other, pixels, few.labels[:7], torch.Generator())
        wanted, got = ((net(pixels).double() / 2).softmax(1) for net in (original, other))
    by_hand = 4 * (wanted * (wanted / got).log()).sum(1).mean()
    assert float(value) == pytest.approx(float(by_hand), rel=1e-4) and float(value) > 0.1


# -- settings --------------------------------------------------------------------------------------


def test_a_seed_repeats_it(job):
    runs = [state(job(fake(1.0), died=True, seed=seed).tuned.classifier) for seed in (1, 1, 2)]
    assert same(runs[0], runs[1]) and not same(runs[0], runs[2])


def test_the_augmentation_is_the_tolerated_one_or_the_recipe_s(job, monkeypatch):
    seen = []

    def flips(recipe, classifier, clean, *, seed):
        seen.append(len(clean))
        return replace(recipe, flip=True)

    monkeypatch.setattr(tolerated, "with_tolerated_augmentation", flips)
    flipped = state(job(None).tuned.classifier)
    assert seen == [96]
    plain = state(job(None, settings=replace(SHORT, augment="recipe")).tuned.classifier)
    assert seen == [96] and not same(flipped, plain)


@pytest.mark.parametrize("name", ["share", "small", "back", "drawn"])
@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan")])
def test_settings_that_cannot_work_are_refused(name, value):
    with pytest.raises(InputError, match=rf"{name} is {value}; expected a share in \[0, 1\]"):
        Tuning(**{name: value})
