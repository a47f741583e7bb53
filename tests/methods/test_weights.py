import json
import math

import pytest
import torch
from torch import nn

from bezoar.classifier import Classifier
from bezoar.errors import InputError
from bezoar.methods import Method, Weights
from bezoar.methods.weights import lifts_above_mean
from bezoar.pipeline import scan
from bezoar.records import to_json


def linear(weight):
    """A classifier whose last layer has these rows, over 2x2 images."""
    head = nn.Linear(weight.shape[1], len(weight))
    head.weight.data = weight
    return Classifier(nn.Sequential(nn.Flatten(), head), mean=0.0, std=1.0, input_size=(2, 2))


def test_a_lift_is_the_most_that_features_in_the_unit_box_can_do():
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn((5, 6), generator=generator, dtype=torch.float64)
    corners = torch.cartesian_prod(*[torch.tensor([0.0, 1.0], dtype=torch.float64)] * 6)
    logits = corners @ weight.T
    slow = (logits - logits.mean(1, keepdim=True)).amax(0)
    assert torch.allclose(lifts_above_mean(weight), slow)


def test_what_all_rows_share_moves_no_lift():
    weight = torch.randn((5, 6), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    shared = torch.arange(6, dtype=torch.float64)
    assert torch.allclose(lifts_above_mean(weight + shared), lifts_above_mean(weight))


def test_the_values_are_the_reciprocals_and_a_class_below_all_others_has_none():
    weight = torch.tensor([[4.0, 0, 0, 0], [0, 2.0, 0, 0], [0, 0, 2.0, 0], [-1.0, -1, -1, 0]])
    evidence = Weights().inspect(linear(weight))
    assert evidence.values[:3] == pytest.approx([1 / 3.25, 1 / 1.75, 1 / 1.75])
    assert evidence.values[3] == math.inf
    assert evidence.record["lifts"] == pytest.approx([3.25, 1.75, 1.75, 0.0])
    assert evidence.carried is None and evidence.perturbations is None
    json.dumps(to_json(evidence.record), allow_nan=False)


def test_a_row_that_outweighs_the_others_is_flagged_and_equal_ones_are_not():
    weight = torch.randn((10, 4), generator=torch.Generator().manual_seed(2))
    assert min(Weights().inspect(linear(weight.clone())).p_values) > 0.05
    weight[7] += 6
    evidence = Weights().inspect(linear(weight))
    assert evidence.values.index(min(evidence.values)) == 7
    assert evidence.p_values[7] < 0.001
    assert all(p > 0.05 for k, p in enumerate(evidence.p_values) if k != 7)
    flat = Weights().inspect(linear(torch.ones((10, 4))))
    assert set(flat.p_values) == {1.0}


def test_it_finds_the_target_of_the_fixture_without_an_image_and_passes_the_twin(digits):
    shape = digits.clean.shape
    planted, twin = (
        Weights().inspect(one.copy().trace(shape)) for one in (digits.planted, digits.twin)
    )
    assert planted.values.index(min(planted.values)) == digits.attack.target
    assert planted.p_values[digits.attack.target] <= 0.05
    assert min(twin.p_values) > 0.05


def test_images_change_nothing_and_give_the_size_where_it_is_unknown(digits):
    untraced = Classifier(digits.planted.network, mean=0.3, std=0.35)
    with pytest.raises(InputError, match="input size is not known"):
        Weights().inspect(untraced)
    with_images = Weights().inspect(untraced, digits.clean, seed=4)
    alone = Weights().inspect(digits.planted.copy().trace(digits.clean.shape))
    assert with_images.values == alone.values and with_images.p_values == alone.p_values


def test_it_removes_nothing_and_says_so(digits):
    assert Weights.remove is Method.remove
    with pytest.raises(InputError, match="weights looks for the target class and removes nothing"):
        Weights().remove(digits.planted, digits.clean)


def test_a_scan_tells_it_in_its_own_words(digits):
    finding = scan(digits.planted, digits.clean, witnesses=["weights"])
    assert finding.suspects == (digits.attack.target,)
    assert finding.verdict.value == "suspicious"  # nothing is recovered that could prove it
    told = json.dumps(to_json(finding.record))
    assert "lifts the class by 1 above the mean class" in told
    assert "standard deviations beyond the other classes" in told
    assert "corrected for having picked one or two of 10" in told
