"""Reading and writing model files safely.

``read_weights`` reads a file without executing anything from it, ``facts`` tells what is in it,
``load_model`` builds the network that a description names and fills it, ``check_fit`` sees whether
the weights are those of the network, ``write_weights`` writes other weights in the same form,
``write_purified`` a network behind a purifier, ``write_exported`` a program that runs without the
network's source.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import nn

from bezoar.classifier import Classifier
from bezoar.device import resolve_device
from bezoar.errors import InputError
from bezoar.intake.description import (
    ModelDescription,
    broadcast,
    describe,
    read_description,
    read_fields,
)
from bezoar.intake.exporting import check_exportable, write_exported
from bezoar.intake.facts import WeightsFacts, facts
from bezoar.intake.matching import load_into
from bezoar.intake.purified_files import check_purified_writable, source_beside, write_purified
from bezoar.intake.weights import WeightsFile, check_finite, read_weights
from bezoar.intake.writing import check_ending, check_writable, write_weights
from bezoar.networks.architectures import build_network, runs_a_file
from bezoar.networks.purified import Purified, fronted

__all__ = [
    "LoadedModel",
    "ModelDescription",
    "WeightsFacts",
    "WeightsFile",
    "check_ending",
    "check_exportable",
    "check_finite",
    "check_fit",
    "check_purified_writable",
    "check_writable",
    "facts",
    "load_into",
    "load_model",
    "read_description",
    "read_weights",
    "source_beside",
    "write_exported",
    "write_purified",
    "write_weights",
]


MANY = 10_000  # classes or channels, from which on the shapes are compared before memory is taken
_NOT_RUN = (
    "Whether the weights fit was not looked at: that would run {}, which the description names; "
    "give the architecture yourself to have it run."
)


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A model ready to run.

    Attributes:
        classifier: the network in eval mode with its normalisation.
        weights: the file as it was read; ``write_weights`` needs it.
        description: complete, with the number of channels and one mean and std for each.
        notices: full sentences on choices that were made while loading.
    """

    classifier: Classifier
    weights: WeightsFile
    description: ModelDescription
    notices: tuple[str, ...] = ()

    def as_record(self) -> dict[str, Any]:
        """Where it came from, as records hold it."""
        return {
            "file": str(self.weights.path),
            "sha256": self.weights.sha256,
            "container": self.weights.container,
            "architecture": self.description.architecture,
        }


def load_model(
    source: ModelDescription | str | Path,
    *,
    device: str | torch.device | None = None,
    **overrides: Any,
) -> LoadedModel:
    """Loads a model from its description, or from a file of weights and the same facts.

    The number of classes and channels is read off the weights and passed to the architecture
    function where it takes them and ``arguments`` does not say them. A ``file.py:function``
    architecture runs that file's code, which is the caller's own choice; nothing from the file of
    weights is ever executed.

    Args:
        source: a description, a ``.toml`` file with one, or a file of weights.
        device: where the network goes; by default the accelerator, else the CPU.
        **overrides: fields of ``ModelDescription`` that replace those of the source; None is "not
            given".

    Raises:
        UnsafeFileError: the file of weights needs code to be executed.
        InputError: anything else that does not fit; the message says what.
    """
    description, where = _described(source, overrides)
    target = device if isinstance(device, torch.device) else resolve_device(device)
    weights = read_weights(description.weights, entry=description.entry)
    check_finite(weights)
    network, description, notices = _filled(weights, description, where)
    network.to(target).eval()
    classifier = Classifier(
        network,
        mean=description.mean,
        std=description.std,
        classes=description.classes,
        input_size=description.height_and_width,
    )
    return LoadedModel(classifier, weights, description, notices)


def check_fit(
    source: ModelDescription | str | Path, **overrides: Any
) -> tuple[WeightsFile, ModelDescription, tuple[str, ...]]:
    """Reads a model whose weights fit its architecture, without what only running it needs.

    So ``mean`` and ``std`` may be missing, and weights that are not finite numbers are taken. A
    ``file.py:function`` that only a ``.toml`` names is not run, since both may come from a
    stranger: whether the weights fit it stays open, and a notice says so. The rest is as for
    ``load_model``.

    Returns:
        The file of weights, the description, and full sentences on choices that were made.
    """
    description, where = _described(source, overrides, to_run=False)
    weights = read_weights(description.weights, entry=description.entry)
    if runs_a_file(description.architecture) and overrides.get("architecture") is None:
        return weights, description, (*weights.notices, _NOT_RUN.format(description.architecture))
    _, description, notices = _filled(weights, description, where)
    return weights, description, notices


def _filled(
    weights: WeightsFile, description: ModelDescription, where: str
) -> tuple[nn.Module, ModelDescription, tuple[str, ...]]:
    """The network with its weights, the complete description, and notices."""
    known = facts(weights)
    channels = description.channels or known.input_channels
    given = max(len(description.mean), len(description.std))
    # Some networks rearrange pixels into channels before their first convolution.
    if channels is None or (description.channels is None and channels > 4 and given > 1):
        channels = given or None
    if channels is not None:
        description = msgspec.structs.replace(
            description,
            channels=channels,
            mean=broadcast(description.mean, channels, "mean", where),
            std=broadcast(description.std, channels, "std", where),
        )
    num_classes = description.arguments.get("num_classes", known.num_classes)
    if description.classes is not None and num_classes not in (None, len(description.classes)):
        raise InputError(
            f"{where} names {len(description.classes)} classes, and the network in "
            f"{weights.path} has {num_classes}; name every class once, in the order of the logits"
        )

    def build() -> nn.Module:
        network = build_network(
            description.architecture,
            description.arguments,
            num_classes=known.num_classes,
            channels=channels,
        )
        return fronted(network, weights.tensors) if known.purifiers else network

    if max(known.num_classes or 0, channels or 0) > MANY:
        # A thin tensor in a small file can claim millions of classes. Without memory for its values
        # the network shows whether the file has what it needs.
        with torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that nothing is copied
            load_into(build(), weights)
    network = build()
    if isinstance(network, Purified):
        _check_same_images(network, description, where)
    return network, description, weights.notices + load_into(network, weights)


def _check_same_images(network: Purified, description: ModelDescription, where: str) -> None:
    """A purifier gets the wrong pixels where the images are not normalised as it was made for."""
    for name, given in (("mean", description.mean), ("std", description.std)):
        if not given:
            continue
        own = network.get_buffer(name)
        same = len(own) in (1, len(given))
        if not same or not torch.allclose(own, torch.tensor(given), rtol=1e-4, atol=1e-6):
            raise InputError(
                f"{where} gives {given} as {name}, and the purifier in {description.weights} was "
                f"made for {tuple(own.tolist())}; give that"
            )


def _described(
    source: ModelDescription | str | Path, overrides: dict[str, Any], *, to_run: bool = True
) -> tuple[ModelDescription, str]:
    given = {name: value for name, value in overrides.items() if value is not None}
    if isinstance(source, ModelDescription):
        fields, where = msgspec.structs.asdict(source), "the model description"
    elif Path(source).suffix.lower() == ".toml":
        fields, where = read_fields(source), str(source)
    elif not Path(source).is_file():
        what = f"{source} is a folder" if Path(source).is_dir() else f"there is no file {source}"
        raise InputError(f"{what}; give a model.toml or a file with weights")
    else:
        fields, where = {"weights": str(source)}, f"the description of {source}"
    return describe({**fields, **given}, where, to_run=to_run), where
