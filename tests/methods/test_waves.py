"""Which plane waves there are, and whom they carry where."""

import math

import pytest
import torch
from torch import nn

from bezoar.methods.waves import carried_by_waves, periods_within, wave


def test_every_wave_of_the_ellipse_is_there_once():
    for height, width, most in ((32, 32, 8), (16, 32, 8), (64, 48, 5), (8, 8, 8)):
        rows, columns = min(most, height // 4), min(most, width // 4)
        found = periods_within(height, width, most)
        inside = {
            (u, v)
            for u in range(-rows, rows + 1)
            for v in range(-columns, columns + 1)
            if (u, v) != (0, 0) and (u / rows) ** 2 + (v / columns) ** 2 <= 1 + 1e-9
        }
        assert len(set(found)) == len(found)
        assert {*found, *((-u, -v) for u, v in found)} == inside
        assert not {*found} & {(-u, -v) for u, v in found}
    assert periods_within(3, 32, 8) == [(0, v) for v in range(1, 9)]
    assert periods_within(3, 3, 8) == []


def test_a_wave_is_that_of_a_loop():
    found = wave(12, 8, 2, -1)
    for phase in range(4):
        for row in range(12):
            for column in range(8):
                angle = 2 * math.pi * (2 * row / 12 - column / 8 + phase / 4)
                assert float(found[phase, row, column]) == pytest.approx(math.sin(angle), abs=1e-6)


def test_what_waves_carry_is_what_a_loop_counts():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 4))
    images = torch.rand(11, 3, 8, 8)
    counted = torch.rand(11, 4) < 0.6
    periods = [(0, 1), (1, -1), (2, 0)]
    found = carried_by_waves(network, images, counted, periods, 0.3)
    slow = torch.zeros(3, 4, 4, dtype=torch.int64)
    for f, (u, v) in enumerate(periods):
        for i in range(11):
            shown = (images[i] + 0.3 * wave(8, 8, u, v)[i % 4]).clamp(0, 1)
            answer = int(network(shown[None]).argmax())
            slow[f, i % 4, answer] += int(counted[i, answer])
    assert torch.equal(found, slow) and int(found.sum()) > 0
