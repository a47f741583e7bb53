"""Everything here runs on the pretended accelerator, in a process of its own (make accelerator)."""

from pathlib import Path

import pytest
import torch
from pretended import NAME, install, missing

HERE = Path(__file__).parent


@pytest.fixture(scope="session", autouse=True)
def device(request, tmp_path_factory):
    if any(HERE not in item.path.parents for item in request.session.items):
        pytest.skip("it would be the accelerator of the other tests, too; run make accelerator")
    reason = missing()
    if reason:
        pytest.skip(reason)
    install(tmp_path_factory.mktemp("pretended"))
    torch.set_num_threads(1)
    return torch.device(NAME, 0)


@pytest.fixture(scope="session")
def moved(device):
    """A classifier → a copy of it on the device."""

    def move(classifier):
        twin = classifier.copy()
        twin.network.to(device)
        return twin

    return move
