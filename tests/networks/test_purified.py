"""A network behind a purifier: what it computes, what its state says, what a bad state gets."""

import copy
import json

import pytest
import torch
from odd_state_dicts import VersionedLinear
from purified_models import purified, purifier
from safetensors.torch import save_file
from torch import nn

from bezoar import networks
from bezoar.errors import InputError
from bezoar.networks.generators import drawn
from bezoar.networks.purified import Purified, described, fronted, inner_network, load
from bezoar.networks.trigger_generators import PublishedGenerator, ResidualGenerator


def images(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def classifier(seed=0, channels=1):
    return drawn(lambda: networks.build("small-cnn", channels=channels), seed).eval()


def told(facts) -> torch.Tensor:
    return torch.tensor(list(json.dumps(facts).encode()), dtype=torch.uint8)


def test_it_computes_what_the_formula_says():
    network, front = classifier(channels=3), purifier((3, 8, 8), strength=0.5)
    mean, std = (0.2, 0.3, 0.4), (0.5, 0.6, 0.7)
    whole = Purified(network, front, mean=mean, std=std).eval()
    pixels = images(2, 3, 8, 8)
    z = torch.empty_like(pixels)
    with torch.no_grad():
        made = front(pixels)
        for c in range(3):
            z[:, c] = (made[:, c].clamp(0, 1) - mean[c]) / std[c]
        wanted = network(z)
        x = torch.stack([(pixels[:, c] - mean[c]) / std[c] for c in range(3)], 1)
        torch.testing.assert_close(whole(x), wanted, rtol=0, atol=1e-5)
        assert (made < 0).any() and (made > 1).any(), "the clamp must matter"
        torch.testing.assert_close(whole.purify(pixels), made.clamp(0, 1))
        assert (whole(x) - network(x)).abs().max() > 1e-3, "the purifier must matter"


def test_behind_an_identity_the_answers_stay():
    network = classifier()
    x = (images(4, 1, 8, 8) - 0.3) / 0.35
    whole = Purified(network, ResidualGenerator(1, 8, 8), mean=0.3, std=0.35).eval()
    torch.testing.assert_close(whole(x), network(x), rtol=1e-4, atol=1e-5)


def test_noise_is_in_pixels_and_its_own_draw():
    front = drawn(lambda: ResidualGenerator(1, 8, 8), 0)
    whole = Purified(classifier(), front, mean=0.3, std=0.35, noise=0.03)
    pixels = torch.full((500, 1, 8, 8), 0.5)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        first, second = whole.purify(pixels), whole.purify(pixels)
        torch.manual_seed(0)
        assert torch.equal(whole.purify(pixels), first)
    assert not torch.equal(first, second)
    assert abs(float((first - pixels).std()) - 0.03) < 1e-3


def test_gradients_reach_the_images_and_the_purifier():
    whole = purified(classifier())
    x = images(2, 1, 8, 8).requires_grad_()
    whole(x).sum().backward()
    assert x.grad.abs().sum() > 0 and whole.purifier.pattern.grad.abs().sum() > 0


# -- its state -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "front",
    [
        lambda: purifier(),
        lambda: drawn(lambda: PublishedGenerator(1, mean=[0.3], std=[0.35]), 0),
    ],
)
def test_a_state_dict_brings_all_of_it_back(front):
    whole = Purified(classifier(), front(), mean=0.3, std=0.35, noise=0.25).eval()
    size = 8 if isinstance(whole.purifier, ResidualGenerator) else 32
    x = images(2, 1, size, size)
    before = torch.get_rng_state()
    again = load(classifier(seed=1), whole.state_dict())
    assert torch.equal(torch.get_rng_state(), before), "nothing is drawn"
    assert not again.training and again.noise == 0.25
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        wanted = whole(x)
        torch.manual_seed(0)
        assert torch.equal(again(x), wanted)
    assert described(again.state_dict()) == described(whole.state_dict())


@pytest.mark.parametrize("ending", ["pt", "safetensors"])
def test_a_layer_that_asks_for_its_version_is_loaded(ending, tmp_path):
    whole = purified(nn.Sequential(nn.Flatten(), VersionedLinear(64, 10)))
    state, path = dict(whole.state_dict()), tmp_path / f"a.{ending}"
    if ending == "pt":
        torch.save(state, path)
    else:
        save_file(state, path)
    again = load(nn.Sequential(nn.Flatten(), VersionedLinear(64, 10)), path)
    assert torch.equal(again.network[1].weight, whole.network[1].weight)


def test_a_loaded_one_shares_no_memory_with_what_it_was_loaded_from():
    state = purified(classifier()).state_dict()
    kept = copy.deepcopy(state)
    again = load(classifier(), state)
    with torch.no_grad():
        for tensor in again.state_dict().values():
            tensor.zero_()
    assert all(torch.equal(state[name], kept[name]) for name in state)


def test_one_purifier_in_front_of_another():
    inner = purified(classifier())
    whole = Purified(inner, purifier(seed=5), mean=0.3, std=0.35, noise=0.0).eval()
    state = whole.state_dict()
    again = load(classifier(seed=1), state)
    x = images(2, 1, 8, 8)
    assert torch.equal(again(x), whole(x)) and not torch.equal(whole(x), inner(x))
    assert len(described(state)) == 2
    assert inner_network(state).keys() == classifier().state_dict().keys()


def test_a_plain_state_has_no_purifier():
    state = classifier().state_dict()
    assert described(state) == [] and inner_network(state) == state
    with pytest.raises(InputError, match="no 'configuration'"):
        fronted(classifier(), state)
    state["configuration"] = torch.ones(3)  # somebody's parameter of that name
    assert described(state) == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (torch.tensor([], dtype=torch.uint8), "0 bytes"),
        (torch.zeros(20_000, dtype=torch.uint8), "20000 bytes"),
        (torch.tensor(list(b"import os"), dtype=torch.uint8), "no JSON"),
        (torch.tensor([0xFF, 0xFE, 0x80], dtype=torch.uint8), "no JSON"),
        (torch.tensor(list(b"[" * 9_999), dtype=torch.uint8), "no JSON"),
        (torch.tensor(list(b"1" * 5_000), dtype=torch.uint8), "no JSON"),
        (told([1]), "does not say"),
        (told({"format": 1, "noise": 0}), "does not say"),
        (told({"format": 1, "noise": 0, "purifier": {}, "run": "rm"}), "does not say"),
        (told({"format": 2, "noise": 0, "purifier": {}}), "format 2.*later version"),
        (told({"format": 1, "noise": -1, "purifier": {}}), "noise"),
        (told({"format": 1, "noise": float("nan"), "purifier": {}}), "noise"),
        (told({"format": 1, "noise": 10**400, "purifier": {}}), "noise"),
        (told({"format": 1, "noise": True, "purifier": {}}), "noise"),
        (told({"format": 1, "noise": 0, "purifier": [1]}), "does not describe"),
        (told({"format": 1, "noise": 0, "purifier": {"kind": "eval"}}), "kind 'eval'"),
    ],
)
def test_a_malformed_configuration_is_refused(content, message):
    state = purified(classifier()).state_dict() | {"configuration": content}
    with pytest.raises(InputError, match=message):
        fronted(classifier(), state)


def test_sizes_that_are_not_those_of_the_tensors_are_refused_before_memory_is_taken():
    facts = described(purified(classifier()).state_dict())[0]
    facts["purifier"] |= {"features": 256, "depth": 8}  # some hundred gigabytes
    state = purified(classifier()).state_dict() | {"configuration": told(facts)}
    with pytest.raises(InputError, match="not those of a residual generator"):
        fronted(classifier(), state)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("purifier.pattern"), "purifier.pattern|pattern"),
        (lambda s: s.update({"purifier.more": torch.ones(2)}), "more"),
        (lambda s: s.update({"purifier.pattern": torch.ones(1, 8, 8).int()}), "pattern"),
        (lambda s: s.pop("mean"), "'mean'"),
        (lambda s: s.update(std=torch.zeros(1)), "above 0"),
        (lambda s: s.update(std=torch.ones(1, dtype=torch.complex64)), "'std'"),
        (lambda s: s.update(mean=torch.tensor([torch.nan])), "finite"),
    ],
)
def test_missing_and_wrong_tensors_are_named(change, message):
    state = dict(purified(classifier()).state_dict())
    change(state)
    with pytest.raises(InputError, match=message):
        load(classifier(), state)


def test_a_tower_of_purifiers_is_refused():
    content = purified(classifier()).state_dict()["configuration"]
    state = {f"{'network.' * depth}configuration": content for depth in range(1000)}
    with pytest.raises(InputError, match="8 purifiers or more"):
        described(state)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"noise": -0.1}, "noise"),
        ({"noise": 3.0}, "noise"),
        ({"std": 0.0}, "std"),
        ({"mean": float("inf")}, "mean"),
    ],
)
def test_numbers_out_of_range_are_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        purified(classifier(), **arguments)


def test_a_purifier_that_no_file_could_describe_is_refused():
    with pytest.raises(InputError, match="Identity"):
        Purified(classifier(), nn.Identity(), mean=0.0, std=1.0)
