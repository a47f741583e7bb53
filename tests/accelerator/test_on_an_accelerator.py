"""Methods, scans, attacks and commands on another device than the CPU.

The pretended accelerator refuses what a GPU refuses; it computes what the CPU computes, so a method
has to give what it gives there. Batches are larger on accelerators, which moves the last digits.
"""

import json

import numpy as np
import pytest
import torch
from method_rows import LOOKING, ROWS
from public_digits import collage
from torch import nn

from bezoar import cli, networks
from bezoar.attacks import attacks
from bezoar.classifier import Classifier
from bezoar.methods import methods
from bezoar.records import to_json
from bezoar.training import Recipe, fit

pytestmark = pytest.mark.slow

KINDS = {
    "norms": lambda: networks.build("small-cnn", num_classes=4, width=8),
    "shortcuts": lambda: networks.build("resnet-8", num_classes=4, channels=1, width=8),
    "groups": lambda: nn.Sequential(
        *(nn.Conv2d(1, 8, 3), nn.GroupNorm(2, 8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(128, 4)),
    ),
}


@pytest.fixture(scope="module")
def four(digits):
    """Images of four digits."""
    return digits.clean.subset(torch.nonzero(digits.clean.labels < 4).flatten())


@pytest.fixture(scope="module")
def trained(four):
    """Kind → a network that knows them, on the CPU."""
    known = {}

    def get(kind):
        if kind not in known:
            torch.manual_seed(0)
            known[kind] = Classifier(KINDS[kind](), mean=0.3, std=0.35)
            recipe = Recipe(epochs=25, batch_size=16, learning_rate=0.05, clip_norm=5.0)
            fit(known[kind], four, recipe, seed=0)
        return known[kind]

    return get


def answers(classifier, images):
    return classifier.logits(images).argmax(1).cpu()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", sorted(ROWS))
def test_a_method_repairs_there_as_on_the_cpu(name, kind, trained, four, moved, device):
    classifier = trained(kind)
    expected = ROWS[name].quick().remove(classifier, four, seed=0)
    repair = ROWS[name].quick().remove(moved(classifier), four, seed=0)
    network = repair.classifier.network
    assert {t.device for t in [*network.parameters(), *network.buffers()]} == {device}
    same = answers(repair.classifier, four) == answers(expected.classifier, four)
    assert same.float().mean() >= 0.95
    assert json.loads(json.dumps(to_json(repair.record))).keys() == expected.record.keys()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", [n for n in methods.names() if methods.get(n).inspects])
def test_a_witness_sees_there_what_it_sees_on_the_cpu(name, kind, trained, four, moved):
    method = (LOOKING[name] if name in LOOKING else ROWS[name].quick)()
    classifier = trained(kind)
    expected, seen = (method.inspect(c, four, seed=0) for c in (classifier, moved(classifier)))
    assert seen.p_values == pytest.approx(expected.p_values, abs=0.02)
    assert seen.values == pytest.approx(expected.values, rel=0.02)


# -- commands: they take the accelerator themselves ------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        ["scan", "MODEL", "--images", "CLEAN", "--audit"],
        ["scan", "MODEL"],
        ["clean", "MODEL", "--images", "CLEAN", "--out", "OUT.safetensors"],
        ["clean", "MODEL", "--out", "OUT.safetensors"],
        [
            *("clean", "MODEL", "--method", "dhbe", "--set", "iterations=20"),
            *("--out", "OUT.safetensors"),
        ],
        [
            *("clean", "MODEL", "--method", "fred", "--generator", "PUBLIC.toml"),
            *("--set", "count=200", "inversion.iterations=2", "--out", "OUT.safetensors"),
        ],
        ["clean", "TWIN", "--images", "CLEAN", "--precaution", "--out", "OUT.safetensors"],
        ["sift", "MODEL", "TEST", "--images", "CLEAN"],
        ["synthesize", "MODEL", "--steps", "20", "--out", "OUT.npz"],
        ["evaluate", "MODEL", "--images", "TEST", "--trigger", "bad-nets:target=4,size=2"],
    ],
    ids=" ".join,
)
def test_a_command_runs_there(arguments, model_files, generator, run, tmp_path, every_witness):
    files = {
        "MODEL": model_files / "planted.toml",
        "TWIN": model_files / "twin.toml",
        "CLEAN": model_files / "clean.npz",
        "TEST": model_files / "test.npz",
        "PUBLIC.toml": generator,
    }
    given = [files.get(a, tmp_path / a if a.startswith("OUT") else a) for a in arguments]
    code, _, err = run(*given, "--json", tmp_path / "record.json", "--quiet")
    assert (code in (0, 1), err) == (True, "")
    assert "pretended:0" in (tmp_path / "record.json").read_text()


@pytest.fixture(scope="session")
def generator(digits, tmp_path_factory):
    """A generator of public images, trained on the device."""
    folder = tmp_path_factory.mktemp("public")
    np.savez(folder / "public.npz", images=collage(digits.train).images.numpy())
    arguments = ["generator", "train", "--images", folder / "public.npz", "--size", 8, 8]
    arguments += ["--steps", 60, "--width", 8, "--latent", 6, "--quiet"]
    arguments += ["--out", folder / "public.toml"]
    assert cli.run([str(argument) for argument in arguments]) == 0
    return folder / "public.toml"


SMALLER = {"adap-patch": ":size=3", "tbt": ":size=3"}  # digits are of 8x8
OTHERS = {"several", "stored-pattern"}  # they are made of what other attacks made


@pytest.mark.parametrize("name", sorted(set(attacks.names()) - OTHERS))
def test_an_attack_trains_there(name, run, tmp_path):
    arguments = ["attack", name + SMALLER.get(name, ""), "--data", "digits", "--quiet"]
    arguments += ["--architecture", "bezoar:small-cnn", "--set", "epochs=2", "batch_size=50"]
    arguments += ["--train-images", 200, "--test-images", 100, "--out", tmp_path / "model"]
    code, _, err = run(*arguments, "--json", tmp_path / "record.json")
    assert (code in (0, 1), err) == (True, "")
    assert json.loads((tmp_path / "record.json").read_text())["device"] == "pretended:0"
