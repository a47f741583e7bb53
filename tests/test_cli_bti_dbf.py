"""Both defenses of BTI-DBF on the command line, from the scan to the file that others load."""

import importlib.util
import json

import pytest
import torch

from bezoar import cli, networks
from bezoar.intake import read_weights

QUICK = ("--set", "decoupling.steps=20", "inversion.steps=20", "rounds=1", "strong=none")
FACTS = ("--architecture", "bezoar:small-cnn", "--mean", "0.3", "--std", "0.35")


@pytest.fixture
def run(model_files, capsys):
    """(command, model, arguments…) → exit code, standard output, on the digits files."""

    def call(command, model, *arguments, images="clean"):
        capsys.readouterr()
        given = (command, model, "--images", model_files / f"{images}.npz", *arguments)
        code = cli.run([str(argument) for argument in given])
        out, err = capsys.readouterr()
        assert err == ""
        return code, out

    return call


def loaded(path):
    """What a user gets from the source beside a purified file."""
    spec = importlib.util.spec_from_file_location("beside", path.with_suffix(".py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.load(networks.build("small-cnn"), path)


def test_scan_with_two_methods_tells_what_each_saw(run, model_files, tmp_path):
    report = tmp_path / "scan.html"
    options = ("--methods", "tac", "bti-dbf", "--report", report)
    code, out = run("scan", model_files / "planted.toml", *options)
    assert code == 1 and "tac: shift" in out and "bti-dbf: pull ratio" in out
    assert "no trigger" in out  # the other classes of bti-dbf
    _, out = run("scan", model_files / "planted.toml", *options, "--json", "-")
    record = json.loads(out)
    first, second = record["evidence"]
    assert (first["method"], second["method"]) == ("tac", "bti-dbf")
    assert second["reading"]["kind"] and second["votes"]["counts"]
    assert second["details"]["decoupling"]["rest"]["accuracy"] < 0.5
    page = " ".join(report.read_text().split())
    assert second["reading"]["sentence"] in page


def test_clean_with_u_writes_weights(run, model_files, tmp_path):
    out = tmp_path / "u.safetensors"
    options = ("--method", "bti-dbf", *QUICK, "unlearning.recipe.epochs=1")
    code, said = run("clean", model_files / "planted.toml", "--out", out, *options)
    assert code == 0 and f"Weights: {out}" in said and "Cost per image" not in said
    before = read_weights(model_files / "planted.safetensors").tensors
    after = read_weights(out).tensors
    assert before.keys() == after.keys()
    assert not torch.equal(before["fc.weight"], after["fc.weight"])


def test_clean_with_p_writes_a_purifier_that_loads_without_bezoar(run, model_files, tmp_path):
    out, export, record = (tmp_path / name for name in ("p.safetensors", "p.pt2", "p.json"))
    options = ("--export", export, "--json", record, "--method", "bti-dbf-p")
    settings = (*QUICK, "purifying.recipe.epochs=1")
    code, said = run("clean", model_files / "planted.toml", "--out", out, *options, *settings)
    assert code == 0
    cost = json.loads(record.read_text())["repair"]["cost"]
    assert f"without the purifier of {cost['purifier parameters']:,} parameters" in said
    network, program = loaded(out), torch.export.load(export).module()
    x = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    before = networks.build("small-cnn").eval()
    before.load_state_dict(read_weights(model_files / "planted.safetensors").tensors)
    with torch.no_grad():
        torch.testing.assert_close(network(x), program(x))
        assert not torch.allclose(network(x), before(x), atol=1e-3)
    assert "The weights behind the purifier are unchanged" in said  # the last layer shows them
    trigger = ("--trigger", "bad-nets:target=4,size=2", "--json", "-")
    code, told = run("evaluate", out, *FACTS, *trigger, images="test")
    assert code == 0 and json.loads(told)["scores"]["acc"]["value"] > 0.9


def test_a_purifier_that_was_not_trained_is_told(run, model_files, tmp_path):
    out, page = tmp_path / "p.pt", tmp_path / "p.report.html"
    options = ("--method", "bti-dbf-p", *QUICK[:-1], "strong=0")
    code, said = run("clean", model_files / "twin.toml", "--out", out, *options)
    assert code == 0 and "it leaves images as they are." in " ".join(said.split())
    assert "it leaves images as they are." in " ".join(page.read_text().split())
