"""Where a training stands, its moving average, and the file from which it goes on after a stop."""

from __future__ import annotations

import hashlib
import io
import json
import pickle
from pathlib import Path
from typing import Any, Protocol

import msgspec
import torch
from torch import Tensor, nn

from bezoar.errors import InputError
from bezoar.images import ImageSet
from bezoar.network_tensors import saved_tensors
from bezoar.recipe import History
from bezoar.records import write_bytes


class Stateful(Protocol):
    """Whatever keeps something from step to step."""

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values."""

    def load_state_dict(self, state: dict[str, Any]) -> Any:
        """Takes them back."""


class TrainingState:
    """Everything that the next step of a training depends on.

    Args:
        network: that is trained.
        optimizer: its optimizer.
        generator: of the order and the augmentation.
        hook: that has a state of its own.
        ema: share of the old value in the moving average of weights and statistics; 0 keeps none.
    """

    def __init__(
        self,
        network: nn.Module,
        optimizer: torch.optim.Optimizer,
        generator: torch.Generator,
        hook: Stateful,
        ema: float,
    ) -> None:
        self.network, self.optimizer = network, optimizer
        self.generator, self.hook, self.ema = generator, hook, ema
        self.steps = 0
        self.history = History()
        self.average = {n: t.clone() for n, t in _floats(network).items()} if ema else {}

    @property
    def epochs(self) -> int:
        """How many are finished."""
        return len(self.history.loss)

    def count_step(self) -> None:
        """Counts a step of the optimizer and moves the average.

        In the first steps the average forgets faster, ``min(ema, (1 + t) / (10 + t))``, so that the
        random start leaves no trace.
        """
        self.steps += 1
        if self.average:
            share = 1 - min(self.ema, (1 + self.steps) / (10 + self.steps))
            now = _floats(self.network)
            torch._foreach_lerp_(list(self.average.values()), [now[n] for n in self.average], share)

    def take_average(self) -> None:
        """Puts the average, if there is one, into the network."""
        now = _floats(self.network)
        for name, value in self.average.items():
            now[name].copy_(value)

    def state_dict(self) -> dict[str, Any]:
        """All of it in tensors and plain values."""
        return {
            "steps": self.steps,
            "history": msgspec.to_builtins(self.history),
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": self.average,
            "hook": self.hook.state_dict(),
            "generator": self.generator.get_state(),
            "global generators": [torch.get_rng_state(), *_accelerator_states(self.network)],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes back to where ``state_dict`` was called."""
        self.steps = state["steps"]
        self.history = msgspec.convert(state["history"], History)
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        for name, value in self.average.items():
            value.copy_(state["average"][name])
        self.hook.load_state_dict(state["hook"])
        self.generator.set_state(state["generator"])
        own, *others = state["global generators"]
        torch.set_rng_state(own)
        if others:
            torch.cuda.set_rng_state(others[0])


class Checkpoint:
    """The file of an unfinished training; where it is there, ``state`` goes on from it.

    Args:
        path: of the file; None keeps none.
        state: of the training.
        images: the training images; their hash tells this training from others.
        facts: what else does.

    Raises:
        InputError: the file is of another training, or broken.
    """

    def __init__(
        self, path: Path | None, state: TrainingState, images: ImageSet, facts: dict[str, Any]
    ) -> None:
        self.path, self.state, self.fingerprint = path, state, ""
        if path is None:
            return
        plain = json.dumps(
            msgspec.to_builtins(
                {"facts": facts, "images": images.sha256(), "network": _outline(state.network)}
            ),
            sort_keys=True,
        )
        self.fingerprint = hashlib.sha256(plain.encode()).hexdigest()
        if path.exists():
            self._read(path)

    def _read(self, path: Path) -> None:
        broken = (OSError, RuntimeError, EOFError, KeyError, TypeError, pickle.UnpicklingError)
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
            fingerprint, state = content["fingerprint"], content["state"]
        except broken as error:
            raise InputError(
                f"the checkpoint {path} cannot be read ({type(error).__name__}); delete it to "
                "start the training anew"
            ) from error
        if fingerprint != self.fingerprint:
            raise InputError(
                f"the checkpoint {path} belongs to a training with other images, network, attack, "
                "recipe or seed; delete it or give another name"
            )
        self.state.load_state_dict(state)

    def write(self) -> None:
        """Renews the file, beside and renamed."""
        if self.path is not None:
            buffer = io.BytesIO()
            content = {"fingerprint": self.fingerprint, "state": self.state.state_dict()}
            torch.save(content, buffer)
            write_bytes(self.path, buffer.getvalue())


def _outline(network: nn.Module) -> dict[str, Any]:
    """What tells two networks apart before their weights do: modules, plain settings and shapes.

    Shapes alone do not: a transformer has the same ones with other heads.
    """
    modules = {
        name: {
            "type": type(module).__qualname__,
            **{k: v for k, v in vars(module).items() if isinstance(v, bool | int | float | str)},
            "training": None,  # a mode and no setting
        }
        for name, module in network.named_modules()
    }
    shapes = {name: list(t.shape) for name, t in saved_tensors(network).items()}
    return {"modules": modules, "shapes": shapes}


def _floats(network: nn.Module) -> dict[str, Tensor]:
    return {n: t for n, t in saved_tensors(network).items() if t.is_floating_point()}


def _accelerator_states(network: nn.Module) -> list[Tensor]:
    parameter = next(network.parameters(), None)
    on_cuda = parameter is not None and parameter.device.type == "cuda"
    return [torch.cuda.get_rng_state(parameter.device)] if parameter is not None and on_cuda else []
