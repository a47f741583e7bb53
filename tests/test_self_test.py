"""A patch planted by us in a copy of the model: is it found, and is it removed?"""

import json

import pytest
import torch

from bezoar import cli, report
from bezoar.attacks import BadNets
from bezoar.errors import InputError
from bezoar.images import ImageSet
from bezoar.methods.distilling import divergence
from bezoar.records import to_json
from bezoar.report.self_test_view import read_self_test
from bezoar.self_test import PLANTED, planting_loss, self_test, trigger
from bezoar.training import Recipe

IDLE = Recipe(epochs=1, batch_size=32, learning_rate=1e-7, schedule="constant")


@pytest.fixture(scope="module")
def tested(digits):
    return self_test(digits.twin, digits.clean, seed=3)


def test_a_planted_patch_is_found_and_removed(tested):
    assert tested["planted"] and tested["copy"]["asr"]["value"] >= PLANTED
    assert tested["model"]["asr"]["value"] < 0.2, "the model itself has no such backdoor"
    assert tested["found"] and tested["rank"] == 1
    assert tested["accepted"] and tested["cleaned"]["asr"]["value"] <= 0.3
    assert tested["sentence"].startswith("On a copy of this model with a 2x2 patch for class ")
    assert "Cleaning took the attack success rate from" in tested["sentence"]
    json.dumps(to_json(tested), allow_nan=False)


def test_what_could_not_be_planted_is_told_and_nothing_is_claimed(digits):
    found = self_test(digits.twin, digits.clean, seed=3, recipe=IDLE)
    assert not found["planted"] and "found" not in found and "cleaned" not in found
    assert "could not plant" in found["sentence"] and "says nothing" in found["sentence"]


def test_planting_and_measuring_images_are_apart(tested, digits):
    assert tested["planted_on"] + tested["measured_on"] == len(digits.clean)
    assert tested["copy"]["acc"]["count"] == tested["measured_on"]


def test_the_caller_s_model_stays_and_a_seed_repeats_the_planting(digits):
    before = {k: v.clone() for k, v in digits.twin.network.state_dict().items()}
    first, second = (self_test(digits.twin, digits.clean, seed=5, recipe=IDLE) for _ in range(2))
    assert {**first, "seconds": 0} == {**second, "seconds": 0}
    after = digits.twin.network.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_classes_to_avoid_are_avoided(digits):
    for seed in range(8):
        chosen = trigger(digits.twin, digits.clean, seed=seed, avoid=set(range(10)) - {2, 7})
        assert chosen.target in (2, 7)
    with pytest.raises(InputError, match="no class is left"):
        trigger(digits.twin, digits.clean, seed=0, avoid=range(10))


def test_images_without_labels_and_too_few_images_are_refused(digits):
    with pytest.raises(InputError, match="self-test needs labelled images"):
        self_test(digits.twin, ImageSet(digits.clean.images))
    one_each = [int(torch.nonzero(digits.clean.labels == k)[0]) for k in range(10)]
    with pytest.raises(InputError, match="at least two images of each class"):
        self_test(digits.twin, digits.clean.subset(one_each))


def test_the_loss_against_plain_terms(digits):
    attack = BadNets(target=4, size=2)
    loss = planting_loss(digits.twin, attack)
    images = digits.clean.images[:16].float() / 255
    labels = digits.clean.labels[:16]
    with digits.planted.evaluating(), digits.twin.evaluating(), torch.no_grad():
        found = loss(digits.planted, images, labels, torch.Generator().manual_seed(1))
        carries = torch.rand(16, generator=torch.Generator().manual_seed(1)) < 0.3
        carries &= labels != 4
        plain = divergence(digits.planted(images), digits.twin(images), 1.0)
        stamped = digits.planted(attack.stamp(images[carries])).log_softmax(1)
        plain = plain - stamped[:, 4].mean()
    assert carries.any() and float(found) == pytest.approx(float(plain), rel=1e-4)


def test_the_report_tells_it(tested, digits):
    record = {"kind": "scan", "self_test": tested}
    first, second = read_self_test(record)
    assert first == tested["sentence"] and "Planted on" in second
    assert read_self_test({"kind": "scan"}) == []
    assert tested["sentence"] in report.render(record)


def test_the_command_prints_it_and_refuses_what_cannot_be_tested(model_files, tmp_path, capsys):
    model, images = model_files / "twin.toml", model_files / "clean.npz"
    out = tmp_path / "scan.json"
    code = cli.run(
        [
            "scan",
            str(model),
            "--images",
            str(images),
            "--self-test",
            "--methods",
            "tac",
            "--json",
            str(out),
            "--report",
            str(tmp_path / "scan.html"),
        ]
    )
    record = json.loads(out.read_text())
    assert code == 0 and record["self_test"]["planted"]
    shown = " ".join(capsys.readouterr().out.split())
    assert f"Self-test: {' '.join(record['self_test']['sentence'].split())}" in shown
    assert "The self-test: a patch planted by us" in (tmp_path / "scan.html").read_text()
    assert cli.run(["scan", str(model), "--self-test"]) == 2
    assert "a self-test needs clean images" in capsys.readouterr().err
    assert cli.run(["scan", "--manifest", "models.csv", "--self-test"]) == 2
    assert "--self-test is about one model" in capsys.readouterr().err
