"""From weights to a running classifier: facts, matching, model descriptions."""

import json
import os
from collections import OrderedDict
from pathlib import Path

import pytest
import safetensors.torch
import torch
from odd_state_dicts import VersionedLinear
from torch import nn

from bezoar.errors import InputError
from bezoar.intake import (
    ModelDescription,
    facts,
    load_into,
    load_model,
    read_description,
    read_weights,
    write_weights,
)
from bezoar.networks.architectures import build_network
from bezoar.networks.vision import import_torchvision

MODELS = Path(os.environ.get("BEZOAR_DATA", "")) / "models"


def network(classes: int = 5, channels: int = 3) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        OrderedDict(
            conv=nn.Conv2d(channels, 4, 3), norm=nn.BatchNorm2d(4), relu=nn.ReLU(),
            pool=nn.AdaptiveAvgPool2d(1), flat=nn.Flatten(), fc=nn.Linear(4, classes),
        )
    )  # fmt: skip


def read(state: dict, path: Path):
    if path.suffix == ".safetensors":
        safetensors.torch.save_file({k: v.contiguous() for k, v in state.items()}, path)
    else:
        torch.save(state, path)
    return read_weights(path)


def prefixed(state: dict, prefix: str) -> dict:
    return {prefix + name: tensor for name, tensor in state.items()}


# -- facts -----------------------------------------------------------------------------------------


class Vit(nn.Module):
    """The tensors of a vision transformer under torchvision's kind of names."""

    def __init__(self):
        super().__init__()
        self.class_token = nn.Parameter(torch.zeros(1, 1, 16))
        self.heads = nn.Sequential(OrderedDict(head=nn.Linear(16, 7)))
        self.conv_proj = nn.Conv2d(3, 16, 4, 4)
        self.pos_embedding = nn.Parameter(torch.zeros(1, 5, 16))
        layer = nn.TransformerEncoderLayer(16, 2, 32)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)


class Auxiliary(nn.Module):
    """A head in the middle, auxiliary heads after it, a squeeze-and-excitation block."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3)
        self.fc = nn.Linear(32, 6)
        self.se = nn.Sequential(nn.Conv2d(32, 2, 1), nn.Conv2d(2, 32, 1))
        self.depthwise = nn.Conv2d(8, 8, 3, groups=8)
        self.out = nn.Conv2d(8, 32, 1)
        self.aux = nn.Sequential(nn.Linear(32, 16), nn.Linear(16, 6))
        self.head_dist = nn.Linear(32, 6)


class Squeeze(nn.Module):
    """Ends in a 1x1 convolution; expansions inside are nobody's inputs either."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 12, 3), nn.Conv2d(12, 4, 1), nn.Conv2d(4, 24, 1), nn.Conv2d(4, 24, 3)
        )
        self.classifier = nn.Sequential(nn.Dropout(), nn.Conv2d(48, 9, 1))


class Vgg(nn.Module):
    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(4, 8, 3), nn.Conv2d(8, 8, 3))
        self.classifier = nn.Sequential(nn.Linear(32, 20), nn.Linear(20, 20), nn.Linear(20, 11))


class Mobile(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.Sequential(nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 16, 1))
        self.conv_stem = nn.Conv2d(3, 8, 3)
        self.classifier = nn.Linear(16, 12)


@pytest.mark.parametrize("ending", ["pt", "safetensors"])
@pytest.mark.parametrize(
    ("model", "head", "classes", "channels"),
    [
        (network, "fc.weight", 5, 3),
        (lambda: network(2, 1), "fc.weight", 2, 1),
        (Vit, "heads.head.weight", 7, 3),
        (Auxiliary, "fc.weight", 6, 1),
        (Squeeze, "classifier.1.weight", 9, 3),
        (Vgg, "classifier.2.weight", 11, 4),
        (Mobile, "classifier.weight", 12, 3),
    ],
)
def test_classes_and_channels_are_read_off(tmp_path, model, head, classes, channels, ending):
    weights = read(prefixed(model().state_dict(), "module."), tmp_path / f"a.{ending}")
    found = facts(weights)
    assert (found.head, found.num_classes, found.input_channels) == (head, classes, channels)


def test_what_cannot_be_told_is_said(tmp_path):
    found = facts(read({"scale": torch.ones(3)}, tmp_path / "a.pt"))
    assert (found.num_classes, found.input_channels) == (None, None)
    assert "number of classes is unknown" in found.unknown[0]
    assert "input channels are unknown" in found.unknown[1]


def test_facts_are_complete_and_json(tmp_path):
    import msgspec

    document = {"epoch": 3, "net": prefixed(network().half().state_dict(), "module."), "args": {}}
    found = facts(read(document, tmp_path / "a.pt"))
    assert found.parameters == sum(p.numel() for p in network().parameters())
    assert found.dtypes == {"float16": 8, "int64": 1}
    assert (found.nesting, found.prefix) == (("net",), "module.")
    assert found.extras == {"epoch": "3", "args": "dict of 0"}
    assert json.loads(msgspec.json.encode(found))["num_classes"] == 5


# -- matching --------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrapper", ["module.", "_orig_mod.", "module.model.", "_orig_mod.net."])
def test_weights_fit_with_any_wrapper_and_in_any_order(tmp_path, wrapper):
    state = network().state_dict()
    shuffled = dict(sorted(prefixed(state, wrapper).items(), reverse=True))
    target = network()
    nn.init.zeros_(target.fc.weight)
    assert load_into(target, read(shuffled, tmp_path / "a.pt")) == ()
    for name, tensor in target.state_dict().items():
        assert torch.equal(tensor, state[name])


def test_a_network_that_has_the_wrapper_itself_fits_too(tmp_path):
    class Holder(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = network()

    source = Holder()
    weights = read(prefixed(source.state_dict(), "module."), tmp_path / "a.pt")
    assert weights.prefix == "module.model."
    target = Holder()
    nn.init.zeros_(target.model.fc.weight)
    load_into(target, weights)
    assert torch.equal(target.model.fc.weight, source.model.fc.weight)
    write_weights(weights, target.state_dict(), tmp_path / "b.pt")
    assert list(torch.load(tmp_path / "b.pt")) == list(prefixed(source.state_dict(), "module."))


def test_a_part_that_ran_in_parallel_fits(tmp_path):
    def build():
        return nn.ModuleDict({"features": nn.Sequential(nn.Conv2d(3, 4, 3)), "fc": nn.Linear(4, 2)})

    state = build().state_dict()
    wrapped = {name.replace("features.", "features.module."): t for name, t in state.items()}
    target = build()
    load_into(target, read(wrapped, tmp_path / "a.pt"))
    assert torch.equal(target["features"][0].weight, state["features.0.weight"])


def test_half_precision_becomes_the_networks_float32(tmp_path):
    target = network()
    load_into(target, read(network().to(torch.bfloat16).state_dict(), tmp_path / "a.pt"))
    assert target.fc.weight.dtype == torch.float32


@pytest.mark.parametrize("ending", ["pt", "safetensors"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_module_that_asks_for_its_version_gets_that_of_the_network(tmp_path, ending, prefix):
    source, target = (nn.Sequential(VersionedLinear(3, 2)) for _ in range(2))
    load_into(target, read(prefixed(source.state_dict(), prefix), tmp_path / f"a.{ending}"))
    assert torch.equal(target[0].weight, source[0].weight)


def test_a_network_of_torchvision_that_asks_for_its_version(tmp_path):
    try:
        import_torchvision()
    except InputError:
        pytest.skip("torchvision is not installed (extra 'vision')")
    source, target = (
        build_network("torchvision:mnasnet0_5", num_classes=3, channels=3) for _ in range(2)
    )
    load_into(target, read(source.state_dict(), tmp_path / "a.safetensors"))
    assert torch.equal(target.classifier[1].weight, source.classifier[1].weight)


def test_only_the_batch_counters_may_be_missing(tmp_path):
    state = {n: t for n, t in network().state_dict().items() if "num_batches" not in n}
    weights = read(state, tmp_path / "a.pt")
    target = network()
    assert "lacks the batch counters of 1" in load_into(target, weights)[0]
    write_weights(weights, target.state_dict(), tmp_path / "b.pt")
    assert set(torch.load(tmp_path / "b.pt")) == set(state)
    del state["norm.running_var"]
    with pytest.raises(InputError, match=r"missing in the file \(1\): norm.running_var"):
        load_into(target, read(state, tmp_path / "c.pt"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: {k: v for k, v in s.items() if k != "fc.bias"}, r"missing .* \(1\): fc\.bias"),
        (lambda s: {**s, "fc2.bias": torch.ones(2)}, r"not in the network \(1\): fc2\.bias"),
        (lambda s: {**s, "conv.bias": torch.ones(9)}, r"conv\.bias \(file 9, network 4\)"),
        (lambda s: prefixed(s, "backbone."), r"differ only by the prefix 'backbone\.'"),
        (lambda s: network(43).state_dict(), r"head has 43 rows, .* was built with 5"),
        (lambda s: {f"x{i}": torch.ones(1) for i in range(30)}, r"\(30\): x0.*and 20 more"),
        (lambda s: {k: v.to(torch.int8) for k, v in s.items()}, "before they were quantized"),
        (lambda s: {k: v.to(torch.complex64) for k, v in s.items()}, "real and complex"),
    ],
)
def test_what_does_not_fit_is_listed_and_nothing_is_loaded(tmp_path, change, message):
    target = network()
    before = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    weights = read(change(network().state_dict()), tmp_path / "a.pt")
    with pytest.raises(InputError, match=message):
        load_into(target, weights)
    for name, tensor in target.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_shapes_that_are_still_unknown_are_told(tmp_path):
    weights = read(nn.Sequential(nn.Linear(4, 5)).state_dict(), tmp_path / "a.pt")
    with pytest.raises(InputError, match="lazy layers"):
        load_into(nn.Sequential(nn.LazyLinear(5)), weights)


def test_equal_shapes_under_other_names_are_never_matched_by_position(tmp_path):
    renamed = {name.replace("fc", "top"): t for name, t in network().state_dict().items()}
    with pytest.raises(InputError, match=r"missing in the file \(2\): fc.weight, fc.bias"):
        load_into(network(), read(renamed, tmp_path / "a.pt"))


# -- descriptions ----------------------------------------------------------------------------------

ARCHITECTURE = """
from torch import nn
from collections import OrderedDict

def build(num_classes=10, in_channels=3, width=4):
    return nn.Sequential(OrderedDict(
        conv=nn.Conv2d(in_channels, width, 3), norm=nn.BatchNorm2d(width), relu=nn.ReLU(),
        pool=nn.AdaptiveAvgPool2d(1), flat=nn.Flatten(), fc=nn.Linear(width, num_classes)))
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "nets").mkdir()
    (tmp_path / "nets" / "small.py").write_text(ARCHITECTURE)
    torch.save(network(5, 1).state_dict(), tmp_path / "weights.pt")
    (tmp_path / "model.toml").write_text(
        'architecture = "nets/small.py:build"\nweights = "weights.pt"\ninput_size = 8\n'
        'mean = 0.5\nstd = [0.25]\nclasses = ["a", "b", "c", "d", "e"]\n'
    )
    return tmp_path


def test_a_model_is_loaded_from_its_description(folder, monkeypatch):
    monkeypatch.chdir("/")
    model = load_model(folder / "model.toml", device="cpu")
    assert model.description.channels == 1
    assert model.description.mean == (0.5,)
    assert model.description.height_and_width == (8, 8)
    assert model.classifier.classes == ("a", "b", "c", "d", "e")
    images = torch.rand(2, 1, 8, 8)
    expected = network(5, 1).eval()((images - 0.5) / 0.25)
    assert torch.allclose(model.classifier(images), expected, atol=1e-6)
    assert not model.classifier.network.training


def test_the_same_facts_as_keywords_and_overrides(folder):
    architecture = f"{folder / 'nets' / 'small.py'}:build"
    model = load_model(
        folder / "weights.pt", architecture=architecture, mean=0, std=1, classes=None
    )
    assert model.classifier.mean == (0.0,)
    assert load_model(folder / "model.toml", std=0.5).classifier.std == (0.5,)
    again = load_model(read_description(folder / "model.toml"))
    assert again.classifier.std == (0.25,)
    assert isinstance(again.description, ModelDescription)


def test_loading_leaves_the_random_generator_as_it_was(folder):
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    load_model(folder / "model.toml")
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mean": None}, r"mean is missing.*pass --mean 0 --std 1"),
        ({"architecture": None}, "which network the weights belong to"),
        ({"weights": None}, "required field `weights`"),
        ({"wieghts": '"x"'}, "unknown field 'wieghts'; perhaps you meant 'weights'"),
        ({"mean": '["a"]'}, r"Expected `float`, got `str` - at `\$.mean\[0\]`"),
        ({"mean": "[0.1, 0.2, 0.3]"}, "gives 3 values as mean, .* images of 1 channels"),
        ({"std": "0"}, "std above 0"),
        ({"std": "nan"}, "finite numbers"),
        ({"classes": '["a", "b"]'}, "names 2 classes, and the network in .* has 5"),
        ({"input_size": "[8, 8, 8]"}, r"\$.input_size"),
        ({"input_size": "0"}, "height and a width above 0"),
        ({"weights": '"gone.pt"'}, "there is no file .*gone.pt"),
        (
            {"architecture": '"nets/small.py:biuld"'},
            "no function 'biuld'; perhaps you meant 'build'",
        ),
        ({"arguments": "{num_classes = 7}", "classes": None}, "was built with 7"),
        ({"arguments": "{depth = 7}"}, "unexpected keyword argument 'depth'"),
    ],
)
def test_a_wrong_description_says_what_is_wrong(folder, change, message):
    lines = dict(line.split(" = ", 1) for line in (folder / "model.toml").read_text().splitlines())
    lines = {key: value for key, value in {**lines, **change}.items() if value is not None}
    text = "".join(f"{key} = {value}\n" for key, value in lines.items())
    (folder / "model.toml").write_text(text)
    with pytest.raises(InputError, match=message):
        load_model(folder / "model.toml")


def test_files_that_are_no_description(folder):
    with pytest.raises(InputError, match="there is no file"):
        load_model(folder / "none.pt")
    with pytest.raises(InputError, match="is a folder"):
        load_model(folder)
    with pytest.raises(InputError, match="cannot be read"):
        load_model(folder / "none.toml")
    for text in ("a = [", "x = " + "[" * 10_000, "\x00"):
        (folder / "model.toml").write_text(text)
        with pytest.raises(InputError, match="no valid TOML"):
            load_model(folder / "model.toml")


def test_broken_weights_are_refused_before_the_network_is_built(folder):
    state = network(5, 1).state_dict()
    state["fc.bias"][0] = torch.nan
    torch.save(state, folder / "weights.pt")
    (folder / "nets" / "small.py").write_text("raise RuntimeError('was run')")
    with pytest.raises(InputError, match=r"NaN or infinite values in fc\.bias"):
        load_model(folder / "model.toml")


# -- models that others trained --------------------------------------------------------------------


@pytest.mark.skipif(not MODELS.is_dir(), reason="BEZOAR_DATA does not name the folder of test data")
@pytest.mark.parametrize("path", sorted(MODELS.glob("*/model.json")), ids=lambda p: p.parent.name)
def test_third_party_models_load(path):
    expected = json.loads(path.read_text())
    architecture = expected["architecture"]
    model = load_model(
        path.with_name("model.safetensors"),
        architecture=f"{path.parent / architecture['file']}:build",
        arguments={k: v for k, v in architecture["arguments"].items() if k != "num_classes"},
        mean=expected["preprocessing"]["mean"],
        std=expected["preprocessing"]["std"],
        input_size=32,
        device="cpu",
    )
    found = facts(model.weights)
    assert found.num_classes == expected["num_classes"]
    assert found.input_channels == 3
    assert found.parameters == architecture["parameters"]
    assert model.classifier(torch.rand(2, 3, 32, 32)).shape == (2, expected["num_classes"])
