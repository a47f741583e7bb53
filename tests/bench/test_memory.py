"""The peak of a block, apart from what was before it."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from bezoar.bench import memory
from bezoar.bench.memory import peak_memory

CPU = torch.device("cpu")


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux resets the peak of a process")
def test_the_peak_is_that_of_the_block_and_not_of_earlier_work():
    large = np.ones(300 << 20, dtype=np.uint8)
    large.fill(3)
    del large
    with peak_memory(CPU) as small:
        pass
    with peak_memory(CPU) as peak:
        np.ones(200 << 20, dtype=np.uint8).fill(3)
    assert peak.of == "process"
    assert 180 << 20 <= peak.bytes - small.bytes <= 260 << 20


def test_where_the_peak_cannot_be_reset_it_says_so(monkeypatch):
    monkeypatch.setattr(memory, "_CLEAR", Path("/nowhere/clear_refs"))
    monkeypatch.setattr(memory, "_STATUS", Path("/nowhere/status"))
    with peak_memory(CPU) as peak:
        pass
    assert peak.of == "process so far"
    assert peak.bytes > 10 << 20
