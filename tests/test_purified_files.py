"""Files of purified networks: what is in them, who can read them, what is never overwritten."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
from purified_models import purified, purifier

from bezoar import intake, networks
from bezoar.errors import InputError
from bezoar.intake.standalone import MARK, MODULES, source
from bezoar.networks.generators import drawn
from bezoar.networks.purified import Purified

FACTS = {"architecture": "bezoar:small-cnn", "mean": (0.3,), "std": (0.35,)}
X = (torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(0)) - 0.3) / 0.35


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """A plain file in half precision, with a wrapper's prefix, as people have them."""
    network = drawn(lambda: networks.build("small-cnn"), 0).eval()
    state = {
        f"module.{name}": value.half() if value.is_floating_point() else value
        for name, value in network.state_dict().items()
    }
    path = tmp_path_factory.mktemp("stored") / "plain.pt"
    torch.save({"epoch": 3, "state_dict": state}, path)
    return path


@pytest.fixture
def loaded(stored):
    return intake.load_model(stored, device="cpu", **FACTS)


@pytest.mark.parametrize("name", ["q.safetensors", "q.pt", "q.pth"])
def test_the_file_holds_the_network_the_purifier_and_how_to_put_them_together(
    loaded, tmp_path, name
):
    whole = purified(loaded.classifier.network)
    intake.write_purified(loaded.weights, whole, tmp_path / name)
    if name.endswith(".safetensors"):
        state = safetensors.torch.load_file(tmp_path / name)
    else:
        state = torch.load(tmp_path / name, weights_only=True)
    assert state.keys() == whole.state_dict().keys()
    for key, tensor in loaded.weights.tensors.items():
        assert state[f"network.{key}"].dtype == tensor.dtype
        assert torch.equal(state[f"network.{key}"], tensor)
    assert torch.equal(state["purifier.pattern"], whole.purifier.pattern)
    assert state["mean"].tolist() == pytest.approx([0.3])
    told = json.loads(bytes(state["configuration"].tolist()))
    assert told["format"] == 1 and told["purifier"]["kind"] == "residual"
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([name, "q.py"])


@pytest.mark.parametrize("name", ["q.safetensors", "q.pt"])
def test_bezoar_reads_it_back_with_the_facts_of_the_network(loaded, tmp_path, name):
    whole = purified(loaded.classifier.network, noise=0.0)
    intake.write_purified(loaded.weights, whole, tmp_path / name)
    again = intake.load_model(tmp_path / name, device="cpu", **FACTS)
    assert isinstance(again.classifier.network, Purified)
    with torch.no_grad():
        assert torch.equal(again.classifier.network(X), whole(X))
    assert again.classifier.trace((1, 8, 8)).head.name == "network.fc.weight"


def test_the_facts_are_those_of_the_network_and_name_the_purifier(loaded, tmp_path):
    intake.write_purified(loaded.weights, purified(loaded.classifier.network), tmp_path / "q.pt")
    known = intake.facts(intake.read_weights(tmp_path / "q.pt"))
    plain = intake.facts(loaded.weights)
    assert (known.head, known.num_classes, known.input_channels) == ("fc.weight", 10, 1)
    assert (plain.head, plain.purifiers) == ("fc.weight", ())
    (front,) = known.purifiers
    assert front["kind"] == "residual" and front["height"] == 8
    assert front["parameters"] == sum(p.numel() for p in purifier().parameters())


# -- without bezoar --------------------------------------------------------------------------------

ALONE = """
import importlib.util, json, sys
sys.modules["bezoar"] = None  # any import of it fails from here on
import torch
from torch import nn

def module(path):
    spec = importlib.util.spec_from_file_location("beside", path)
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found

answers, x = [], torch.tensor(json.loads(sys.stdin.read()))
for source, weights in zip(sys.argv[1::2], sys.argv[2::2]):
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    whole = module(source).load(network, weights)
    assert not whole.training
    answers.append(whole(x).tolist())
assert not any(name.startswith("bezoar.") for name in sys.modules)
print(json.dumps(answers))
"""


def test_the_source_beside_it_loads_it_without_bezoar(tmp_path):
    """One purifier in a torch file, two in a safetensors file."""
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3))
    torch.save(network.state_dict(), tmp_path / "plain.pt")
    one, many = tmp_path / "one.pt", tmp_path / "many.safetensors"
    inner = purified(network)
    whole = Purified(inner, purifier(seed=3), mean=0.3, std=0.35).eval()
    intake.write_purified(intake.read_weights(tmp_path / "plain.pt"), inner, one)
    intake.write_purified(intake.read_weights(one), whole, many)
    done = subprocess.run(  # noqa: S603 (our own interpreter, arguments from this file)
        [sys.executable, "-c", ALONE, one.with_suffix(".py"), one, many.with_suffix(".py"), many],
        input=json.dumps(X.tolist()),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    wanted = torch.stack((inner(X), whole(X))).detach()
    torch.testing.assert_close(torch.tensor(json.loads(done.stdout)), wanted, rtol=0, atol=1e-6)


def test_the_source_is_that_of_the_modules_and_defines_each_name_once():
    text = source()
    assert text.startswith(MARK) and "Apache License, Version 2.0" in text
    tree = ast.parse(text)
    names = [n.name for n in tree.body if isinstance(n, ast.FunctionDef | ast.ClassDef)]
    names += [
        target.id
        for node in tree.body
        if isinstance(node, ast.Assign | ast.AnnAssign)
        for target in getattr(node, "targets", [getattr(node, "target", None)])
    ]
    assert len(names) == len(set(names)) and {"load", "Purified", "UNet"} <= set(names)
    imported = {
        (node.module if isinstance(node, ast.ImportFrom) else node.names[0].name).split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
    }
    own = {"torch", "safetensors"}
    assert imported - own <= set(sys.stdlib_module_names)
    for module in MODULES:
        assert "class " in Path(module.__file__).read_text()
        for body in re.findall(r"\n(class .*?\n\n\n)", Path(module.__file__).read_text(), re.S):
            assert body in text


# -- what is never done ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["q.bin", "q", "q.onnx", "q.py"])
def test_an_ending_that_names_no_container_is_refused_before_the_work(loaded, tmp_path, name):
    with pytest.raises(InputError, match=r"ends in \.safetensors, \.pt, \.pth"):
        intake.check_purified_writable(tmp_path / name, loaded.weights)
    assert not list(tmp_path.iterdir())


def test_neither_the_source_nor_somebodys_python_is_overwritten(loaded, stored, tmp_path):
    whole = purified(loaded.classifier.network)
    with pytest.raises(InputError, match="never overwritten"):
        intake.write_purified(loaded.weights, whole, stored)
    own = tmp_path / "net.py"
    own.write_text("class Net: ...\n")
    with pytest.raises(InputError, match=r"net\.py would be replaced"):
        intake.write_purified(loaded.weights, whole, tmp_path / "net.pt")
    assert own.read_text() == "class Net: ...\n" and not (tmp_path / "net.pt").exists()
    for _ in range(2):  # but what bezoar made, it may make again
        intake.write_purified(loaded.weights, whole, tmp_path / "other.pt")


def test_a_disk_that_fails_leaves_the_old_file(loaded, tmp_path, monkeypatch):
    whole, out = purified(loaded.classifier.network), tmp_path / "q.pt"
    intake.write_purified(loaded.weights, whole, out)
    before = out.read_bytes()

    def full(*_arguments, **_options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(InputError, match="No space left"):
        intake.write_purified(loaded.weights, whole, out)
    assert out.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["q.pt", "q.py"]


def test_another_normalisation_than_the_purifiers_is_refused(loaded, tmp_path):
    intake.write_purified(loaded.weights, purified(loaded.classifier.network), tmp_path / "q.pt")
    with pytest.raises(InputError, match=r"mean.*made for \(0\.3"):
        intake.load_model(tmp_path / "q.pt", device="cpu", **{**FACTS, "mean": (0.5,)})


def test_a_hostile_file_is_refused_by_everything_that_reads_it(loaded, tmp_path):
    state = purified(loaded.classifier.network).state_dict()
    state["configuration"] = torch.tensor(list(b"__import__('os')"), dtype=torch.uint8)
    torch.save(state, tmp_path / "q.pt")
    with pytest.raises(InputError, match="no JSON"):
        intake.facts(intake.read_weights(tmp_path / "q.pt"))
    with pytest.raises(InputError, match="no JSON"):
        intake.load_model(tmp_path / "q.pt", device="cpu", **FACTS)


def test_another_networks_purifier_does_not_fit(loaded, tmp_path):
    other = drawn(lambda: networks.build("small-cnn", width=3), 0)
    with pytest.raises(InputError, match="shape"):
        intake.write_purified(loaded.weights, purified(other), tmp_path / "q.pt")
    assert not list(tmp_path.iterdir())
