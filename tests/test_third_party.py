"""Strangers' checkpoints: what the scan must say about them, and what the repair must reach."""

import sys
from pathlib import Path

import pytest

from bezoar.attacks import StoredPattern
from bezoar.evaluation import evaluate
from bezoar.pipeline import clean, scan

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))


@pytest.fixture(scope="module")
def third_party(data_folder):
    """Loads a checkpoint with 500 clean images of its test file and the rest for measuring."""
    from third_party import load, test_images

    images = {}

    def get(name, seed=0):
        loaded, facts = load(data_folder / "models" / name)
        if facts["dataset"] not in images:
            images[facts["dataset"]] = test_images(data_folder, facts)
        everything = images[facts["dataset"]]
        part, rest = everything.split(500 / len(everything), seed=seed)
        return loaded.classifier, part, rest, facts

    return get


@pytest.mark.parametrize("seed", [0, 1])
def test_the_backdoored_residual_network_is_flagged_at_its_target(third_party, seed):
    classifier, part, _, facts = third_party("nad_cifar10_grid", seed)
    finding = scan(classifier, part, seed=seed)
    assert finding.ranking[0] == facts["attack"]["target"]
    assert finding.verdict in ("backdoor found", "suspicious")


@pytest.mark.parametrize("name", ["akamaster_cifar10_resnet20_clean", "aisb_cifar10_clean"])
def test_networks_without_a_backdoor_are_not_flagged(third_party, name):
    classifier, part, _, _ = third_party(name)
    assert scan(classifier, part, seed=0).verdict == "nothing found"


@pytest.mark.slow
def test_tac_removes_the_residual_networks_backdoor(third_party, data_folder):
    classifier, part, rest, facts = third_party("nad_cifar10_grid")
    attack = StoredPattern(
        file=str(data_folder / "models" / "nad_cifar10_grid" / "trigger.npy"),
        target=facts["attack"]["target"],
    )
    repair = clean(classifier, part, method="tac", seed=0)
    before, after = evaluate(classifier, rest, attack), evaluate(repair.classifier, rest, attack)
    assert before.asr > 0.99
    assert after.asr <= 0.1
    assert before.acc - after.acc <= 0.05
