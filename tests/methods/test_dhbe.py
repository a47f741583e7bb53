"""DHBE as a method: without a single image, with the control that keeps the backdoor."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from method_rows import sharing
from msgspec.structs import replace
from torch import nn

from bezoar import networks
from bezoar.classifier import Classifier
from bezoar.errors import InputError
from bezoar.evaluation import evaluate
from bezoar.methods import DHBE, dhbe
from bezoar.methods.dhbe_measuring import Changed
from bezoar.methods.synthesis import Synthesis, source_for
from bezoar.metrics import rate

GREY, SPREAD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
QUICK = DHBE(
    iterations=2,
    probe=2,
    recalibration=2,
    synthesis=Synthesis(steps=3, batch_size=16, latent=8, width=4),
    pattern_latent=8,
    pattern_width=4,
)


def without_images(classifier):
    """As a user has it who knows the input size and nothing else."""
    height, width = classifier.input_shape[1:]
    return Classifier(
        classifier.copy().network,
        mean=classifier.mean,
        std=classifier.std,
        input_size=(height, width),
    )


@pytest.fixture
def repaired(full_repair):
    return full_repair("dhbe", "planted")


@sharing("dhbe", "planted")
def test_it_erases_the_backdoor_without_an_image(digits, repaired):
    before = evaluate(digits.planted, digits.test, digits.attack)
    after = evaluate(repaired.classifier, digits.test, digits.attack)
    assert before.asr >= 0.95
    assert after.asr <= 0.2 and after.acc >= before.acc - 0.05


@pytest.mark.slow
def test_without_the_second_game_the_backdoor_stays(digits):
    digits.planted.trace(digits.clean.shape)
    control = DHBE(insensitivity=0.0, probe=0).remove(digits.planted, seed=3)
    assert evaluate(control.classifier, digits.test, digits.attack).asr >= 0.8


@sharing("dhbe", "planted")
def test_the_record_says_what_was_measured_instead(repaired):
    same = repaired.record["agreement"]["synthetic"]
    moved = repaired.record["insensitivity"]
    assert same["count"] == 1024 and same["value"] > 0.5
    assert moved["after"]["value"] < moved["before"]["value"]
    played = (len(repaired.record["rounds"]) - 1) * DHBE().iterations
    assert [len(curve["y"]) for curve in repaired.record["curves"]] == [played] * 4
    assert len(repaired.synthetic) >= 256
    assert set(repaired.synthetic.labels.tolist()) == set(range(10))


@pytest.mark.parametrize("side", [28, 48, 64, 96, pytest.param(224, marks=pytest.mark.slow)])
@pytest.mark.parametrize("channels", [1, 3])
def test_it_takes_other_sizes_and_grey_images(side, channels):
    classifier = Classifier(
        small(channels), mean=[0.5] * channels, std=[0.25] * channels, input_size=(side, side)
    )
    batch = replace(QUICK.synthesis, batch_size=8)
    quick = replace(QUICK, iterations=1, student_steps=1, synthesis=batch, large_patterns=25.0)
    repair = quick.remove(classifier)
    assert repair.synthetic.shape == (channels, side, side)
    assert not torch.equal(
        repair.classifier.network.state_dict()["0.weight"], classifier.network[0].weight
    )


def small(channels):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(channels, 8, 5, stride=4),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Dropout(0.9),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 4),
    )


def test_it_works_without_batch_norm_and_says_so():
    network = networks.build("gn-resnet-8", num_classes=4, width=4)
    classifier = Classifier(network, mean=GREY, std=SPREAD, input_size=(16, 16))
    record = QUICK.remove(classifier).record
    assert any("BatchNorm" in flag for flag in record["flags"])


def test_dropout_stays_off_and_flags_come_back():
    classifier = Classifier(small(3), mean=GREY, std=SPREAD, input_size=(32, 32))
    classifier.network.train()
    classifier.network[0].weight.requires_grad_(False)
    first, second = (QUICK.remove(classifier, seed=1).classifier.network for _ in range(2))
    assert torch.equal(first[0].weight, second[0].weight)
    assert not first[0].weight.requires_grad and first[6].weight.requires_grad


class Holding(nn.BatchNorm2d):
    """A norm with something in it, as timm has them."""

    def __init__(self, channels):
        super().__init__(channels)
        self.drop = nn.Dropout(0.9)

    def forward(self, x):
        return self.drop(super().forward(x))


class Shallow(nn.Module):
    """Drops at random by no module of its own: as a function, and as stochastic depth does."""

    def __init__(self):
        super().__init__()
        self.norm, self.head = Holding(8), nn.Linear(8, 4)

    def forward(self, x):
        x = F.dropout(self.norm(x), 0.9, self.training)
        kept = torch.rand(len(x), 1, 1, 1) < 0.1 if self.training else 1.0
        return self.head((x * kept).mean((2, 3)))


def test_in_the_game_nothing_drops_at_random_but_norms_take_the_batch():
    """Only dropout modules were once switched off, and what else dropped floored the distance."""
    torch.manual_seed(0)
    student, x = Shallow(), torch.rand(6, 8, 4, 4)
    dhbe._set_training(student)
    one, other = student(x), student(x)
    assert torch.equal(one, other)
    assert int(student.norm.num_batches_tracked) == 2
    student.eval()
    assert not torch.allclose(student(x), one, atol=1e-3)


@pytest.mark.parametrize(
    ("classes", "shown", "told"),
    [
        (10, 2, True),
        (10, 3, False),
        (1000, 191, True),
        (1000, 193, False),
        (3, 2, False),
        (3, 1, True),
    ],
)
def test_few_classes_are_told_whatever_their_number(classes, shown, told):
    """A batch of 64 images cannot show 30 % of a thousand classes, which was once called few."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, classes))
    classifier = Classifier(network, mean=GREY, std=SPREAD, input_size=(2, 2)).trace((3, 2, 2))
    source = SimpleNamespace(network=nn.BatchNorm2d(3))
    nowhere = Changed(rate(0, 1024), 0, 0.0)
    seen = torch.arange(1024) % shown  # an even spread over 1,000 classes shows 641
    flags = DHBE()._flags(classifier, source, [nowhere, nowhere], seen)
    told_of = f"The last 1,024 synthetic images show {shown:,} of {classes:,} classes; the others"
    alone = "Nearly all of the last 1,024 synthetic images are of one class, so whether patterns"
    expected = [f"{told_of} were hardly repaired."] * told
    assert flags[: len(expected)] == expected and len(flags) == len(expected) + (shown == 1)
    assert shown > 1 or flags[-1].startswith(alone)


def test_norms_of_each_batch_keep_the_rate_and_are_not_told_as_none():
    """They remember nothing, and they do bound the activations."""
    rates = {}
    for kind, norm in {
        "batch": nn.BatchNorm2d(4, track_running_stats=False),
        "remembers": nn.BatchNorm2d(4),
        "none": nn.Identity(),
    }.items():
        network = nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1), norm, nn.ReLU(), nn.Flatten(), nn.Linear(1024, 3)
        )
        classifier = Classifier(network, mean=GREY, std=SPREAD, input_size=(16, 16))
        classifier.trace((3, 16, 16))
        source = source_for(classifier, QUICK.synthesis, 0)
        game = QUICK._game(classifier, source, network, (2,), 0)
        rates[kind] = game.optimizer.param_groups[0]["lr"]
    assert rates["batch"] == rates["remembers"] == pytest.approx(10 * rates["none"])


def test_rounds_end_when_fresh_patterns_lead_nowhere(digits):
    digits.planted.trace(digits.clean.shape)
    stubborn = replace(QUICK, rounds=3, led=0.0).remove(digits.planted)
    content = replace(QUICK, rounds=3, led=1.0).remove(digits.planted)
    assert [len(repair.record["rounds"]) for repair in (stubborn, content)] == [4, 2]
    assert any("probably not gone" in flag for flag in stubborn.record["flags"])
    assert not any("probably not gone" in flag for flag in content.record["flags"])


def test_the_published_preset_is_the_released_code():
    method = DHBE.published()
    assert (method.iterations, method.rounds, method.student_steps) == (15_000, 1, 5)
    assert method.synthesis.batch_size == 256
    assert (method.learning_rate, method.momentum, method.weight_decay) == (0.1, 0.9, 5e-4)
    assert (method.insensitivity, method.distance, method.adversary) == (0.1, "absolute", 1.0)
    assert (method.patch_sizes, method.placement, method.statistics) == ((5,), "batch", "all")
    assert method.synthesis.roughness_norm == 1e-4 and method.synthesis.steps == 0
    assert method.recalibration == 0 and not method.synthesis.bounded
    made = method.synthesis
    assert (made.statistics, made.balance, made.decision, made.roughness) == (0, 0, 0, 0)
    assert (made.latent, made.width, method.pattern_latent, method.pattern_width) == (
        256,
        64,
        256,
        64,
    )


def test_the_published_game_runs():
    classifier = Classifier(small(3), mean=GREY, std=SPREAD, input_size=(32, 32))
    few = replace(DHBE.published().synthesis, batch_size=8)
    quick = replace(DHBE.published(), iterations=1, probe=1, synthesis=few)
    record = quick.remove(classifier).record
    assert len(record["curves"][0]["y"]) == 1


def test_a_ruined_student_is_refused():
    classifier = Classifier(small(3), mean=GREY, std=SPREAD, input_size=(32, 32))
    record = replace(QUICK, learning_rate=1e30).remove(classifier).record
    assert "diverged" in record["refused"]


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"iterations": 0}, "iterations"),
        ({"student_steps": 0}, "student_steps"),
        ({"learning_rate": -1.0}, "learning_rate"),
        ({"insensitivity": float("nan")}, "insensitivity"),
        ({"patch_sizes": (0,)}, "patch_sizes"),
        ({"recalibration": -1}, "recalibration"),
    ],
)
def test_settings_out_of_range_are_named(change, what):
    with pytest.raises(InputError, match=what):
        DHBE(**change)


def test_bad_input_is_told_before_any_work():
    unknown = Classifier(small(3), mean=GREY, std=SPREAD)
    with pytest.raises(InputError, match="input size"):
        QUICK.remove(unknown)
    known = Classifier(small(3), mean=GREY, std=SPREAD, input_size=(8, 8))
    with pytest.raises(InputError, match="smaller patch_sizes"):
        replace(QUICK, patch_sizes=(9,)).remove(known)
    few = replace(QUICK, patch_sizes=(2, 3), synthesis=replace(QUICK.synthesis, batch_size=3))
    with pytest.raises(InputError, match="batch_size"):
        few.remove(known)
