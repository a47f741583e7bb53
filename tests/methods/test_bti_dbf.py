"""BTI-DBF (U): rounds, the way back, several targets, and the official code's settings."""

import math
from types import SimpleNamespace

import pytest
import torch
from msgspec.structs import replace
from odd_state_dicts import OtherNames, VersionedLinear
from torch import nn

from bezoar import networks, pipeline
from bezoar.attacks import BadNets
from bezoar.classifier import Classifier
from bezoar.demo import DIGITS_RECIPE
from bezoar.errors import InputError
from bezoar.images import ImageSet
from bezoar.methods import BtiDbf, bti_dbf, bti_dbf_recovering, bti_dbf_settling, bti_dbf_strength
from bezoar.methods.bti_dbf_decoupling import Decoupling
from bezoar.methods.bti_dbf_generators import GeneratorInversion, Pretraining
from bezoar.methods.bti_dbf_settling import still_carried
from bezoar.methods.bti_dbf_unlearning import GeneratedUnlearning
from bezoar.networks.generators import drawn
from bezoar.networks.trigger_generators import PublishedGenerator
from bezoar.recipe import Recipe
from bezoar.training import fit

QUICK = BtiDbf(
    decoupling=Decoupling(steps=60),
    inversion=GeneratorInversion(steps=60),
    unlearning=GeneratedUnlearning(
        recipe=Recipe(epochs=1, batch_size=64, learning_rate=0.01, clip_norm=5.0)
    ),
)


def use_null(monkeypatch, *strengths):
    monkeypatch.setattr(bti_dbf_strength, "null_strengths", lambda: strengths)


@pytest.fixture
def nothing_is_strong(monkeypatch):
    use_null(monkeypatch, 50.0, 60.0, 70.0)


@pytest.fixture
def all_are_strong(monkeypatch):
    use_null(monkeypatch, 0.1, 0.11, 0.12)


def same(one, other):
    states = one.network.state_dict(), other.network.state_dict()
    return all(torch.equal(states[0][name], states[1][name]) for name in states[0])


# -- the official code -----------------------------------------------------------------------------


def test_the_published_settings_are_those_of_the_official_code():
    """The table of the paper's code: five rounds of 20, 30 and 30 epochs, without any stop."""
    published = BtiDbf.published()
    assert (published.rounds, published.strong, published.ways) == (5, None, (1.0,))
    assert published.held_out == 0
    mask, inversion, unlearning = published.decoupling, published.inversion, published.unlearning
    assert (mask.steps, mask.epochs, mask.learning_rate, mask.sparsity) == (None, 20, 0.01, 0)
    assert (inversion.steps, inversion.epochs, inversion.learning_rate) == (None, 30, 1e-3)
    assert inversion.bound == pytest.approx(math.sqrt(0.3)) and inversion.benign_limit == 3
    assert (inversion.benign_weight, inversion.target_weight) == (0.01, 1.0)
    assert inversion.pretraining.epochs == 50
    assert (unlearning.recipe.epochs, unlearning.recipe.learning_rate) == (30, 1e-4)
    assert (unlearning.optimizer, unlearning.share, unlearning.alignment) == ("adam", 0.1, 1)
    sizes = {mask.batch_size, inversion.batch_size, unlearning.recipe.batch_size}
    assert sizes == {128}


def short(published):
    """The published settings with one epoch of everything, for a few images."""
    found = replace(
        published,
        decoupling=replace(published.decoupling, epochs=1),
        inversion=replace(published.inversion, epochs=1, pretraining=Pretraining(epochs=1)),
        rounds=2,
    )
    return replace(
        found,
        unlearning=replace(
            found.unlearning, recipe=replace(found.unlearning.recipe, epochs=1, batch_size=4)
        ),
    )


@pytest.fixture(scope="module")
def coloured():
    """An untrained network for 3x32x32, and eight images of four classes."""
    network = drawn(lambda: networks.build("small-cnn", channels=3, num_classes=4, width=8), 0)
    draw = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (8, 3, 32, 32), dtype=torch.uint8, generator=draw)
    classifier = Classifier(network.eval(), mean=0.5, std=0.25)
    return classifier, ImageSet(pixels, torch.arange(8) % 4)


def test_the_published_schedule_keeps_generator_and_adam_over_the_rounds(coloured, monkeypatch):
    classifier, images = coloured
    tuned, inverted = [], []
    run_fit, run_inversion = bti_dbf.fit, bti_dbf_recovering.invert_generator

    def steps(optimizer):
        return max((int(state["step"]) for state in optimizer.state.values()), default=0)

    def fit_noted(*arguments, optimizer, **options):
        before = steps(optimizer)
        result = run_fit(*arguments, optimizer=optimizer, **options)
        tuned.append((id(optimizer), before, steps(optimizer)))
        return result

    def inversion_noted(*arguments, start, optimizer, target, **options):
        before = steps(optimizer)
        result = run_inversion(
            *arguments, start=start, optimizer=optimizer, target=target, **options
        )
        inverted.append((id(start), id(optimizer), before, steps(optimizer), target))
        return result

    monkeypatch.setattr(bti_dbf, "fit", fit_noted)
    monkeypatch.setattr(bti_dbf_recovering, "invert_generator", inversion_noted)
    repair = short(BtiDbf.published()).remove(classifier, images, seed=0)
    assert [row[1:] for row in tuned] == [(0, 2), (2, 4)]
    assert len({row[0] for row in tuned}) == 1
    assert len({row[:2] for row in inverted}) == 1
    assert inverted[1][2] == inverted[0][3] > 0
    counts = repair.record["rounds"][0]["votes"]["counts"]
    majority = max(range(4), key=lambda k: sum(n for _, answer, n in counts if answer == k))
    assert [row[4] for row in inverted] == [None, majority]
    assert len(repair.record["rounds"]) == repair.record["strong triggers"] == 2
    assert repair.record["way"] == 1.0 and not same(classifier, repair.classifier)


def test_each_round_of_the_published_schedule_has_a_trigger_of_its_own(coloured, monkeypatch):
    """All rounds once had the generator of the last one, which was then judged in their place."""
    unlearned, judged = [], []
    make_loss, run_settle = bti_dbf.generated_loss, bti_dbf.settle

    def loss_noted(original, stamps, *arguments, **options):
        unlearned.append([stamp.__self__ for stamp in stamps])
        return make_loss(original, stamps, *arguments, **options)

    def settle_noted(original, repaired, strong, *arguments, **options):
        judged.extend(one.inverted for one in strong)
        return run_settle(original, repaired, strong, *arguments, **options)

    monkeypatch.setattr(bti_dbf, "generated_loss", loss_noted)
    monkeypatch.setattr(bti_dbf, "settle", settle_noted)
    short(BtiDbf.published()).remove(*coloured, seed=0)
    first, second = judged
    weights = [list(one.generator.parameters()) for one in judged]
    assert not any(torch.equal(a, b) for a, b in zip(*weights, strict=True))
    assert unlearned == [[first], [second]], "the official code unlearns the current trigger alone"


def test_the_default_unlearns_the_triggers_of_all_rounds(digits, monkeypatch):
    counts, make_loss = [], bti_dbf.generated_loss

    def noted(original, stamps, *arguments, **options):
        counts.append(len(stamps))
        return make_loss(original, stamps, *arguments, **options)

    monkeypatch.setattr(bti_dbf, "generated_loss", noted)
    method = replace(QUICK, rounds=2, strong=None, inversion=GeneratorInversion(steps=2))
    method.remove(digits.planted, digits.clean, seed=3)
    assert counts == [1, 2]


def test_the_published_inspection_makes_one_trigger(coloured, all_are_strong):
    evidence = short(BtiDbf.published()).inspect(*coloured)
    assert "second trigger" not in evidence.record
    (trigger,) = evidence.recovered.triggers
    assert isinstance(trigger.generator, PublishedGenerator) and trigger.bound is None


def test_images_that_the_published_generator_cannot_take_are_refused_at_once(digits):
    for job in ("inspect", "remove"):
        with pytest.raises(InputError, match="images of 8x8 and takes sides of 32"):
            getattr(BtiDbf.published(), job)(digits.planted, digits.clean)


# -- rounds ----------------------------------------------------------------------------------------


def test_rounds_end_when_the_trigger_is_not_strong(digits, nothing_is_strong):
    repair = QUICK.remove(digits.planted, digits.clean, seed=3)
    assert len(repair.record["rounds"]) == 2, "the second trigger is looked at, not trained on"
    assert len(repair.record["curves"][0]["y"]) == 1
    assert repair.record["strong triggers"] == 0 and repair.record["carried after"] == []
    assert repair.record["way"] == QUICK.ways[0]
    assert repair.record["flags"][-1].endswith("the repair is little more than fine-tuning.")


def test_rounds_go_on_while_triggers_are_strong(digits, all_are_strong):
    repair = replace(QUICK, rounds=3, dead=1.0).remove(digits.planted, digits.clean, seed=3)
    assert len(repair.record["rounds"]) == repair.record["strong triggers"] == 3
    assert len(repair.record["carried after"]) == len(repair.record["curves"][0]["y"]) == 3


def test_later_rounds_look_at_the_network_that_came_out(digits):
    method = replace(QUICK, rounds=2, strong=None)
    method = replace(method, unlearning=replace(method.unlearning, recipe=DIGITS_RECIPE, share=0.3))
    first, second = method.remove(digits.planted, digits.clean, seed=3).record["rounds"]
    assert first["target_class"] == digits.attack.target
    assert second["strength"] < first["strength"] / 2


# -- the way back ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("carried", "taken"),
    [
        ({0.5: 0.1, 0.75: 0.0, 1.0: 0.0}, 0.5),
        ({0.5: 0.4, 0.75: 0.15, 1.0: 0.0}, 0.75),
        ({0.5: 0.4, 0.75: 0.4, 1.0: 0.1}, 1.0),
        ({0.5: 0.4, 0.75: 0.3, 1.0: 0.5}, 1.0),  # never dead: the whole way
    ],
)
def test_the_first_way_on_which_every_trigger_is_dead_is_taken(carried, taken, digits, monkeypatch):
    asked = []

    def told(*_arguments):
        asked.append(sorted(carried)[len(asked) // 2])  # two triggers on each way
        return carried[asked[-1]] if len(asked) % 2 else 0.0

    monkeypatch.setattr(bti_dbf_settling, "still_carried", told)
    method = replace(QUICK, rounds=2, strong=None, inversion=GeneratorInversion(steps=5))
    repair = method.remove(digits.planted, digits.clean, seed=3)
    assert repair.record["way"] == taken
    assert repair.record["carried after"] == [carried[taken], 0.0]
    told = "still carries 50 % of the held-out images" in " ".join(repair.record["flags"])
    assert told == (carried[taken] > 0.15)


@pytest.mark.parametrize("layer", [VersionedLinear, OtherNames])
def test_whatever_its_state_dict_is_a_layer_goes_a_part_of_the_way(layer):
    ends = [Classifier(layer(2, 2), mean=0.3, std=0.35) for _ in range(2)]
    half = bti_dbf_settling._between(*ends, 0.5).network.weight
    torch.testing.assert_close(half, sum(end.network.weight for end in ends) / 2)


def test_a_part_of_the_way_is_that_part_of_every_weight_and_statistic(digits):
    method = replace(QUICK, rounds=1, strong=0.0)  # no trigger is strong: the first way is taken
    whole, half, quarter = (
        replace(method, ways=ways).remove(digits.planted, digits.clean, seed=3).classifier
        for ways in ((1.0,), (0.5, 1.0), (0.25, 1.0))
    )
    old, new = (c.network.state_dict() for c in (digits.planted, whole))
    assert any(not torch.equal(old[n], new[n]) for n in old if "running" in n)
    for way, network in ((0.5, half), (0.25, quarter)):
        for name, value in network.network.state_dict().items():
            expected = old[name] + way * (new[name] - old[name])
            if not value.is_floating_point():
                expected = new[name]
            torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-6)


# -- what a trigger still does ---------------------------------------------------------------------


def stamping(attack, leads):
    """What ``recover`` would have found, had it found the true trigger."""
    return SimpleNamespace(
        inverted=SimpleNamespace(stamp=attack.stamp), sources_lead=lambda: torch.tensor(leads)
    )


@pytest.fixture(scope="module")
def all_to_all(digits):
    """(a network in which the patch moves every digit on by one, the attack)."""
    attack = BadNets(mode="all-to-all", num_classes=10, size=3)
    torch.manual_seed(11)
    classifier = Classifier(networks.build("small-cnn"), mean=0.3, std=0.35)
    poisoned = attack.poison(digits.train, 0.3, seed=11).images
    fit(classifier, poisoned, replace(DIGITS_RECIPE, epochs=10), seed=11)
    return classifier, attack


@pytest.mark.parametrize("kind", ["one", "all"])
def test_still_carried_counts_images_that_go_where_their_class_went(kind, digits, all_to_all):
    classifier, attack = (digits.planted, digits.attack) if kind == "one" else all_to_all
    target = attack.target
    leads = [target] * 10 if kind == "one" else [(k + 1) % 10 for k in range(10)]
    if kind == "one":
        leads[target] = -1  # images of the target class go nowhere
    images, labels = digits.test.images / 255, digits.test.labels
    with classifier.evaluating(), torch.no_grad():
        before, after = (classifier(x).argmax(1) for x in (images, attack.stamp(images)))
    hits = [
        int(after[i]) == leads[label]
        for i, label in enumerate(labels.tolist())
        if int(before[i]) == label and leads[label] >= 0
    ]
    expected = sum(hits) / len(hits)
    assert expected > 0.85
    found = stamping(attack, leads)
    assert still_carried(classifier, found, digits.test, classifier) == pytest.approx(expected)
    assert still_carried(digits.twin, found, digits.test, classifier) < 0.2
    if kind == "all":  # a majority of all images would call this trigger dead
        assert still_carried(classifier, stamping(attack, [1] * 10), digits.test, classifier) < 0.2


def test_a_trigger_that_led_nowhere_carries_nothing(digits):
    found = stamping(digits.attack, [-1] * 10)
    assert still_carried(digits.planted, found, digits.test, digits.planted) == 0.0


def test_without_labels_the_answers_of_the_original_stand_in(digits):
    found = stamping(digits.attack, [4] * 4 + [-1] + [4] * 5)
    unlabelled = ImageSet(digits.test.images)
    answered = ImageSet(digits.test.images, digits.planted.logits(digits.test).argmax(1))
    first, second = (
        still_carried(digits.planted, found, images, digits.planted)
        for images in (unlabelled, answered)
    )
    assert first == second > 0.9


# -- inspection ------------------------------------------------------------------------------------


class MovedOn(nn.Module):
    """Digits whose logits a white corner moves on by one class: features of its own."""

    def __init__(self, digits):
        super().__init__()
        self.digits, self.features = digits, nn.ReLU()
        self.head = nn.Linear(20, 10, bias=False)
        with torch.no_grad():
            same, moved = torch.eye(10), 2 * torch.eye(10).roll(1, 0)
            self.head.weight.copy_(torch.cat([same, moved], 1))

    def forward(self, x):
        logits = self.digits(x)
        white = (0.35 * x[:, :, -2:, -2:] + 0.3).mean((1, 2, 3))[:, None]  # in [0, 1]
        return self.head(self.features(torch.cat([logits * (1 - white), logits * white], 1)))


def test_all_to_all_is_told_as_such(digits, all_are_strong):
    classifier = Classifier(MovedOn(digits.twin.copy().network).eval(), mean=0.3, std=0.35)
    method = replace(QUICK, inversion=GeneratorInversion(steps=60, bound=0.26))
    method = replace(method, decoupling=Decoupling(steps=100))
    finding = pipeline.scan(classifier, digits.clean, witnesses=[method], seed=0)
    (evidence,) = finding.evidence
    reading = evidence.record["reading"]
    assert reading["kind"] == "all-to-all" and len(reading["targets"]) >= 5
    for target, sources in zip(reading["targets"], reading["sources"], strict=True):
        assert sources == [(target - 1) % 10]
        assert target in finding.suspects and evidence.carried[target] > 0.5
    assert any("no single target (all-to-all)" in reason for reason in finding.record["reasons"])


def test_a_second_trigger_is_looked_for_only_where_the_first_is_unusual(
    digits, monkeypatch, nothing_is_strong
):
    evidence = QUICK.inspect(digits.planted, digits.clean)
    assert evidence.recovered.classes == (digits.attack.target,)
    assert "second trigger" not in evidence.record
    use_null(monkeypatch, 0.1, 0.11, 0.12)
    both = QUICK.inspect(digits.planted, digits.clean)
    first, second = both.recovered.triggers
    assert first.classes == (digits.attack.target,) and not set(first.classes) & set(second.classes)
    images = digits.test.images[:5] / 255
    for trigger in (first, second):
        for k in trigger.classes:
            assert torch.equal(both.recovered.stamp(images, k), trigger.stamp(images, k))
    assert both.record["second trigger"]["target_class"] in second.classes


def test_evidence_belongs_to_the_classes_that_the_trigger_leads_to(digits, nothing_is_strong):
    evidence = QUICK.inspect(digits.planted, digits.clean)
    k = digits.attack.target
    assert math.isfinite(evidence.values[k]) and evidence.values[k] == pytest.approx(
        1 / evidence.record["strength"]
    )
    assert evidence.p_values[k] == evidence.record["p"] < 1
    for other in set(range(10)) - {k}:
        assert math.isinf(evidence.values[other]) and math.isnan(evidence.scores[other])
        assert evidence.p_values[other] == 1.0
        assert evidence.carried_into(other) is None
    assert evidence.carried_into(k) == evidence.record["carried"] > 0.8


def test_the_limits_of_a_scan_are_those_of_its_p_values(digits, monkeypatch):
    use_null(monkeypatch, 0.5, 0.7, 1.0, 1.4)
    finding = pipeline.scan(digits.planted, digits.clean, witnesses=[QUICK], seed=3)
    null = finding.record["evidence"][0]["statistic"]["null"]
    assert null["critical_found"] < null["critical_suspicious"] < null["median"]
    assert null["median"] == pytest.approx((0.5 * 0.7 * 1.0 * 1.4) ** -0.25)
    p = bti_dbf_strength.strength_test(1 / null["critical_suspicious"])[1]
    assert p == pytest.approx(finding.record["levels"]["suspicious"])


def test_the_twin_is_not_flagged_where_the_null_is_of_its_kind(digits, monkeypatch):
    """The planted network's trigger is stronger than the twin's under the same null."""
    use_null(monkeypatch, 0.8, 1.0, 1.2, 1.4)
    planted, twin = (
        pipeline.scan(c, digits.clean, witnesses=[QUICK], seed=3)
        for c in (digits.planted, digits.twin)
    )
    assert twin.suspects == () and planted.suspects == (digits.attack.target,)


def test_images_without_labels_can_be_inspected_and_not_unlearned(digits):
    unlabelled = ImageSet(digits.clean.images)
    evidence = QUICK.inspect(digits.planted, unlabelled)
    assert evidence.recovered.classes == (digits.attack.target,)
    with pytest.raises(InputError, match="BTI-DBF needs labelled images"):
        QUICK.remove(digits.planted, unlabelled)


# -- what cannot be done ---------------------------------------------------------------------------


def test_one_image_of_each_class_is_too_few(digits):
    first = torch.tensor([int((digits.clean.labels == k).nonzero()[0]) for k in range(10)])
    for job in (QUICK.inspect, QUICK.remove):
        with pytest.raises(InputError, match="give at least two images of each class"):
            job(digits.planted, digits.clean.subset(first))


def test_a_perceptron_is_cut_at_a_hidden_layer(digits):
    layers = [nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10)]
    torch.manual_seed(0)
    classifier = Classifier(nn.Sequential(*layers), mean=0.3, std=0.35)
    fit(classifier, digits.train, replace(DIGITS_RECIPE, epochs=3), seed=0)
    repair = replace(QUICK, rounds=1).remove(classifier, digits.clean)
    assert repair.record["rounds"][0]["decoupling"]["map"] == [32]
    assert not same(classifier, repair.classifier)


class Uncut(nn.Module):
    """Every layer has another one beside it, up to the sum of two heads' logits."""

    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Linear(64, 10), nn.Linear(64, 10)

    def forward(self, x):
        return self.left(x.flatten(1)) + self.right(x.flatten(1))


def test_a_network_that_no_layer_cuts_is_refused(digits):
    classifier = Classifier(Uncut().eval(), mean=0.3, std=0.35)
    for job in (QUICK.inspect, QUICK.remove):
        with pytest.raises(InputError, match=r"no single layer cuts this network|final linear"):
            job(classifier, digits.clean)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"rounds": 0}, "rounds is 0"),
        ({"held_out": 1.0}, r"held_out 1.0; expected .* a share in \[0, 1\)"),
        ({"strong": 1.5}, "strong 1.5"),
        ({"dead": -0.1}, "dead is -0.1"),
        ({"ways": ()}, r"ways is \(\)"),
        ({"ways": (0.5, 0.5, 1.0)}, "expected parts above 0 that rise to 1"),
        ({"ways": (0.0, 1.0)}, "expected parts above 0 that rise to 1"),
        ({"ways": (0.5,)}, "expected parts above 0 that rise to 1"),
    ],
)
def test_settings_that_cannot_work_are_refused(wrong, message):
    with pytest.raises(InputError, match=message):
        BtiDbf(**wrong)
