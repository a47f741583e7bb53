"""What every method must do: a table over the registry."""

import dataclasses
import inspect
import json
from typing import ClassVar

import msgspec
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from method_rows import LOOKING, ROWS, sharing
from torch import nn

from bezoar import (
    aftercare,
    checks,
    given,
    networks,
    pipeline,
    proving,
    repairing,
    surviving,
    trying,
    verdict,
)
from bezoar.attacks import Attack
from bezoar.classifier import Classifier
from bezoar.errors import InputError
from bezoar.evaluation import evaluate
from bezoar.images import ImageSet
from bezoar.methods import (
    FineTuning,
    Method,
    Repair,
    methods,
)
from bezoar.methods.method import Needs
from bezoar.records import to_json
from bezoar.training import Recipe, fit

NAMES = sorted(ROWS)
ALL = sorted([*ROWS, *LOOKING])


def quick(name):
    return (ROWS[name].quick if name in ROWS else LOOKING[name])()


def shared(name, which):
    return pytest.param(name, which, marks=sharing(name, which), id=f"{name}-{which}")


PLANTED = [shared(name, "planted") for name in NAMES]
QUICK = [pytest.param(name, marks=sharing(name, "planted")) for name in NAMES]
BOTH_NETWORKS = [shared(name, which) for name in NAMES for which in ("planted", "twin")]


class NoOp(Method, frozen=True, kw_only=True):
    """Returns the network as it is: whatever this passes proves nothing about removal."""

    name: ClassVar[str] = "no-op"
    needs: ClassVar[Needs] = "nothing"

    def remove(self, classifier, clean, *, seed=0, progress=None):
        return Repair(classifier.copy(), {})


def check_removes(repair, digits):
    assert evaluate(digits.planted, digits.test, digits.attack).asr >= 0.95
    assert evaluate(repair.classifier, digits.test, digits.attack).asr <= 0.2


def test_every_method_has_its_row():
    assert methods.names() == ALL
    for name in ALL:
        assert (methods.get(name).remove is Method.remove) == (name in LOOKING)


@pytest.mark.parametrize(("name", "which"), PLANTED)
def test_it_removes_the_backdoor_or_the_table_says_why_not(name, which, digits, full_repair):
    if ROWS[name].removes:
        assert ROWS[name].full is None or ROWS[name].why
        check_removes(full_repair(name, which), digits)
    else:
        assert ROWS[name].why
        with pytest.raises(AssertionError):
            check_removes(full_repair(name, which), digits)


def test_a_method_that_does_nothing_fails_this_test(digits):
    repair = NoOp().remove(digits.planted, digits.clean)
    with pytest.raises(AssertionError):
        check_removes(repair, digits)


@pytest.mark.parametrize(("name", "which"), BOTH_NETWORKS)
def test_it_costs_little_accuracy(name, which, digits, full_repair):
    before = evaluate(getattr(digits, which), digits.test, digits.attack).acc
    after = evaluate(full_repair(name, which).classifier, digits.test, digits.attack).acc
    assert after >= before - 0.06  # anp costs 4 points, by processor


@pytest.mark.parametrize("name", QUICK)
def test_its_record_is_plain_json(name, quick_repair):
    repair = quick_repair(name).repair
    text = json.dumps(to_json(repair.record), allow_nan=False)
    assert json.loads(text) == json.loads(json.dumps(to_json(json.loads(text))))
    assert repair.record


# -- the input stays as it was ---------------------------------------------------------------------


def everything_about(network):
    """All that a caller could notice a change of, as comparable values."""
    modules = list(network.named_modules())
    parameters = list(network.named_parameters())
    state = {k: v for k, v in network.state_dict().items() if torch.is_tensor(v)}
    return {
        "tensors": {k: (v.dtype, v.numpy().tobytes()) for k, v in state.items()},
        "identities": [id(parameter) for _, parameter in parameters],
        "layout": [(name, p.stride()) for name, p in parameters],
        "frozen": [(name, p.requires_grad) for name, p in parameters],
        "gradients": [(name, p.grad is None) for name, p in parameters],
        "training": [(name, module.training) for name, module in modules],
        "types": [(name, type(module)) for name, module in modules],
        "hooks": hooks_in(network),
    }


def tensors_of(repair):
    return everything_about(repair.classifier.network)["tensors"]


def hooks_in(network):
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return sum(len(getattr(module, kind)) for module in network.modules() for kind in kinds)


def modes():
    return torch.overrides._get_current_function_mode_stack()


def half_in_training(network):
    """A mix of flags that nobody would restore by accident."""
    network.train()
    list(network.modules())[2].eval()
    next(network.parameters()).requires_grad_(False)
    return network


def jobs(name):
    method = quick(name)
    found = {"remove": method.remove} if name in ROWS else {}
    if method.inspects:
        found["inspect"] = method.inspect
    return found


BOTH = [(name, job) for name in ALL for job in jobs(name)]


@pytest.mark.parametrize(("name", "job"), BOTH)
def test_it_leaves_the_input_as_it_was(name, job, digits):
    classifier = digits.planted.copy()
    half_in_training(classifier.network)
    images = ImageSet(digits.clean.images.clone(), digits.clean.labels.clone())
    before, state, pixels = (
        everything_about(classifier.network),
        torch.get_rng_state(),
        images.sha256(),
    )
    result = jobs(name)[job](classifier, images, seed=1)
    assert everything_about(classifier.network) == before
    assert torch.equal(torch.get_rng_state(), state), "the global generator was used"
    assert images.sha256() == pixels
    assert modes() == []
    if job == "remove":
        assert result.classifier.network is not classifier.network
        assert hooks_in(result.classifier.network) == 0
        ours = {p.data_ptr() for p in classifier.network.parameters()}
        assert not ours & {p.data_ptr() for p in result.classifier.network.parameters()}
        training = [name for name, m in result.classifier.network.named_modules() if m.training]
        assert training == [], "a repair is in eval mode"


@pytest.mark.parametrize(("name", "job"), BOTH)
def test_no_hook_stays_when_it_is_interrupted(name, job, digits):
    classifier = digits.planted.copy()
    before = everything_about(classifier.network)

    def interrupt(_what, _share):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        jobs(name)[job](classifier, digits.clean, seed=1, progress=interrupt)
    assert everything_about(classifier.network) == before
    assert modes() == []


@pytest.mark.parametrize("name", QUICK)
def test_it_says_how_far_it_is(name, quick_repair):
    heard = quick_repair(name).progress
    assert heard and heard[-1][1] == 1.0
    assert all(what and 0 <= share <= 1 for what, share in heard)


# -- repeatable ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", QUICK)
def test_a_seed_repeats_the_repair_to_the_bit(name, digits, quick_repair):
    states = [tensors_of(quick_repair(name).repair)]
    for seed in (0, 6):
        torch.manual_seed(100 + len(states))  # the global generator has no say
        repair = ROWS[name].quick().remove(digits.planted, digits.clean, seed=seed)
        states.append(tensors_of(repair))
    assert states[0] == states[1]
    if ROWS[name].seedless:
        assert states[0] == states[2]
    else:
        assert states[0] != states[2], "the seed changes nothing, so it proves nothing"


@pytest.mark.parametrize("name", [name for name in ALL if methods.get(name).inspects])
def test_a_seed_repeats_the_inspection_to_the_bit(name, digits):
    first, second = (quick(name).inspect(digits.planted, digits.clean) for _ in range(2))
    for field in ("values", "scores", "p_values", "carried"):
        assert getattr(first, field) == getattr(second, field)
    assert (first.perturbations is None) == (second.perturbations is None)
    if first.perturbations is not None:
        assert torch.equal(first.perturbations, second.perturbations)


# -- networks it has never seen --------------------------------------------------------------------


class Pointwise(nn.Module):
    """The head is a 1x1 convolution over the map, averaged afterwards."""

    def __init__(self):
        super().__init__()
        first = (nn.Conv2d(1, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU())
        second = (nn.Conv2d(12, 12, 3, stride=2), nn.BatchNorm2d(12), nn.ReLU())
        self.body, self.head = nn.Sequential(*first, *second), nn.Conv2d(12, 4, 1)

    def forward(self, x):
        return self.head(self.body(x)).mean((2, 3))


class Viewed(nn.Module):
    """Flattens its map by a view, as tutorials do, which torch refuses channels last."""

    def __init__(self):
        super().__init__()
        first, second = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 8, 3)
        self.body = nn.Sequential(first, nn.ReLU(), second, nn.ReLU())
        self.drop, self.head = nn.Dropout(0.2), nn.Linear(288, 4)

    def forward(self, x):
        maps = self.body(x)
        return self.head(self.drop(maps.view(len(maps), -1)))


class Habits(nn.Module):
    """What people do: ``train`` returns nothing, there is extra state, a map is kept, the head is a
    call, and its bias has a name of its own.
    """

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 12, 3), nn.BatchNorm2d(12)
        self.last = nn.Conv2d(12, 8, 3, padding=1)
        self.w = nn.Parameter(0.05 * torch.randn(4, 288))
        self.b, self.bias = nn.Parameter(torch.tensor([0.3, -0.3, 0.1, 0.0])), True

    def train(self, mode=True):
        super().train(mode)

    def get_extra_state(self):
        return {"version": 2}

    def set_extra_state(self, state):
        assert state == {"version": 2}

    def forward(self, x):
        self.kept = F.relu(self.last(F.relu(self.norm(self.conv(x)))))
        return F.linear(self.kept.flatten(1), self.w, self.b)


def small(**options):
    return networks.build("small-cnn", num_classes=4, width=8, **options)


UNSEEN = {
    "one channel": lambda: small(),
    "three channels": lambda: small(channels=3),
    "no norm": lambda: small(norm=False),
    "group norm": lambda: nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.GroupNorm(2, 8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 4)
    ),
    "flattened by a view": Viewed,
    "habits": Habits,
    "no bias": lambda: nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 4, bias=False)
    ),
    "1x1 convolution as head": Pointwise,
}


KINDS = [  # each is trained in one process
    pytest.param(kind, marks=pytest.mark.xdist_group(f"network with {kind}")) for kind in UNSEEN
]


@pytest.fixture(scope="module")
def unseen(digits):
    """Kind → (classifier, images): four digits, a few epochs of training."""
    few = digits.clean.subset(torch.nonzero(digits.clean.labels < 4).flatten())
    known = {}

    def get(kind):
        if kind not in known:
            torch.manual_seed(0)
            network = UNSEEN[kind]()
            images = few
            if kind == "three channels":
                images = ImageSet(few.images.repeat(1, 3, 1, 1), few.labels)
            classifier = Classifier(network, mean=0.3, std=0.35)
            recipe = Recipe(epochs=25, batch_size=16, learning_rate=0.05, clip_norm=5.0)
            fit(classifier, images, recipe, seed=0)
            known[kind] = classifier, images
        return known[kind]

    return get


def share_right(classifier, images):
    return float((classifier.logits(images).argmax(1) == images.labels).float().mean())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", NAMES)
def test_it_accepts_a_network_it_has_never_seen(name, kind, unseen):
    classifier, images = unseen(kind)
    before = everything_about(classifier.network)
    repair = ROWS[name].quick().remove(classifier, images, seed=0)
    assert everything_about(classifier.network) == before
    assert share_right(classifier, images) > 0.8, "the fixture is no trained network"
    assert share_right(repair.classifier, images) > 0.5, "the answers are little better than chance"
    after = repair.classifier.network
    if methods.get(name).purifies:
        assert everything_about(after.network)["tensors"] == before["tensors"]
        pixels = images.images[:8] / 255
        assert not torch.equal(after.purify(pixels), pixels)
    else:
        assert after.state_dict().keys() == classifier.network.state_dict().keys()
        said = any(f.startswith("Nothing was pruned") for f in repair.record.get("flags", ()))
        spared = ROWS[name].only_prunes and said
        assert (everything_about(after)["tensors"] == before["tensors"]) == spared
    if methods.get(name).inspects:
        check_evidence(ROWS[name].quick().inspect(classifier, images))


def check_evidence(evidence):
    assert len(evidence.values) == len(evidence.p_values) == len(evidence.scores) == 4
    assert all(0 <= p <= 1 for p in evidence.p_values)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", LOOKING)
def test_who_only_looks_accepts_them_too(name, kind, unseen):
    classifier, images = unseen(kind)
    check_evidence(quick(name).inspect(classifier, images))


@pytest.mark.parametrize("name", QUICK)
def test_it_repairs_a_frozen_network(name, digits, quick_repair):
    classifier = digits.planted.copy()
    classifier.network.requires_grad_(False)
    repair = ROWS[name].quick().remove(classifier, digits.clean, seed=0)
    assert tensors_of(repair) == tensors_of(quick_repair(name).repair)


# -- the data it says it needs ---------------------------------------------------------------------


def unlabelled(images):
    return ImageSet(images.images)


@pytest.mark.parametrize("name", NAMES)
def test_it_runs_on_the_data_it_says_it_needs(name, digits):
    method = ROWS[name].quick()
    if method.needs == "labelled images":
        with pytest.raises(InputError, match="needs labelled images"):
            method.remove(digits.planted, unlabelled(digits.clean))
    elif method.needs == "nothing":
        method.remove(digits.planted, ImageSet(digits.clean.images[:0]))
    else:
        method.remove(digits.planted, unlabelled(digits.clean))


class Trap(ImageSet):
    """Clean images that allow what an ``ImageSet`` promises, and nothing else."""

    PROMISED = frozenset(
        {
            "images",
            "labels",
            "classes",
            "names",
            "notices",
            "shape",
            "batches",
            "subset",
            "split",
            "division",
        }
        | {"sample", "to", "require_labels", "class_counts", "_with", "_resident_limit"}
    )

    def __getattribute__(self, name):
        if name in Trap.PROMISED or name.startswith("__"):
            return super().__getattribute__(name)
        raise AssertionError(f"the method asked its clean images for {name!r}")


def test_the_trap_catches_who_asks_for_more(digits):
    trap = Trap(digits.clean.images, digits.clean.labels)
    trap.poisoned = True
    assert trap.shape == (1, 8, 8)
    with pytest.raises(AssertionError, match="asked its clean images for 'poisoned'"):
        trap.poisoned  # noqa: B018 (the attribute is the call under test)


def fingerprint(batch):
    """Each image's pixel values in order of size: flips do not change it, other images differ."""
    return {row.tobytes() for row in (batch * 255).round().byte().flatten(1).sort(1).values.numpy()}


@pytest.mark.parametrize(("name", "job"), BOTH)
def test_it_uses_nothing_but_the_clean_images_it_was_given(name, job, digits, monkeypatch):
    def forbidden(*_arguments, **_options):
        raise AssertionError("the method reached for data that it was not given")

    for kind in (Attack, *Attack.__subclasses__()):
        for function in ("stamp", "poison"):
            monkeypatch.setattr(kind, function, forbidden)
    monkeypatch.setattr("bezoar.evaluation.evaluate", forbidden)
    for reader in ("open", "_read", "from_folder", "from_npz", "from_parquet"):
        monkeypatch.setattr(ImageSet, reader, forbidden)
    monkeypatch.setattr(np, "load", forbidden)
    monkeypatch.setattr(torch, "load", forbidden)

    allowed = fingerprint(digits.clean.images.float() / 255)
    classifier = digits.planted.copy().trace(digits.clean.shape)
    strangers = []
    run = Classifier.normalise

    def watched(self, batch):
        strangers.extend(fingerprint(batch) - allowed)
        return run(self, batch)

    if name in ROWS and ROWS[name].only_clean_images:
        monkeypatch.setattr(Classifier, "normalise", watched)
    trap = Trap(digits.clean.images, digits.clean.labels)
    jobs(name)[job](classifier, trap, seed=0)
    assert not strangers
    assert not fingerprint(digits.test.images[:50].float() / 255) <= allowed


# -- the wall --------------------------------------------------------------------------------------


def parameters(function):
    return list(inspect.signature(function).parameters)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("job", ["remove", "inspect"])
def test_there_is_no_parameter_for_a_trigger_or_for_test_data(name, job):
    material = "public" if job == "remove" and name == "fred" else "clean"
    wanted = ["self", "classifier", material, "seed", "progress"]
    assert parameters(getattr(methods.get(name), job)) == wanted


def words_of(names):
    return {word for name in names for word in name.split("_")}


FORBIDDEN = {"trigger", "triggers", "poison", "poisoned", "stamped", "test", "attack", "backdoored"}


def test_what_decides_has_no_parameter_for_them_either():
    deciding = (
        *(pipeline.scan, pipeline.clean, checks.check_input, verdict.judge, trying.try_repairs),
        *(proving.Prover, surviving.Survivors, aftercare.retuning_probe),
        *(given.Given, repairing.make_repair),
    )
    for function in deciding:
        assert not words_of(parameters(function)) & FORBIDDEN
    for name in ALL:
        fields = [field.name for field in msgspec.structs.fields(methods.get(name))]
        assert not words_of(fields) & FORBIDDEN
    evidence = [field.name for field in dataclasses.fields(verdict.Evidence)]
    assert not words_of(evidence) & FORBIDDEN


# -- its facts -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", QUICK)
def test_who_sweeps_a_threshold_gives_the_other_repairs(name, quick_repair):
    repair = quick_repair(name).repair
    assert (repair.alternatives is not None) == methods.get(name).sweeps
    if repair.alternatives is None:
        return
    others = list(repair.alternatives())
    settings = [setting for setting, _ in others]
    assert others and len(set(settings)) == len(settings)
    own = tensors_of(repair)
    differs = [everything_about(other.network)["tensors"] != own for _, other in others]
    assert any(differs), "the settings make no difference"


@pytest.mark.parametrize("name", ALL)
def test_its_facts_are_stated(name):
    kind = methods.get(name)
    assert kind.title and kind.paper and kind.layers and kind.cost
    assert kind.needs in Needs.__args__
    assert kind.__doc__ and len(inspect.getdoc(kind).splitlines()) > 1


@pytest.mark.parametrize("name", ALL)
def test_its_configuration_survives_json_and_refuses_what_it_does_not_know(name):
    method = quick(name)
    plain = json.loads(json.dumps(method.configuration()))
    assert msgspec.convert(plain, methods.get(name)) == method
    with pytest.raises(msgspec.ValidationError, match="unknown field"):
        msgspec.convert(plain | {"no_such_setting": 1}, methods.get(name))
    with pytest.raises(AttributeError, match="immutable"):
        method.recipe = None
    with pytest.raises(TypeError):
        methods.get(name)(1)


def test_a_method_without_the_paper_s_settings_or_an_inspection_says_so(digits):
    with pytest.raises(InputError, match="ft has no published preset"):
        FineTuning.published()
    with pytest.raises(InputError, match="ft removes backdoors and does not look for"):
        FineTuning().inspect(digits.planted, digits.clean)
