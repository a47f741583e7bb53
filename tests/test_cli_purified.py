"""``bezoar clean`` with a method that puts a purifier in front, and what the others do with it."""

import json

import pytest
import torch
from purified_models import purifier

from bezoar import cli, pipeline
from bezoar.classifier import Classifier
from bezoar.intake import read_weights
from bezoar.methods import Method, Repair, methods, purifying_cost
from bezoar.networks.purified import Purified

FACTS = ("--architecture", "bezoar:small-cnn", "--mean", "0.3", "--std", "0.35")


class Wash(Method, frozen=True, kw_only=True):
    """Puts a purifier in front that does nearly nothing."""

    name = "wash"
    title = "Washing"
    purifies = True

    def remove(self, classifier, clean, *, seed=0, progress=None):
        twin = classifier.copy()
        twin.network = Purified(
            twin.network, purifier(strength=0.01), mean=twin.mean, std=twin.std
        ).eval()
        after = Classifier(twin.network, mean=twin.mean, std=twin.std).trace((1, 8, 8))
        batch, _ = next(clean.batches(16, device=classifier.device))
        return Repair(after, {"cost": purifying_cost.measure(classifier, after, batch, runs=1)})


@pytest.fixture(scope="module", autouse=True)
def wash():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(methods._things, "wash", Wash)
        yield


@pytest.fixture
def clean(model_files, capsys):
    """(arguments…) → exit code, standard output, standard error of ``bezoar clean``."""

    def call(model, *arguments, method="wash"):
        capsys.readouterr()
        command = ["clean", model, "--images", model_files / "clean.npz", "--method", method]
        code = cli.run([str(argument) for argument in (*command, *arguments)])
        return code, *capsys.readouterr()

    return call


@pytest.fixture(scope="module")
def washed(wash, model_files, tmp_path_factory):
    """A purified file, as ``clean`` leaves it."""
    folder = tmp_path_factory.mktemp("washed")
    outputs = {"--out": "w.pt", "--export": "w.pt2", "--json": "w.json"}
    arguments = [part for option, name in outputs.items() for part in (option, str(folder / name))]
    images = str(model_files / "clean.npz")
    model = str(model_files / "twin.toml")
    assert cli.run(["clean", model, "--images", images, "--method", "wash", *arguments]) == 0
    return folder / "w.pt"


def test_clean_writes_weights_source_export_and_report(washed, digits):
    folder = washed.parent
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        ["w.pt", "w.py", "w.pt2", "w.json", "w.report.html"]
    )
    record = json.loads((folder / "w.json").read_text())
    parameters = sum(p.numel() for p in purifier().parameters())
    assert record["wrapped"] == {"parameters": parameters} and record["changes"] == []
    assert record["output"]["source"].endswith("w.py")
    assert record["output"]["export"].endswith("w.pt2")
    assert record["output"]["sha256"] == read_weights(washed).sha256
    page = " ".join((folder / "w.report.html").read_text().split())
    assert f"The weights are unchanged; a purifier of {parameters:,} parameters" in page
    assert "Cost per image" in page and "ms without, batches of 16" in page
    assert "No tensor was changed" not in page
    state = read_weights(washed).tensors
    for name, tensor in digits.twin.network.state_dict().items():
        assert torch.equal(state[f"network.{name}"], tensor)
    x = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    whole = Purified(digits.twin.network, purifier(strength=0.01), mean=0.3, std=0.35).eval()
    program = torch.export.load(folder / "w.pt2").module()
    with torch.no_grad():
        torch.testing.assert_close(program(x), whole(x))


def test_the_screen_tells_the_cost_and_the_files(clean, model_files, tmp_path):
    _, out, _ = clean(model_files / "twin.toml", "--out", tmp_path / "w.safetensors")
    lines = out.splitlines()
    assert any(line.startswith("Cost per image: ") and "in batches of 16" in line for line in lines)
    assert f"Source: {tmp_path / 'w.py'}" in lines
    assert not any(line.startswith("Export") for line in lines)


def test_the_other_commands_take_a_purified_file(washed, model_files, capsys):
    capsys.readouterr()
    images = ("--images", str(model_files / "test.npz"))
    trigger = ("--trigger", "bad-nets:target=4,size=2")
    assert cli.run(["scan", str(washed), *FACTS, *images, "--json", "-"]) in (0, 1)
    assert json.loads(capsys.readouterr().out)["model"]["head"] == "network.fc.weight"
    assert cli.run(["evaluate", str(washed), *FACTS, *images, *trigger, "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out)["scores"]["acc"]["value"] > 0.9
    assert cli.run(["inspect", str(washed)]) == 0
    out = capsys.readouterr().out
    assert "purifiers: kind: residual, parameters: " in out and "head: fc.weight\n" in out
    assert cli.run(["inspect", str(washed), *FACTS[:2]]) == 0, "no mean is asked for"
    assert cli.run(["inspect", str(washed), *FACTS[:2], "--mean", "0.4"]) == 2, "but compared"
    assert "the purifier in" in capsys.readouterr().err


def test_a_method_that_changes_weights_keeps_the_purifier(clean, washed, tmp_path):
    """The whole is trained, and written as a purified model again."""
    code, _, err = clean(
        *(washed, *FACTS, "--out", tmp_path / "t.pth", "--json", tmp_path / "t.json"),
        *("--set", "recipe.epochs=1"),
        method="tac",
    )
    assert (code, err) == (0, "")
    before, after = read_weights(washed).tensors, read_weights(tmp_path / "t.pth").tensors
    assert before.keys() == after.keys() and (tmp_path / "t.py").exists()
    assert not torch.equal(before["network.fc.weight"], after["network.fc.weight"])
    record = json.loads((tmp_path / "t.json").read_text())
    assert record["wrapped"] is None
    assert any(row["tensor"] == "network.fc.weight" for row in record["changes"])


def test_a_purified_model_gets_one_more_purifier(clean, washed, tmp_path):
    code, _, err = clean(washed, *FACTS, "--out", tmp_path / "two.pt", "--json", tmp_path / "two")
    assert (code, err) == (0, "")
    state = read_weights(tmp_path / "two.pt").tensors
    assert {"purifier.pattern", "network.purifier.pattern"} <= state.keys()
    record = json.loads((tmp_path / "two").read_text())
    assert record["wrapped"] and record["changes"] == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--out", "w.bin"), "ends in .safetensors, .pt, .pth"),
        (("--out", "w.pt", "--export", "w.onnx"), "ends in .pt2"),
        (("--out", "w.pt2", "--export", "w.pt2"), "given for two outputs"),
        (("--out", "taken.pt"), "taken.py would be replaced"),
        (("--out", "w.pt", "--json", "w.py"), "w.py is given for two outputs"),
    ],
)
def test_outputs_that_cannot_be_are_refused_before_the_work(
    arguments, message, clean, model_files, tmp_path, monkeypatch
):
    def never(*_arguments, **_options):
        raise AssertionError("the work has begun")

    monkeypatch.setattr(pipeline, "clean", never)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken.py").write_text("own = 1\n")
    code, _, err = clean(model_files / "twin.toml", *arguments)
    assert code == 2 and message in err
    assert [path.name for path in tmp_path.iterdir()] == ["taken.py"]


def test_any_method_can_export_and_a_refused_repair_exports_nothing(clean, model_files, tmp_path):
    common = (model_files / "twin.toml", "--out", tmp_path / "t", "--export", tmp_path / "t.pt2")
    one = ("--set", "recipe.epochs=1")
    ruin = (*one, "recipe.learning_rate=5", "recipe.clip_norm=0")
    assert clean(*common, *ruin, method="tac")[0] == 1
    assert not (tmp_path / "t.pt2").exists()
    assert clean(*common, *one, method="tac")[0] == 0
    assert torch.export.load(tmp_path / "t.pt2").module()(torch.zeros(1, 1, 8, 8)).shape == (1, 10)
