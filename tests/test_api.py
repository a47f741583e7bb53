"""The names that code outside the repository calls, and what importing them costs."""

import dataclasses
import inspect
import subprocess
import sys

import pytest

import bezoar


def python(*arguments):
    return subprocess.run(  # noqa: S603 (our own interpreter, arguments from this file)
        [sys.executable, *arguments], capture_output=True, text=True, timeout=60, check=False
    )


def parameters(function):
    return list(inspect.signature(function).parameters)


def test_every_public_name_is_there():
    for name in bezoar.__all__:
        assert getattr(bezoar, name) is not None
    assert {"Classifier", "ImageSet", "scan", "clean", "evaluate"} <= set(dir(bezoar))
    with pytest.raises(AttributeError, match="no attribute 'scann'"):
        bezoar.scann  # noqa: B018 (the attribute is the call under test)


def test_the_functions_take_what_the_documentation_says():
    assert parameters(bezoar.Classifier)[:4] == ["network", "mean", "std", "classes"]
    assert parameters(bezoar.ImageSet.from_folder)[0] == "path"
    assert parameters(bezoar.ImageSet.from_arrays)[:2] == ["images", "labels"]
    assert parameters(bezoar.scan)[:3] == ["classifier", "clean", "seed"]
    assert parameters(bezoar.clean)[:4] == ["classifier", "images", "method", "seed"]
    assert parameters(bezoar.sift)[:5] == ["classifier", "suspects", "clean", "seed", "level"]
    assert parameters(bezoar.evaluate)[:3] == ["classifier", "images", "attack"]


def test_the_results_have_the_documented_fields():
    def fields(kind):
        return {field.name for field in dataclasses.fields(kind)}

    finding = {"verdict", "suspects", "ranking", "p_values", "evidence", "deciding", "record"}
    assert fields(bezoar.Finding) == finding
    assert fields(bezoar.Repair) == {
        *("classifier", "record", "evidence", "synthetic", "alternatives"),
    }
    assert fields(bezoar.Scores) >= {"acc", "asr", "ra"}


def test_the_documented_calls_work_as_they_stand(digits):
    classifier = bezoar.Classifier(
        digits.planted.network, mean=0.3, std=0.35, classes=list("0123456789")
    )
    clean = bezoar.ImageSet.from_arrays(digits.clean.images.numpy(), digits.clean.labels.numpy())
    finding = bezoar.scan(classifier, clean, seed=0)
    assert finding.verdict in tuple(bezoar.Verdict)
    assert finding.ranking[0] == finding.suspects[0] == 4
    repair = bezoar.clean(classifier, clean, method="ft", seed=0)
    scores = bezoar.evaluate(repair.classifier, digits.test, digits.attack)
    assert 0 <= scores.ra <= 1 and 0 <= scores.asr <= 1 and scores.acc > 0.9


def test_importing_does_not_import_torch():
    done = python("-c", "import bezoar, bezoar.cli, sys; sys.exit('torch' in sys.modules)")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("command", [["--help"], ["scan", "--help"], ["--version"]])
def test_help_does_not_import_torch(command):
    done = python("-X", "importtime", "-m", "bezoar", *command)
    assert done.returncode == 0
    assert ("bezoar" in done.stdout) and len(done.stdout) > 5
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "bezoar.cli" in imported  # or the list below would be empty for another reason
    assert not imported & {"torch", "numpy", "safetensors", "jinja2", "PIL"}
