"""Fixtures: a planted digits model and its clean twin, trained once a run in seconds."""

import os
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from ray_import import import_ray

from bezoar import cli, networks, repairing, scanning, surviving
from bezoar.attacks import Attack, BadNets
from bezoar.classifier import Classifier
from bezoar.demo import DIGITS_RECIPE, load_digits
from bezoar.images import ImageSet
from bezoar.methods import RNP, BtiDbf
from bezoar.methods.bti_dbf_decoupling import Decoupling
from bezoar.methods.bti_dbf_inversion import GeneratorInversion
from bezoar.methods.neural_cleanse_schedule import Inversion
from bezoar.methods.smooth_inversion import SmoothInversion
from bezoar.training import fit
from bezoar.trying import Unlearning, plan_for


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="also run the tests that take minutes")


def pytest_collection_modifyitems(config, items):
    if not config.getoption("--slow"):
        for item in items:
            if "slow" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="takes minutes; run with --slow"))


EVERY_WITNESS = scanning.WITNESSES


def two_repairs(survivors, found_by=None):
    """Of what ``clean`` tries, the two that are told the class; triggers are unlearned once."""
    told = ("joint-unlearning", "tac")
    return tuple(
        tuple(replace(step, runs=1) if isinstance(step, Unlearning) else step for step in steps)
        for steps in plan_for(survivors)
        if len(steps) == 1 and steps[0].name in told
    )


@pytest.fixture(scope="session", autouse=True)
def one_witness():
    """A scan that nobody is named for asks TAC alone, and ``clean`` tries two repairs.

    All of them take seconds, even on digits; ``test_scanning`` and ``test_trying`` use them.
    """
    scanning.WITNESSES, repairing.plan_for = ("tac",), two_repairs
    yield
    scanning.WITNESSES, repairing.plan_for = EVERY_WITNESS, plan_for


@pytest.fixture
def every_witness(monkeypatch):
    """Undoes that for tests of the choice itself."""
    monkeypatch.setattr(scanning, "WITNESSES", EVERY_WITNESS)


JUDGES = {
    "BtiDbf": partial(
        BtiDbf, decoupling=Decoupling(steps=40), inversion=GeneratorInversion(steps=40), rounds=1
    ),
    "Inversion": partial(Inversion, epochs=10),
    "RNP": partial(RNP, repeats=1),
    "SmoothInversion": partial(SmoothInversion, steps=20),
}
"""What recovers the triggers that judge a repair, in few steps."""


@pytest.fixture
def run(capsys):
    """(arguments…) → exit code, standard output, standard error of a command."""

    def call(*arguments):
        capsys.readouterr()
        code = cli.run([str(argument) for argument in arguments])
        return code, *capsys.readouterr()

    return call


@pytest.fixture(scope="session", autouse=True)
def no_width():
    """How wide the terminal is that the tests are run in must not break the lines they read."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("COLUMNS", raising=False)
        yield


@pytest.fixture(scope="session", autouse=True)
def hasty_judges():
    """The triggers that judge a repair are recovered in few steps.

    In many they take most of a repair's time on digits; ``thorough_judges`` undoes it.
    """
    with pytest.MonkeyPatch.context() as patch:
        for name, hasty in JUDGES.items():
            patch.setattr(surviving, name, hasty)
        yield


@pytest.fixture(scope="module")
def thorough_judges():
    """Undoes that for tests of the judges themselves, and of what users run."""
    with pytest.MonkeyPatch.context() as patch:
        for name, hasty in JUDGES.items():
            patch.setattr(surviving, name, hasty.func)
        yield


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder with real images and third-party checkpoints."""
    folder = os.environ.get("BEZOAR_DATA")
    if not folder:
        pytest.skip("BEZOAR_DATA is not set: the folder with real images and checkpoints")
    return Path(folder)


@dataclass(frozen=True)
class Digits:
    """A backdoored network, its clean twin, the attack, and the three sets of images."""

    planted: Classifier
    twin: Classifier
    attack: Attack
    train: ImageSet
    clean: ImageSet
    test: ImageSet


@pytest.fixture(scope="session")
def digits() -> Digits:
    torch.set_num_threads(1)
    train, clean, test = load_digits(seed=11)
    attack = BadNets(target=4, size=2)
    models = []
    for images in (attack.poison(train, 0.1, seed=11).images, train):
        torch.manual_seed(11)
        classifier = Classifier(networks.build("small-cnn"), mean=0.3, std=0.35)
        fit(classifier, images, DIGITS_RECIPE, seed=11)
        models.append(classifier)
    return Digits(models[0], models[1], attack, train, clean, test)


@pytest.fixture(scope="session")
def model_files(digits, tmp_path_factory) -> Path:
    """The digits models and images as files, as a user has them; tests write elsewhere."""
    folder = tmp_path_factory.mktemp("model-files")
    for name, classifier in (("planted", digits.planted), ("twin", digits.twin)):
        state = classifier.network.state_dict()
        safetensors.torch.save_file(state, folder / f"{name}.safetensors", metadata={"by": "us"})
        (folder / f"{name}.toml").write_text(
            f'architecture = "bezoar:small-cnn"\nweights = "{name}.safetensors"\n'
            "input_size = [8, 8]\nmean = [0.3]\nstd = [0.35]\n"
        )
        halved = {
            f"module.{key}": value.half() if value.is_floating_point() else value
            for key, value in state.items()
        }
        torch.save({"epoch": 15, "state_dict": halved, "loss": [1.5]}, folder / f"{name}.pt")
    for name, images in (("clean", digits.clean), ("test", digits.test)):
        np.savez(folder / name, images=images.images.numpy(), labels=images.labels.numpy())
    return folder


@pytest.fixture
def cluster():
    """A Ray cluster with one node of one core, and a way to add more like it."""
    import_ray()
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 1, "object_store_memory": 100 << 20, "node_ip_address": "127.0.0.1"}
    cluster = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
    cluster.add = lambda: cluster.add_node(**node)
    yield cluster
    cluster.shutdown()
