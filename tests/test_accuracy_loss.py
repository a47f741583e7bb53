"""How much accuracy a repair costs, read from few images."""

import pytest
import torch
from torch import nn

from bezoar.accuracy_loss import OFF, Baseline, accuracy_loss, at_confidence
from bezoar.classifier import Classifier
from bezoar.errors import InputError
from bezoar.images import ImageSet


class Table(nn.Module):
    """The logits that a table gives for the first pixel: image i has i there."""

    def __init__(self, rows):
        super().__init__()
        self.fc = nn.Linear(len(rows), rows.shape[1], bias=False)
        with torch.no_grad():
            self.fc.weight.copy_(rows.T)

    def forward(self, x):
        row = (x[:, 0, 0, 0] * 255).round().long().clamp(0, self.fc.in_features - 1)
        return self.fc(torch.nn.functional.one_hot(row, self.fc.in_features).float())


def classifier_of(rows):
    return Classifier(Table(torch.tensor(rows)), mean=0.0, std=1.0)


def images_of(labels):
    # One pixel: no shift, and a flip changes nothing.
    pixels = torch.arange(len(labels), dtype=torch.uint8).view(-1, 1, 1, 1)
    return ImageSet(pixels, torch.tensor(labels))


def plain(before, after, labels):
    """The formulas of the module, image by image, with the temperature by a fine grid."""
    p, q = (torch.tensor(rows, dtype=torch.double).softmax(1) for rows in (before, after))
    right = sum(int(p[i].argmax()) == y for i, y in enumerate(labels))
    grid = torch.logspace(-1, 1, 20001, dtype=torch.double)

    def matched(probabilities):
        logs = probabilities.log()
        means = torch.stack([(logs / t).softmax(1).amax(1).mean() for t in grid])
        t = grid[(means - (right + 1) / (len(labels) + 2)).abs().argmin()]
        return (logs / t).softmax(1)

    p1, q1 = matched(p), matched(q)
    n = len(labels)
    gaps = [float(p1[i, y] - q1[i, y]) for i, y in enumerate(labels)]
    e = sum(gaps) / n
    right = [int(p[i].argmax() == y) - int(q[i].argmax() == y) for i, y in enumerate(labels)]
    c = sum(right) / n
    of_c = (sum(r * r for r in right) / n + 1 / n) / n
    of_e = sum((g - e) ** 2 for g in gaps) / n / n + OFF**2
    return c, e, (c / of_c + e / of_e) / (1 / of_c + 1 / of_e), (1 / of_c + 1 / of_e) ** -0.5


def test_it_is_what_the_formulas_say():
    generator = torch.Generator().manual_seed(3)
    before = (2 * torch.randn(30, 4, generator=generator)).tolist()
    after = (torch.tensor(before) + torch.randn(30, 4, generator=generator)).tolist()
    labels = torch.tensor(before).argmax(1).tolist()
    labels[:4] = [(y + 1) % 4 for y in labels[:4]]
    found = accuracy_loss(classifier_of(before), classifier_of(after), images_of(labels))
    counted, expected, value, error = plain(before, after, labels)
    assert found.counted == pytest.approx(counted) and counted > 0
    assert found.expected == pytest.approx(expected, abs=1e-3)
    assert found.value == pytest.approx(value, abs=1e-3)
    assert found.error == pytest.approx(error, rel=1e-2)
    assert found.as_record()["value"] == found.value


def test_a_repair_that_is_only_surer_loses_nothing():
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(40, 5, generator=generator)
    labels = rows.argmax(1).tolist()
    labels[:8] = [0] * 8
    same = accuracy_loss(
        classifier_of(rows.tolist()), classifier_of((3 * rows).tolist()), images_of(labels)
    )
    assert same.counted == 0
    assert same.expected == pytest.approx(0, abs=1e-6) and same.value == pytest.approx(0, abs=1e-6)


def test_with_many_images_the_count_decides():
    generator = torch.Generator().manual_seed(1)
    rows = 4 * torch.randn(250, 3, generator=generator)
    worse = rows.clone()
    worse[:100] = -worse[:100]
    labels = rows.argmax(1).tolist()
    few, many = (
        accuracy_loss(
            classifier_of(rows.tolist()),
            classifier_of(worse.tolist()),
            images_of(labels).subset(torch.arange(0, 250, step)),
        )
        for step in (25, 1)
    )
    assert many.error < few.error
    weights = [(one.value - one.expected) / (one.counted - one.expected) for one in (few, many)]
    assert weights[0] < weights[1]
    assert many.value == pytest.approx(0.4, abs=0.05)


def test_what_no_temperature_reaches_is_approached():
    # nothing can be made of rows without a preference
    flat = torch.full((2, 3), 1 / 3, dtype=torch.double)
    assert at_confidence(flat, 0.9).allclose(flat)
    sharp = torch.tensor([[0.6, 0.3, 0.1]], dtype=torch.double)
    assert float(at_confidence(sharp, 0.8).amax()) == pytest.approx(0.8, abs=1e-6)


def test_a_lost_backdoor_costs_no_accuracy_and_a_ruin_costs_all(digits):
    held_out = digits.clean.sample(100, seed=0)
    same = accuracy_loss(digits.planted, digits.planted.copy(), held_out)
    assert same.counted == 0 and same.value == pytest.approx(0, abs=1e-6) and same.error < OFF
    ruined = digits.planted.copy()
    with torch.no_grad():
        ruined.network.fc.weight.mul_(-1)
    assert accuracy_loss(digits.planted, ruined, held_out).value > 0.7
    with torch.no_grad():
        ruined.network.fc.weight.mul_(0)
    assert accuracy_loss(digits.planted, ruined, held_out).value > 0.5
    with pytest.raises(InputError, match="label"):
        accuracy_loss(digits.planted, ruined, ImageSet(held_out.images))


def test_the_original_is_asked_once_for_all_repairs(digits, monkeypatch):
    held_out = digits.clean.sample(100, seed=0)
    alone = [accuracy_loss(digits.planted, c, held_out) for c in (digits.planted, digits.twin)]
    original, asked = digits.planted.copy(), []
    run = Classifier.__call__
    monkeypatch.setattr(
        Classifier, "__call__", lambda self, batch: asked.append(self) or run(self, batch)
    )
    baseline = Baseline(original, held_out)
    assert set(asked) == {original}
    asked.clear()
    assert [baseline.loss(c) for c in (digits.planted, digits.twin)] == alone
    assert original not in asked and set(asked) == {digits.planted, digits.twin}


def test_a_network_that_is_sure_of_nothing_hides_no_loss():
    generator = torch.Generator().manual_seed(2)
    rows = torch.randn(200, 10, generator=generator)
    labels = rows.argmax(1).tolist()
    labels[:40] = [0] * 40
    worse = rows.clone()
    worse[100:160] = worse[100:160].roll(1, 1)
    faint = [classifier_of((0.01 * r).tolist()) for r in (rows, worse)]
    found = accuracy_loss(*faint, images_of(labels))
    assert found.counted == pytest.approx(0.3, abs=0.02)
    assert found.expected == pytest.approx(found.counted, abs=0.1)
