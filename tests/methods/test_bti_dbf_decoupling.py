"""The mask of benign features: what it covers, its gradients, its figures, its two modes."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from halves import SHAPE, back, batches, front, nearly
from torch import nn

from bezoar.augmentation import crop_and_flip
from bezoar.classifier import Classifier
from bezoar.errors import InputError
from bezoar.images import ImageSet
from bezoar.methods.bti_dbf_decoupling import (
    Decoupled,
    Decoupling,
    Half,
    _from_maps,
    decouple,
    mixed,
    normalises_by_batch,
)

SHORT = Decoupling(steps=12, batch_size=50, learning_rate=0.05, sparsity=0.0)
FOR, AGAINST, PLANTED, IDLE = slice(0, 8), slice(8, 12), slice(12, 15), slice(15, 20)


def planted(against=2.0):
    """A hidden layer of 20 entries of which each does one thing, and 4 classes.

    Pixel k is bright where the class is k. Two entries a class speak for it, one a class against
    it, three answer a bright last pixel alone, which clean images do not have, with class 0, and
    five hold noise that nobody reads.
    """
    hidden, head = nn.Linear(16, 20), nn.Linear(20, 4)
    with torch.no_grad():
        for layer in (hidden, head):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        for k in range(4):
            hidden.weight[[2 * k, 2 * k + 1, 8 + k], k] = 2.0
            hidden.bias[[2 * k, 2 * k + 1, 8 + k]] = -0.5
            head.weight[k, [2 * k, 2 * k + 1]] = 4.0
            head.weight[k, 8 + k] = -against
        hidden.weight[PLANTED, 15], hidden.bias[PLANTED] = 10.0, -8.0
        head.weight[0, PLANTED] = 20.0
        hidden.weight[IDLE, 8:13] = 1.0
    network = nn.Sequential(nn.Flatten(), hidden, nn.ReLU(), head)
    return Classifier(network.eval(), mean=0.0, std=1.0)


def blobs(count=200, seed=0):
    """Images (1, 4, 4) for ``planted``, with noise on all pixels."""
    draws = torch.Generator().manual_seed(seed)
    labels = torch.randint(4, (count,), generator=draws)
    pixels = torch.randint(50, (count, 16), generator=draws)
    pixels[torch.arange(count), labels] += 180
    return ImageSet.from_arrays(pixels.to(torch.uint8).view(-1, 1, 4, 4), labels)


def start(shape, seed):
    return torch.randn((1, *shape), generator=torch.Generator().manual_seed(seed))


def entropy(logits, labels):
    return float(F.cross_entropy(logits, labels))


# -- which entries the mask covers -----------------------------------------------------------------


def test_the_mask_covers_the_benign_entries_and_what_is_left_is_worse_than_chance():
    clean, held_out = blobs(), blobs(80, seed=1)
    settings = Decoupling(steps=400, sparsity=0.5)
    found = decouple(planted(), clean, held_out, settings, seed=0)
    mask = found.mask[0]
    assert found.split.layer == "2" and found.mask.shape == (1, 20)
    assert mask[FOR].min() > 0.95
    for others in (AGAINST, PLANTED, IDLE):
        assert mask[others].max() < 0.05
    assert found.rest.cross_entropy > math.log(4) + 0.5
    assert found.rest.accuracy < 0.25 < found.benign.accuracy == 1 == found.whole.accuracy
    assert found.weakness() is None


def test_without_sparsity_entries_that_do_nothing_stay_where_they_started():
    settings = Decoupling(steps=400, sparsity=0.0)
    mask = decouple(planted(), blobs(), None, settings, seed=3).mask[0]
    before = torch.sigmoid(2 * start((20,), 3))[0]
    assert mask[FOR].min() > 0.95 and mask[AGAINST].max() < 0.05
    torch.testing.assert_close(mask[PLANTED], before[PLANTED])
    torch.testing.assert_close(mask[IDLE], before[IDLE])


def test_a_network_that_does_not_separate_is_named():
    settings = Decoupling(steps=60, sparsity=0.5)
    found = decouple(planted(against=0.0), blobs(), None, settings, seed=0)
    assert found.rest.cross_entropy <= math.log(4)
    assert "hardly separated at 2" in found.weakness()


def halves(benign, rest, whole=1.0, right=0.6):
    split = planted().trace((1, 4, 4)).split()
    of_benign, of_rest, of_whole = Half(benign, 0.5), Half(right, rest), Half(whole, 0.1)
    ones = torch.ones(1, 20)
    return Decoupled(split, ones, 0 * ones, of_whole, of_benign, of_rest, 10, True, 4)


@pytest.mark.parametrize(
    ("found", "says"),
    [
        (halves(0.9, math.log(4) + 0.01), None),
        (halves(0.9, math.log(4)), "what is left still answers 60 %"),
        (halves(0.9, math.log(4) - 0.01, right=0.3), None),  # it knows nothing
        (halves(0.74, 9.0), "answer only 74 % of the images rightly, the network 100 %"),
        (halves(0.74, 9.0, whole=0.9), None),
    ],
)
def test_the_warning_says_which_half_is_weak(found, says):
    told = found.weakness()
    assert told is None if says is None else says in told
    assert found.as_record()["weakness"] == told


# -- the algorithm, against a plain loop -----------------------------------------------------------


def plain_loop(network, clean, settings, centre, seed, *, signed=False):
    """Eq. (1) as the official code goes about it: the map, twice the rest, Adam on p."""
    draws = torch.Generator().manual_seed(seed)
    p = torch.randn(1, *SHAPE, generator=draws).requires_grad_()
    adam = torch.optim.Adam([p], lr=settings.learning_rate)
    stream, gradients = batches(len(clean), settings.batch_size, draws), []
    for _ in range(settings.steps):
        rows = next(stream)
        x, y = clean.images[rows] / 255, clean.labels[rows]
        if settings.crop_padding:
            x = crop_and_flip(x, padding=settings.crop_padding, flip=False, generator=draws)
        m = 0.5 + torch.tanh(p) / (2 + 1e-7)
        maps = front(network, x, signed=signed)
        kept = F.cross_entropy(back(network, m * maps + (1 - m) * centre), y)
        left = F.cross_entropy(back(network, (1 - m) * maps + m * centre), y)
        adam.zero_grad()
        (kept - left + settings.sparsity * m.sum() / m.numel()).backward()
        gradients.append(p.grad.clone())
        adam.step()
    return (0.5 + torch.tanh(p.detach()) / (2 + 1e-7)), gradients


class Watched(torch.optim.Adam):
    """Keeps the gradients that it steps on."""

    seen: list

    def step(self):
        self.seen += [p.grad.clone() for group in self.param_groups for p in group["params"]]
        super().step()


@pytest.mark.parametrize("sparsity", [0.0, 2.0])
@pytest.mark.parametrize("centre", ["zero", "mean"])
def test_gradients_with_maps_computed_once_are_those_of_the_whole_network(
    centre, sparsity, digits, monkeypatch
):
    gradients = []
    monkeypatch.setattr(Watched, "seen", gradients, raising=False)
    signed = centre == "mean"  # at a layer that is named, negative entries stay
    settings = Decoupling(
        layer="norms.2" if signed else None,
        steps=12,
        batch_size=70,
        sparsity=sparsity,
        centre=centre,
    )
    network = copy.deepcopy(digits.planted.network).eval()
    with torch.no_grad():
        mean = front(network, digits.clean.images / 255, signed=True).mean(0, keepdim=True)
    mean = mean if signed else 0 * mean
    expected, wanted = plain_loop(network, digits.clean, settings, mean, 7, signed=signed)
    monkeypatch.setattr(torch.optim, "Adam", Watched)
    found = decouple(digits.planted, digits.clean, None, settings, seed=7)
    assert len(gradients) == len(wanted) == 12
    torch.testing.assert_close(gradients[0], wanted[0], rtol=1e-4, atol=1e-7)
    assert wanted[0].abs().max() > 1e-4
    assert nearly(found.mask, expected)
    torch.testing.assert_close(found.centre, mean, rtol=0, atol=1e-5)


@pytest.mark.parametrize("padding", [0, 2])
def test_train_mode_is_the_official_algorithm_and_leaves_the_classifier_alone(padding, digits):
    settings = Decoupling(
        steps=12,
        batch_size=70,
        sparsity=0.0,
        learning_rate=0.01,
        statistics="train",
        centre="zero",
        crop_padding=padding,
    )
    network = copy.deepcopy(digits.planted.network)
    state = {name: value.clone() for name, value in network.state_dict().items()}
    slopes = [copy.deepcopy(p.grad) for p in digits.planted.network.parameters()]
    expected, _ = plain_loop(network.train(), digits.clean, settings, 0.0, 7)
    found = decouple(digits.planted, digits.clean, None, settings, seed=7)
    assert nearly(found.mask, expected)
    eval_mode, _ = plain_loop(network.eval(), digits.clean, settings, 0.0, 7)
    assert not nearly(eval_mode, expected), "the modes must differ, or nothing is tested"
    assert not any(module.training for module in digits.planted.network.modules())
    for name, value in digits.planted.network.state_dict().items():
        assert torch.equal(value, state[name]), name
    assert all(p.requires_grad for p in digits.planted.network.parameters())
    assert all(
        (p.grad is None) if g is None else torch.equal(p.grad, g)
        for p, g in zip(digits.planted.network.parameters(), slopes, strict=True)
    )


class Dropping(nn.Module):
    """Signed or positive maps, dropout, and a norm of rows that cannot take one image."""

    def __init__(self, signed=True):
        super().__init__()
        self.conv = nn.Conv2d(1, 6, 3)
        self.map = nn.Identity() if signed else nn.ReLU()
        self.drop, self.norm, self.fc = nn.Dropout(0.5), nn.BatchNorm1d(24), nn.Linear(24, 4)

    def forward(self, x):
        return self.fc(self.norm(self.drop(self.map(self.conv(x)).flatten(1))))


def dropping(signed=True):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Classifier(Dropping(signed).train(), mean=0.3, std=0.3)


@pytest.mark.parametrize("statistics", ["eval", "train"])
def test_a_seed_repeats_the_mask_and_no_global_draw_is_made(statistics):
    settings = Decoupling(steps=9, batch_size=16, statistics=statistics)
    before = torch.random.get_rng_state()
    one, again, other = (
        decouple(dropping(), blobs(40), None, settings, seed=seed) for seed in (5, 5, 6)
    )
    assert torch.equal(before, torch.random.get_rng_state())
    assert torch.equal(one.mask, again.mask) and one.as_record() == again.as_record()
    assert not torch.allclose(one.mask, other.mask, atol=0.05)


def test_a_batch_of_one_image_that_remains_has_no_statistics():
    settings = Decoupling(steps=6, batch_size=8, statistics="train")
    found = decouple(dropping(), blobs(17), None, settings, seed=0)
    assert torch.isfinite(found.mask).all() and found.measured_on == 17


# -- the mean map ----------------------------------------------------------------------------------


def test_signed_maps_are_mixed_with_their_mean_and_others_with_zero():
    clean = blobs(60)
    for signed in (True, False):
        classifier = dropping(signed)
        classifier.network.eval()
        with torch.no_grad():
            maps = classifier.network.map(classifier.network.conv((clean.images / 255 - 0.3) / 0.3))
        assert bool((maps < 0).any()) == signed
        centre = maps.mean(0, keepdim=True) if signed else 0 * maps[:1]
        for how, wanted in (("mean", centre), ("zero", 0 * centre)):
            settings = Decoupling(steps=2, layer="map", centre=how)
            found = decouple(classifier, clean, None, settings, seed=0)
            torch.testing.assert_close(found.centre, wanted.expand_as(found.centre))
            m = found.mask
            torch.testing.assert_close(found.kept(maps), m * maps + (1 - m) * wanted)
            torch.testing.assert_close(found.left(maps), (1 - m) * maps + m * wanted)


# -- figures ---------------------------------------------------------------------------------------


def test_the_figures_are_those_of_held_out_images_in_eval_mode():
    classifier, clean, held_out = dropping(), blobs(60), blobs(45, seed=1)
    found = decouple(classifier, clean, held_out, Decoupling(steps=20, batch_size=30), seed=0)
    assert classifier.network.training, "and the mode is restored"
    assert (found.measured_on, found.held_out, found.classes) == (45, True, 4)
    network = classifier.network.eval()
    with torch.no_grad():
        maps = network.conv((held_out.images / 255 - 0.3) / 0.3)
        for half, part in (
            (found.whole, maps),
            (found.benign, found.kept(maps)),
            (found.rest, found.left(maps)),
        ):
            logits = network.fc(network.norm(part.flatten(1)))
            assert half.cross_entropy == pytest.approx(entropy(logits, held_out.labels), abs=1e-5)
            right = (logits.argmax(1) == held_out.labels).float().mean()
            assert half.accuracy == pytest.approx(float(right))
    record = found.as_record()
    assert record["map"] == list(found.mask.shape[1:]) == [6, 2, 2]
    assert record["share of the map"] == pytest.approx(float(found.mask.mean()))
    assert (record["images"], record["held out"], record["layer"]) == (45, True, "map")
    assert record["rest"] == {
        "accuracy": found.rest.accuracy,
        "cross-entropy": found.rest.cross_entropy,
    }


def test_without_held_out_images_the_figures_are_of_the_images_of_the_mask():
    clean = blobs(30)
    for none in (None, clean.subset([])):
        found = decouple(planted(), clean, none, SHORT, seed=0)
        assert (found.measured_on, found.held_out) == (30, False)


def test_without_labels_the_answers_stand_in():
    clean, classifier = blobs(60), planted()
    plain = ImageSet.from_arrays(clean.images)
    assert torch.equal(classifier.logits(clean).argmax(1), clean.labels)
    wanted, found = (decouple(classifier, s, s, SHORT, seed=0) for s in (clean, plain))
    assert torch.equal(found.mask, wanted.mask) and found.rest == wanted.rest
    shifted = ImageSet.from_arrays(clean.images, (clean.labels + 1) % 4)
    assert not torch.allclose(decouple(classifier, shifted, None, SHORT, seed=0).mask, wanted.mask)


def test_the_network_that_is_cut_is_the_one_that_was_given_and_progress_ends_at_one():
    classifier, told = planted(), []
    found = decouple(classifier, blobs(30), None, SHORT, seed=0, progress=lambda *a: told.append(a))
    assert told[-1] == ("BTI-DBF: decoupling benign features", 1.0)
    x = torch.rand(3, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before = found.split.front(x)
        classifier.network[1].weight.mul_(2)
        assert not torch.allclose(found.split.front(x), before)


# -- settings and bad input ------------------------------------------------------------------------


def test_published_is_what_the_official_code_does():
    settings = Decoupling.published()
    assert settings.layer is None and settings.steps is None
    assert (settings.epochs, settings.batch_size, settings.learning_rate) == (20, 128, 0.01)
    assert (settings.sparsity, settings.statistics, settings.centre) == (0, "train", "zero")
    assert (settings.flip, settings.crop_padding) == (False, 4)


def test_epochs_are_passes_where_no_steps_are_given():
    told = []
    settings = Decoupling(steps=None, epochs=5, batch_size=16)
    decouple(planted(), blobs(40), None, settings, seed=0, progress=lambda _w, s: told.append(s))
    assert told == [(i + 1) / 15 for i in range(15)]  # three batches a pass


@pytest.mark.parametrize(
    "wrong",
    [
        {"steps": 0},
        {"epochs": 0},
        {"batch_size": 0},
        {"crop_padding": -1},
        {"learning_rate": 0.0},
        {"learning_rate": math.nan},
        {"sparsity": -0.1},
        {"sparsity": math.inf},
        {"flip": True},
        {"crop_padding": 2},
    ],
)
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        Decoupling(**wrong)


def test_bad_input_is_named():
    clean, train = blobs(10), Decoupling(statistics="train")
    with pytest.raises(InputError, match="no clean images"):
        decouple(planted(), clean.subset([]), None, SHORT, seed=0)
    with pytest.raises(InputError, match="labels"):
        decouple(planted(), ImageSet.from_arrays(clean.images), None, train, seed=0)
    with pytest.raises(InputError, match="no module 'conv9'"):
        decouple(planted(), clean, None, Decoupling(layer="conv9"), seed=0)


@pytest.mark.parametrize("remembers", [True, False])
def test_halves_do_not_feel_each_other_behind_norms_of_the_batch(remembers):
    torch.manual_seed(0)
    norm = nn.BatchNorm1d(6, track_running_stats=remembers)
    network = nn.Sequential(nn.Flatten(), nn.Linear(16, 6), nn.ReLU(), norm, nn.Linear(6, 3))
    classifier = Classifier(network.eval(), mean=0.0, std=1.0).trace((1, 4, 4))
    apart = normalises_by_batch(network)
    assert apart != remembers
    split, maps, centre = classifier.split("2"), torch.rand(20, 6), torch.zeros(1, 6)
    draws = torch.Generator().manual_seed(0)
    labels = torch.arange(20) % 3
    short = Decoupling(batch_size=20)
    answers = _from_maps(split, maps, labels, centre, short, draws, apart=apart)
    mask = torch.rand(1, 6)
    benign, rest, chosen = answers(mask)
    order = [
        int(torch.nonzero((split.back(mixed(maps, mask, centre)) - row).abs().sum(1) < 1e-5)[0])
        for row in benign
    ]
    assert sorted(order) == list(range(20)) and torch.equal(labels[order], chosen)
    assert torch.allclose(rest, split.back(mixed(maps, 1 - mask, centre))[order], atol=1e-5)
