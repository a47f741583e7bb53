"""Fine-tuning: what is trained, what stays to the bit, and how the rate swings."""

import pytest
import torch
from msgspec.structs import replace
from torch import nn

from bezoar import networks
from bezoar.classifier import Classifier
from bezoar.errors import InputError
from bezoar.evaluation import evaluate
from bezoar.images import ImageSet
from bezoar.methods import FineTuning
from bezoar.methods.fine_tuning import trained_parameters
from bezoar.methods.rate_cycles import RateCycles
from bezoar.methods.spelling import parse_method
from bezoar.training import Recipe, fit

SHORT = Recipe(epochs=2, batch_size=16, learning_rate=0.05, clip_norm=5.0)
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def few(count=40, seed=0):
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (count, 1, 8, 8), dtype=torch.uint8, generator=generator)
    return ImageSet(pixels, torch.arange(count) % 10)


def built(*layers, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = nn.Sequential(*layers) if layers else networks.build("small-cnn")
    return Classifier(network, mean=0.3, std=0.35).trace((1, 8, 8))


def changed(before, after):
    new = after.network.state_dict()
    return {k for k, v in before.network.state_dict().items() if not torch.equal(v, new[k])}


# -- what is trained -------------------------------------------------------------------------------


def test_the_default_is_the_plain_training_loop():
    classifier, images = built(), few()
    repair = FineTuning(recipe=SHORT).remove(classifier, images, seed=3)
    plain = classifier.copy()
    history = fit(plain, images, SHORT, seed=3)
    assert not changed(plain, repair.classifier)
    assert repair.record["history"]["loss"] == history.loss


def test_only_the_head_changes_and_running_statistics_stay_to_the_bit():
    classifier = built()
    repair = FineTuning(recipe=SHORT, trained="head").remove(classifier, few())
    name = classifier.head.name
    assert changed(classifier, repair.classifier) == {name, name.replace("weight", "bias")}


def test_a_head_without_bias_is_trained():
    classifier = built(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10, bias=False))
    repair = FineTuning(recipe=SHORT, trained="head").remove(classifier, few())
    assert changed(classifier, repair.classifier) == {"3.weight"}


def test_norms_alone_change_with_their_statistics():
    classifier = built()
    repair = FineTuning(recipe=SHORT, trained="norms").remove(classifier, few())
    norms = [n for n, m in classifier.network.named_modules() if isinstance(m, nn.BatchNorm2d)]
    kinds = ("weight", "bias", *STATISTICS)
    assert changed(classifier, repair.classifier) == {f"{n}.{k}" for n in norms for k in kinds}


@pytest.mark.parametrize(
    "norm",
    [
        nn.GroupNorm(2, 4),
        nn.LayerNorm([4, 6, 6]),
        nn.InstanceNorm2d(4, affine=True),
        nn.RMSNorm([4, 6, 6]),
    ],
)
def test_other_norms_are_norms(norm):
    classifier = built(nn.Conv2d(1, 4, 3), norm, nn.ReLU(), nn.Flatten(), nn.Linear(144, 10))
    repair = FineTuning(recipe=SHORT, trained="norms").remove(classifier, few())
    names = {f"1.{name}" for name, _ in norm.named_parameters()}
    assert changed(classifier, repair.classifier) == names


def test_a_norm_that_two_places_share_is_trained_once():
    norm = nn.BatchNorm2d(4)
    layers = (nn.Conv2d(1, 4, 3), norm, nn.Conv2d(4, 4, 3), norm, nn.Flatten(), nn.Linear(64, 10))
    classifier = built(*layers)
    assert len(trained_parameters(classifier, "norms")) == 2


def test_a_network_without_norms_has_nothing_to_train_there():
    classifier = built(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10))
    with pytest.raises(InputError, match="trained is 'norms' and the network has no norm"):
        FineTuning(recipe=SHORT, trained="norms").remove(classifier, few())


def test_norms_without_scales_are_named_as_the_reason():
    plain = nn.BatchNorm2d(4, affine=False)
    classifier = built(nn.Conv2d(1, 4, 3), plain, nn.ReLU(), nn.Flatten(), nn.Linear(144, 10))
    with pytest.raises(InputError, match="its 1 norms have no scales or shifts"):
        FineTuning(recipe=SHORT, trained="norms").remove(classifier, few())


@pytest.mark.parametrize("trained", ["all", "norms", "head"])
def test_a_frozen_network_is_trained_alike_and_stays_frozen(trained):
    free, frozen = built(), built()
    frozen.network.requires_grad_(False)
    method = FineTuning(recipe=SHORT, trained=trained)
    repairs = [method.remove(classifier, few(), seed=1) for classifier in (free, frozen)]
    assert not changed(repairs[0].classifier, repairs[1].classifier)
    assert not any(p.requires_grad for p in repairs[1].classifier.network.parameters())


# -- the rate --------------------------------------------------------------------------------------


def test_the_rate_rises_and_falls_linearly_to_a_high_peak_and_then_to_a_low_one():
    cycles = RateCycles(base=0.1, forgetting=0.9, recovering=0.3, steps=4, first_phase=0.5)
    rates = [cycles.rate(step, 16) for step in range(16)]
    high, low = [0.1, 0.5, 0.9, 0.5], [0.1, 0.2, 0.3, 0.2]
    assert rates == pytest.approx([*high, *high, *low, *low])
    assert [cycles.factor(step, 16) for step in range(16)] == pytest.approx(
        [rate / 0.9 for rate in rates]
    )


def test_the_second_phase_begins_a_cycle_of_its_own():
    """A port counts on through the change of phases, and jumps from a rising to a falling rate."""
    cycles = RateCycles(base=0.1, forgetting=0.9, recovering=0.3, steps=4, first_phase=0.3)
    assert [cycles.rate(step, 10) for step in (2, 3, 4)] == pytest.approx([0.9, 0.1, 0.2])


def test_one_phase_can_be_all():
    for share, peak in ((0.0, 0.3), (1.0, 0.9)):
        cycles = RateCycles(base=0.1, forgetting=0.9, recovering=0.3, steps=2, first_phase=share)
        assert max(cycles.rate(step, 7) for step in range(7)) == pytest.approx(peak)


def test_the_training_gets_these_rates(monkeypatch):
    """The rate that SGD has in each step, through the training loop."""
    seen = []

    class Watched(torch.optim.SGD):
        def step(self, closure=None):
            seen.append(self.param_groups[0]["lr"])
            return super().step(closure)

    monkeypatch.setattr(torch.optim, "SGD", Watched)
    cycles = RateCycles(base=0.01, forgetting=0.05, recovering=0.02, steps=3, first_phase=0.5)
    method = FineTuning(recipe=SHORT, schedule="super-convergent", cycles=cycles)
    method.remove(built(), few())
    assert seen == pytest.approx([cycles.rate(step, 6) for step in range(6)])
    assert SHORT.learning_rate not in seen


def test_a_peak_that_diverges_is_named():
    cycles = RateCycles(base=1.0, forgetting=1e30, recovering=1e30, steps=2)
    method = FineTuning(
        recipe=replace(SHORT, clip_norm=0.0), schedule="super-convergent", cycles=cycles
    )
    with pytest.raises(InputError, match=r"smaller learning rate than 1e\+30"):
        method.remove(built(), few())


@pytest.mark.parametrize(
    "wrong",
    [
        {"base": 0.0},
        {"forgetting": float("inf")},
        {"recovering": -0.1},
        {"base": 0.05},  # above the low peak
        {"steps": 1},
        {"first_phase": 1.1},
    ],
)
def test_cycles_that_make_no_sense_are_refused(wrong):
    (name, _), *_ = wrong.items()
    with pytest.raises(InputError, match=f"{name} is .*; expected"):
        RateCycles(**wrong)


# -- what the variants do to a backdoor ------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "method"),
    [
        ("ft:trained=norms", FineTuning(trained="norms")),
        ("ft:trained=head", FineTuning(trained="head")),
        ("ft:schedule=super-convergent", FineTuning(schedule="super-convergent")),
        (
            "ft:schedule=super-convergent,cycles.forgetting=0.3",
            FineTuning(schedule="super-convergent", cycles=RateCycles(forgetting=0.3)),
        ),
    ],
)
def test_variants_can_be_written_as_text(text, method):
    assert parse_method(text) == method


def test_an_unknown_variant_is_refused():
    with pytest.raises(InputError, match="trained"):
        parse_method("ft:trained=tail")


@pytest.mark.parametrize("trained", ["norms", "head"])
def test_a_part_of_the_network_does_not_forget_the_backdoor(trained, digits):
    """These variants tell where an effect comes from; nobody should take them for a repair."""
    repair = FineTuning(trained=trained).remove(digits.planted, digits.clean, seed=3)
    scores = evaluate(repair.classifier, digits.test, digits.attack)
    assert scores.asr >= 0.95 and scores.acc >= 0.95


def test_the_swinging_rate_forgets_a_patch_on_digits_that_plain_fine_tuning_keeps(digits):
    """Measured: an ASR of 100 % falls below 5 % and costs one to two points of accuracy."""
    method = FineTuning(schedule="super-convergent")
    before = evaluate(digits.planted, digits.test, digits.attack)
    repair = method.remove(digits.planted, digits.clean, seed=3)
    scores = evaluate(repair.classifier, digits.test, digits.attack)
    assert before.asr >= 0.95
    assert scores.asr <= 0.1
    assert scores.acc >= before.acc - 0.05
