"""Exporting a network with ``torch.export``: a file that runs without the network's source.

``torch.export.load(FILE).module()`` takes what the network took, normalised images, in batches of
any size. It is traced on the CPU, in eval mode, on a copy, so the network stays as it is.
"""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

from bezoar.errors import InputError
from bezoar.intake.pickle_scan import first_line
from bezoar.intake.weights import WeightsFile
from bezoar.intake.writing import check_writable, save

SUFFIX = ".pt2"


def exported(network: nn.Module, shape: tuple[int, int, int]) -> torch.export.ExportedProgram:
    """The program of a network for images of ``shape`` (c, h, w), in batches of any size.

    Raises:
        InputError: ``torch.export`` cannot follow the network; the message has its reason.
    """
    twin = copy.deepcopy(network).to("cpu")
    twin.eval()
    images = torch.zeros(2, *shape)  # torch.export takes a batch of 1 for a size that never changes
    batch = torch.export.Dim("batch", min=1)
    try:
        with torch.no_grad(), _torch_silenced():
            return torch.export.export(twin, (images,), dynamic_shapes=({0: batch},), strict=False)
    except Exception as error:
        reason = first_line(error).partition(" For more information")[0]
        raise InputError(
            f"the network cannot be exported for batches of any size ({reason}); do without "
            "--export, or give a network whose forward has no Python that depends on the values of "
            "the images or on the size of the batch (x.shape[0] is followed, len(x) is not)"
        ) from error


@contextlib.contextmanager
def _torch_silenced() -> Iterator[None]:
    """What torch logs and prints here is about its own insides; the error says what counts."""
    level = logging.root.manager.disable
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(level)


def check_exportable(
    network: nn.Module, shape: tuple[int, int, int], out: str | Path, source: WeightsFile
) -> None:
    """Finds out before expensive work whether ``write_exported`` could export such a network.

    Raises:
        InputError: the network cannot be exported, ``out`` does not end in ``.pt2``, or it cannot
            be written.
    """
    if Path(out).suffix.lower() != SUFFIX:
        raise InputError(f"{out} is to hold an exported network; give a name that ends in {SUFFIX}")
    check_writable(out, source)
    exported(network, shape)


def write_exported(network: nn.Module, shape: tuple[int, int, int], out: str | Path) -> None:
    """Exports a network to the file ``out``, which appears complete or not at all.

    Raises:
        InputError: the network cannot be exported, or ``out`` cannot be written.
    """
    program = exported(network, shape)
    save(out, lambda stream: torch.export.save(program, stream))
