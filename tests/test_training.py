import contextlib
import itertools

import msgspec
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from bezoar.classifier import Classifier
from bezoar.errors import InputError
from bezoar.images import ImageSet
from bezoar.training import History, Recipe, fit


def bars(count=80, seed=0):
    """Two classes: a bright left half or a bright right half, with noise."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 2
    pixels = torch.rand(count, 1, 6, 6, generator=generator) * 60
    pixels[labels == 0, :, :, :3] += 150
    pixels[labels == 1, :, :, 3:] += 150
    return ImageSet(pixels.to(torch.uint8), labels)


def network(seed=0, *, dropout=0.0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Dropout(dropout),
        nn.Flatten(),
        nn.Linear(144, 2),
    )


def classifier(**options):
    return Classifier(network(**options), mean=0.5, std=0.25)


def state(model):
    return {name: tensor.clone() for name, tensor in model.network.state_dict().items()}


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


SHORT = Recipe(epochs=2, batch_size=16, learning_rate=0.05)


def test_a_simple_problem_is_learnt():
    model, test = classifier(), bars(40, seed=1)
    history = fit(model, bars(), Recipe(epochs=5, batch_size=16, learning_rate=0.05), seed=0)
    assert float((model.logits(test).argmax(1) == test.labels).float().mean()) == 1.0
    assert len(history.loss) == 5 and history.loss[-1] < history.loss[0]
    assert history.accuracy == [] and history.seconds > 0
    assert not model.network.training


@pytest.mark.parametrize("recipe", [SHORT, Recipe(epochs=2, crop_padding=1, flip=True)])
def test_a_seed_repeats_the_training_to_the_bit(recipe):
    runs = []
    for seed in (3, 3, 4):
        model = classifier(dropout=0.5)
        torch.manual_seed(1000 + len(runs))  # the global generator has no say
        fit(model, bars(), recipe, seed=seed)
        runs.append(state(model))
    assert same(runs[0], runs[1])
    assert not same(runs[0], runs[2])


def test_the_global_generator_stays_as_it_was():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    model = Classifier(nn.Sequential(nn.Dropout(0.5), *network(1)), mean=0, std=1)
    torch.set_rng_state(before)
    fit(model, bars(), SHORT, seed=0)
    assert torch.equal(torch.get_rng_state(), before)


def test_only_the_given_parameters_train():
    model = classifier()
    before = state(model)
    head = list(model.network[5].parameters())
    fit(model, bars(), msgspec.structs.replace(SHORT, batch_norm="eval"), seed=0, parameters=head)
    changed = {
        name for name, tensor in state(model).items() if not torch.equal(tensor, before[name])
    }
    assert changed == {"5.weight", "5.bias"}


def test_batch_norm_can_keep_its_running_statistics():
    moved, kept = classifier(), classifier()
    before = state(kept)
    fit(moved, bars(), SHORT, seed=0)
    fit(kept, bars(), msgspec.structs.replace(SHORT, batch_norm="eval"), seed=0)
    for name in ("1.running_mean", "1.running_var", "1.num_batches_tracked"):
        assert torch.equal(state(kept)[name], before[name])
        assert not torch.equal(state(moved)[name], before[name])
    assert not torch.equal(state(kept)["1.weight"], before["1.weight"])


def test_instance_norm_can_keep_its_running_statistics():
    """Only BatchNorm once did; a tracking InstanceNorm moved its own in spite of ``eval``."""
    torch.manual_seed(0)
    norm = nn.InstanceNorm2d(4, track_running_stats=True)
    layers = (nn.Conv2d(1, 4, 3), norm, nn.ReLU(), nn.Flatten(), nn.Linear(64, 2))
    model = Classifier(nn.Sequential(*layers), mean=0.5, std=0.25)
    before = state(model)
    fit(model, bars(), msgspec.structs.replace(SHORT, batch_norm="eval"), seed=0)
    for name in ("1.running_mean", "1.running_var", "1.num_batches_tracked"):
        assert torch.equal(state(model)[name], before[name])


def test_a_group_norm_alone_can_be_trained():
    """It once ended the process: torch's backward pass fails where its input needs no gradient."""
    torch.manual_seed(0)
    layers = (nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2))
    model = Classifier(nn.Sequential(*layers), mean=0.5, std=0.25)
    before = state(model)
    fit(model, bars(), SHORT, seed=0, parameters=list(model.network[1].parameters()))
    changed = {name for name, value in state(model).items() if not torch.equal(value, before[name])}
    assert changed == {"1.weight", "1.bias"}


def test_a_group_norm_can_be_the_first_layer():
    """It once ended the process: its input is the image, which needed no gradient."""
    torch.manual_seed(0)
    layers = (nn.GroupNorm(1, 3), nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2))
    model = Classifier(nn.Sequential(*layers), mean=0.5, std=0.25)
    before, data = state(model), bars()
    coloured = ImageSet(data.images.expand(-1, 3, -1, -1), data.labels)
    fit(model, coloured, SHORT, seed=0)
    assert all(not torch.equal(value, before[name]) for name, value in state(model).items())


def test_a_frozen_network_trains_and_stays_frozen():
    """People freeze what they load for inference, which once stopped the training with an error."""
    frozen, free = classifier(), classifier()
    frozen.network.requires_grad_(False)
    fit(frozen, bars(), SHORT, seed=0)
    fit(free, bars(), SHORT, seed=0)
    assert same(state(frozen), state(free))
    assert not any(parameter.requires_grad for parameter in frozen.network.parameters())
    assert all(parameter.requires_grad for parameter in free.network.parameters())


@pytest.mark.parametrize("off", [torch.no_grad, torch.inference_mode])
def test_gradients_that_the_caller_has_switched_off_do_not_matter(off):
    one, other = classifier(), classifier()
    fit(one, bars(), SHORT, seed=0)
    with off():
        fit(other, bars(), SHORT, seed=0)
        assert not torch.is_grad_enabled()
    assert same(state(one), state(other))


@pytest.mark.parametrize("fails", [False, True])
def test_the_memory_layout_of_the_weights_is_given_back(fails):
    model = classifier()

    def loss(*_):
        raise InputError("no loss")

    with pytest.raises(InputError, match="no loss") if fails else contextlib.nullcontext():
        fit(model, bars(), SHORT, seed=0, loss=loss if fails else None)
    assert all(parameter.is_contiguous() for parameter in model.network.parameters())
    assert not any(module.training for module in model.network.modules())


def test_the_accuracy_on_validation_images_is_recorded():
    validation = bars(30, seed=2)
    history = fit(classifier(), bars(), SHORT, seed=0, validation=validation)
    assert len(history.accuracy) == 2
    assert all(0 <= value <= 1 for value in history.accuracy)


def test_progress_is_told_after_every_epoch():
    heard = []
    fit(
        classifier(),
        bars(),
        SHORT,
        seed=0,
        progress=lambda what, share: heard.append((what, share)),
        what="learning bars",
    )
    assert heard == [("learning bars", 0.5), ("learning bars", 1.0)]


def test_something_can_happen_before_every_epoch():
    model = classifier()
    seen = []

    def look(epoch):
        model.logits(bars(4))
        seen.append((epoch, state(model)))

    fit(model, bars(), SHORT, seed=0, before_epoch=look)
    assert [epoch for epoch, _ in seen] == [0, 1]
    assert not same(seen[0][1], seen[1][1])
    alone = classifier()
    fit(alone, bars(), SHORT, seed=0)
    assert same(state(alone), state(model)), "looking at the network changed its training"


def test_what_is_minimised_is_an_argument():
    seen = []

    def loss(model, images, labels, generator):
        seen.append((images.shape, labels.dtype, float(torch.rand(1, generator=generator))))
        return F.cross_entropy(model(images), 1 - labels)

    model, data = classifier(), bars()
    fit(model, data, Recipe(epochs=4, batch_size=40, learning_rate=0.05), seed=0, loss=loss)
    assert float((model.logits(data).argmax(1) == data.labels).float().mean()) == 0.0
    assert len(seen) == 8 and seen[0][:2] == ((40, 1, 6, 6), torch.int64)
    assert len({value for *_, value in seen}) == 8


@pytest.mark.parametrize(
    ("schedule", "shares"),
    [
        ("constant", [1, 1, 1, 1, 1]),
        ("cosine", [1, 0.9045, 0.6545, 0.3455, 0.0955]),
        ("one-cycle", [0, 1, 0.75, 0.5, 0.25]),
    ],
)
def test_the_learning_rate_follows_its_schedule(schedule, shares):
    """With a constant gradient and plain SGD every step is the rate itself."""
    model = Classifier(nn.Sequential(nn.Flatten(), nn.Linear(36, 2)), mean=0, std=1)
    weight = model.network[1].weight
    recipe = Recipe(
        epochs=1, batch_size=2, learning_rate=0.5, schedule=schedule, momentum=0, weight_decay=0
    )
    places = []

    def loss(*_arguments):
        places.append(float(weight[0, 0].detach()))
        return weight.sum()

    fit(model, bars(10), recipe, seed=0, loss=loss)
    places.append(float(weight[0, 0].detach()))
    steps = [before - after for before, after in itertools.pairwise(places)]
    assert steps == pytest.approx([0.5 * share for share in shares], abs=1e-4)


def test_a_rate_of_one_s_own_takes_the_place_of_the_schedule():
    model = Classifier(nn.Sequential(nn.Flatten(), nn.Linear(36, 2)), mean=0, std=1)
    weight = model.network[1].weight
    recipe = Recipe(epochs=2, batch_size=4, learning_rate=0.5, momentum=0, weight_decay=0)
    places, asked = [], []

    def loss(*_arguments):
        places.append(float(weight[0, 0].detach()))
        return weight.sum()

    def rate(step, total):
        asked.append((step, total))
        return [0.5, 1.0, 0.25, 0.0][step]

    fit(model, bars(8), recipe, seed=0, loss=loss, rate=rate)
    places.append(float(weight[0, 0].detach()))
    steps = [before - after for before, after in itertools.pairwise(places)]
    assert asked == [(0, 4), (1, 4), (2, 4), (3, 4)]
    assert steps == pytest.approx([0.25, 0.5, 0.125, 0.0], abs=1e-6)


def test_a_batch_that_is_left_out_does_not_stretch_the_schedule():
    """The last step of a cosine is the one that a training without that image would make."""
    asked = []
    recipe = Recipe(epochs=3, batch_size=4, learning_rate=0.01)
    fit(classifier(), bars(9), recipe, seed=0, rate=lambda *at: asked.append(at) or 1.0)
    assert asked == [(step, 6) for step in range(6)]
    asked.clear()
    kept = msgspec.structs.replace(recipe, batch_norm="eval")  # a single image does no harm there
    fit(classifier(), bars(9), kept, seed=0, rate=lambda *at: asked.append(at) or 1.0)
    assert asked == [(step, 9) for step in range(9)]


def test_no_gradient_stays_behind():
    model = classifier()
    fit(model, bars(), SHORT, seed=0)
    assert all(parameter.grad is None for parameter in model.network.parameters())


def test_clipping_limits_the_gradient():
    def farthest(clip_norm):
        model = classifier()
        before = state(model)
        recipe = Recipe(
            epochs=1,
            batch_size=80,
            learning_rate=1.0,
            schedule="constant",
            momentum=0,
            weight_decay=0,
            clip_norm=clip_norm,
        )
        fit(model, bars(), recipe, seed=0)
        names = [name for name, _ in model.network.named_parameters()]
        return float(torch.stack([(state(model)[n] - before[n]).norm() for n in names]).norm())

    assert farthest(0.01) == pytest.approx(0.01, rel=1e-3)
    assert farthest(0.0) > 0.02


def test_a_batch_of_one_image_is_trained_on_when_it_was_asked_for():
    counted = []

    def loss(model, images, labels, _generator):
        counted.append(len(images))
        return F.cross_entropy(model(images), labels)

    fit(classifier(), bars(5), Recipe(epochs=1, batch_size=1), seed=0, loss=loss)
    assert counted == [1, 1, 1, 1, 1]
    counted.clear()
    fit(classifier(), bars(5), Recipe(epochs=1, batch_size=2), seed=0, loss=loss)
    assert counted == [2, 2], "batch statistics of one left-over image are no statistics"


@pytest.mark.parametrize("rate", [1e8, 1e30])
def test_a_training_that_diverges_says_so(rate):
    recipe = Recipe(epochs=3, batch_size=16, learning_rate=rate, schedule="constant")
    with pytest.raises(InputError, match=r"bars diverged: .*smaller learning rate than 1e\+"):
        fit(classifier(), bars(), recipe, seed=0, what="bars")


def test_a_step_into_infinity_at_the_very_end_is_noticed():
    recipe = Recipe(epochs=1, batch_size=80, learning_rate=1e38, schedule="constant")

    def steep(model, images, labels, _generator):
        return 1e4 * F.cross_entropy(model(images), labels)

    with pytest.raises(InputError, match="not finite numbers after the last epoch"):
        fit(classifier(), bars(), recipe, seed=0, loss=steep)


def test_images_that_do_not_fit_the_network_are_refused():
    data = bars()
    with pytest.raises(InputError, match="training needs labelled images"):
        fit(classifier(), ImageSet(data.images), SHORT, seed=0)
    with pytest.raises(InputError, match="label 5 needs 6 classes and the network has 2"):
        fit(classifier(), ImageSet(data.images, data.labels * 5), SHORT, seed=0)


@pytest.mark.parametrize(
    "wrong",
    [
        {"epochs": 0},
        {"batch_size": 0},
        {"learning_rate": -1.0},
        {"learning_rate": float("nan")},
        {"weight_decay": float("inf")},
        {"clip_norm": -1.0},
    ],
)
def test_a_recipe_that_makes_no_sense_is_refused(wrong):
    (name, _), *_ = wrong.items()
    with pytest.raises(InputError, match=f"{name} is .*; expected"):
        Recipe(**wrong)


def test_a_history_is_plain():
    first, second = History(), History()
    first.loss.append(1.0)
    assert second.loss == []
