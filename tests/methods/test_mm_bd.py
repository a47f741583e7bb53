import json
import math

import pytest
import torch
from torch import nn

from bezoar.classifier import Classifier
from bezoar.errors import InputError
from bezoar.methods import MMBD
from bezoar.methods.mm_bd import margins_of
from bezoar.pipeline import scan
from bezoar.records import to_json


def linear(weight, bias=0.0):
    """Logits are ``weight`` times the four pixels of an image."""
    head = nn.Linear(4, len(weight))
    head.weight.data, head.bias.data = weight, torch.full((len(weight),), bias)
    return Classifier(nn.Sequential(nn.Flatten(), head), mean=0.0, std=1.0, input_size=(2, 2))


def inspected(classifier, shape, **settings):
    return MMBD(**settings).inspect(classifier.copy().trace(shape), seed=0)


def test_margins_are_those_of_a_loop():
    logits = torch.randn((50, 7), generator=torch.Generator().manual_seed(0))
    classes = torch.arange(50) % 7
    margins = margins_of(logits, classes).tolist()
    for row, k, margin in zip(logits.tolist(), classes.tolist(), margins, strict=True):
        assert margin == pytest.approx(row[k] - max(row[:k] + row[k + 1 :]))


@pytest.mark.parametrize("settings", [{"steps": 60}, {"ascent": "gradient", "steps": 60}])
def test_in_a_linear_network_the_largest_margin_is_reached(settings):
    weight = torch.tensor([[3.0, 0, 0, 0], [0, 2.0, 0, 0], [0, 0, 1.0, 0], [0, 0, 0, 5.0]])
    evidence = inspected(linear(weight), (1, 2, 2), **settings)
    margins = torch.tensor(evidence.record["margins"]).amax(1)
    # Each class has a pixel of its own: at 1, with the others at 0.
    assert torch.allclose(margins, torch.tensor([3.0, 2.0, 1.0, 5.0]), atol=0.02)
    assert evidence.values == pytest.approx([1 / m for m in margins.tolist()])


def test_inputs_never_leave_the_image_range():
    seen = []

    class Watching(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(4, 4)

        def forward(self, images):
            seen.append((float(images.detach().min()), float(images.detach().max())))
            return self.head(100 * images.flatten(1))

    classifier = Classifier(Watching(), mean=0.0, std=1.0, input_size=(2, 2))
    for ascent in ("adam", "gradient"):
        MMBD(ascent=ascent, step_size=1.0).inspect(classifier)
    assert len(seen) > 60 and all(low >= 0 and high <= 1 for low, high in seen)


def test_a_class_that_no_input_leads_to_has_no_value():
    weight = torch.tensor([[3.0, 0, 0, 0], [0, 2.0, 0, 0], [0, 0, 1.0, 0], [-1.0, -1, -1, -1]])
    evidence = inspected(linear(weight), (1, 2, 2), steps=60)
    assert evidence.values[3] == math.inf and evidence.p_values[3] == 1.0
    assert evidence.record["margins"][3][0] == pytest.approx(0, abs=0.05)


def test_more_classes_than_one_batch_holds_are_climbed_like_a_few(digits, monkeypatch):
    whole = inspected(digits.planted, digits.clean.shape, steps=5)
    monkeypatch.setattr("bezoar.methods.mm_bd._BATCH", 16)
    in_parts = inspected(digits.planted, digits.clean.shape, steps=5)
    assert in_parts.values == pytest.approx(whole.values, rel=1e-4)


def test_it_finds_the_target_of_the_fixture_without_an_image_and_passes_the_twin(digits):
    planted, twin = (inspected(one, digits.clean.shape) for one in (digits.planted, digits.twin))
    assert planted.values.index(min(planted.values)) == digits.attack.target
    assert planted.p_values[digits.attack.target] <= 0.05
    assert min(twin.p_values) > 0.05
    assert planted.carried is None and planted.perturbations is None
    json.dumps(to_json(planted.record), allow_nan=False)


def test_the_published_ascent_names_the_same_class(digits):
    settings = MMBD.published()
    assert (settings.starts, settings.steps, settings.step_size) == (30, 300, 0.01)
    evidence = inspected(
        digits.planted, digits.clean.shape, starts=2, steps=100, ascent="gradient", step_size=0.01
    )
    assert evidence.values.index(min(evidence.values)) == digits.attack.target


def test_only_the_size_of_images_is_read(digits):
    classifier = Classifier(digits.planted.network, mean=0.3, std=0.35)
    with pytest.raises(InputError, match="input size is not known"):
        MMBD().inspect(classifier)
    with_images = MMBD(steps=3).inspect(classifier, digits.clean, seed=1)
    again = MMBD(steps=3).inspect(classifier, None, seed=1)
    assert with_images.values == again.values
    assert MMBD(steps=3).inspect(classifier, None, seed=2).values != again.values


@pytest.mark.parametrize("wrong", [{"starts": 0}, {"steps": 0}, {"step_size": 0.0}])
def test_settings_that_climb_nothing_are_refused(wrong):
    with pytest.raises(InputError, match="expected at least 1"):
        MMBD(**wrong)


def test_a_scan_tells_it_in_its_own_words(digits):
    finding = scan(digits.planted, digits.clean, witnesses=["mm-bd"])
    assert finding.suspects == (digits.attack.target,)
    assert finding.verdict.value == "suspicious"  # nothing is recovered that could prove it
    told = json.dumps(to_json(finding.record))
    assert "largest margin that an input gives the class" in told
    assert "corrected for having picked one or two of 10" in told
