"""A trained network as every part of bezoar takes it: a ``Classifier``.

Images go in as ``float32`` NCHW in [0, 1]; normalisation happens inside, so triggers and
perturbations are always in pixel space. The final linear layer is found by tracing one forward
pass at the level of torch functions, so it does not matter through which module it is called.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from bezoar.device import evaluation_batch, has_channels_last, to_fast_layout
from bezoar.errors import InputError
from bezoar.images import ImageSet
from bezoar.network_tensors import named_tensors
from bezoar.splitting import Split, deepest_map, split_at
from bezoar.tracing import HeadInput, LinearCall, LinearCalls

BATCH = 512  # images in one evaluation batch: fills the processors, stays small in memory


@dataclass(frozen=True)
class Head:
    """The final linear layer: ``logits = features @ weight.T + bias``.

    Attributes:
        weight: shape (classes, d), float32, detached.
        bias: shape (classes,), float32, detached; zeros where the layer has none.
        name: the weight's name in the network's state dict.
    """

    weight: Tensor
    bias: Tensor
    name: str

    def __iter__(self) -> Iterator[Tensor]:
        """Unpacks as ``weight, bias = classifier.head``."""
        return iter((self.weight, self.bias))


class Classifier:
    """Wraps a network that maps images to logits, without ever changing it.

    Args:
        network: any ``nn.Module``; it takes normalised images (n, channels, height, width). Of an
            ``nn.DataParallel`` its ``module`` is taken.
        mean: subtracted from images in [0, 1]; one number, or one for each channel.
        std: then divided by; the same.
        classes: names in the order of the logits; by default the indices.
        input_size: height and width where the network takes only one size.

    Raises:
        InputError: the normalisation is no set of finite numbers with a positive std; or the
            network holds TorchScript, or weights that were made in inference mode.

    >>> network = nn.Sequential(nn.Flatten(), nn.Linear(12, 5))
    >>> classifier = Classifier(network, mean=0.5, std=0.25, input_size=(2, 2))
    >>> classifier.trace((3, 2, 2)).num_classes
    5
    >>> weight, bias = classifier.head
    >>> classifier.features(torch.rand(7, 3, 2, 2)).shape, weight.shape
    (torch.Size([7, 12]), torch.Size([5, 12]))
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        mean: float | Sequence[float],
        std: float | Sequence[float],
        classes: Sequence[str] | None = None,
        input_size: tuple[int, int] | None = None,
    ) -> None:
        if not isinstance(network, nn.Module):
            raise InputError(
                f"the network is a {type(network).__name__}; expected a torch.nn.Module"
            )
        _check_network(network)
        # Copies, and functions of other weights, are of one device's network.
        self.network = network.module if isinstance(network, nn.DataParallel) else network
        self.mean = _as_channels(mean, "mean")
        self.std = _as_channels(std, "std")
        if min(self.std) <= 0:
            raise InputError(f"std is {self.std}; every value must be greater than 0")
        if len(self.mean) > 1 and len(self.std) > 1 and len(self.mean) != len(self.std):
            raise InputError(f"mean has {len(self.mean)} values and std {len(self.std)}")
        self.input_size = input_size
        self._classes = tuple(classes) if classes is not None else None
        self._head_name: str | None = None
        self._head_bias: str | None = None
        self._head_is_averaged = False
        self._num_classes: int | None = None
        self._input_shape: tuple[int, int, int] | None = None
        self._takes_channels_last = False

    def __repr__(self) -> str:
        return f"Classifier({type(self.network).__name__}, mean={self.mean}, std={self.std})"

    # -- running the network -------------------------------------------------------------------

    def __call__(self, images: Tensor) -> Tensor:
        """Logits (n, classes) for images (n, c, h, w) in [0, 1], in the network's current mode."""
        return self.logits_of(self.network(self.normalise(images)))

    def logits_of(self, output: Any) -> Tensor:
        """What the network's output says of the classes.

        In training some networks give auxiliary logits beside their own, which come first.
        """
        if isinstance(output, tuple) and self.network.training:
            output = output[0]
        return output  # type: ignore[no-any-return]  # ``trace`` refuses what is no tensor

    def normalise(self, images: Tensor) -> Tensor:
        """What the network itself sees: ``(images - mean) / std``, in a layout that it takes."""
        mean, std = (images.new_tensor(value).view(1, -1, 1, 1) for value in (self.mean, self.std))
        seen = (images - mean) / std
        if self._takes_channels_last:
            return seen
        return seen.flatten().view(seen.shape)  # grey images pass as contiguous with any strides

    @property
    def device(self) -> torch.device:
        """Where the network's first parameter lies."""
        for tensor in self.network.parameters():
            return tensor.device
        return torch.device("cpu")

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[None]:
        """Eval mode inside the block; each module's own training flag is restored after it."""
        flags = [(module, module.training) for module in self.network.modules()]
        self.network.eval()
        try:
            yield
        finally:
            for module, training in flags:
                module.training = training

    def logits(self, images: ImageSet, *, batch_size: int | None = None) -> Tensor:
        """Logits (n, classes) of a whole set: eval mode, no gradients, ``float32``."""
        self.trace(images.shape)
        batch_size = batch_size or evaluation_batch(self.device)
        with self.evaluating(), torch.inference_mode():
            parts = [self(batch) for batch, _ in images.batches(batch_size, device=self.device)]
        return torch.cat(parts).float().clone()

    def survey(self, images: ImageSet, *, batch_size: int | None = None) -> tuple[Tensor, Tensor]:
        """Logits (n, classes) and features (n, d) of a whole set from one pass over it."""
        self.trace(images.shape)
        batch_size = batch_size or evaluation_batch(self.device)
        logits, features = [], []
        with self.evaluating(), torch.inference_mode():
            for batch, _ in images.batches(batch_size, device=self.device):
                seen: list[Tensor] = []
                with self._editing_head_input(_keep(seen)):
                    logits.append(self(batch))
                features.append(self._as_feature_rows(seen[-1]))
        return torch.cat(logits).float().clone(), torch.cat(features).float().clone()

    # -- what the network is made of -----------------------------------------------------------

    def trace(self, shape: tuple[int, int, int]) -> Classifier:
        """Finds the final linear layer for images of ``shape`` (c, h, w); the work is done once.

        Raises:
            InputError: the network cannot take such images, or its logits do not come straight
                from a linear layer (the message names what was found instead).
        """
        if self._input_shape == shape:
            return self
        self._check_shape(shape)
        generator = torch.Generator().manual_seed(0)
        probe = torch.rand((2, *shape), generator=generator).to(self.device)
        recorder = LinearCalls()
        try:
            with self.evaluating(), torch.no_grad(), recorder:
                logits = self(probe)
        except InputError:
            raise
        except Exception as error:
            kinds = {p.dtype for p in self.network.parameters() if p.dtype != torch.float32}
            if kinds:
                found = ", ".join(sorted(str(kind).removeprefix("torch.") for kind in kinds))
                raise InputError(
                    f"the network cannot take images, and has weights of type {found}; give "
                    "network.float()"
                ) from error
            size = "x".join(map(str, shape))
            reason = str(error).strip().splitlines() or [type(error).__name__]
            raise InputError(
                f"the network cannot take images of {size} (channels x height x width): "
                f"{reason[0]} Give images of the size it was trained on; where there are none, the "
                "right input size, and mean and std for each channel."
            ) from error
        if not isinstance(logits, Tensor) or logits.ndim != 2:
            what = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise InputError(
                f"the network answers with {what}; expected logits of shape (images, classes)"
            )
        if not torch.isfinite(logits).all():
            raise InputError(
                "the network's logits are not finite numbers on a plain image; its weights or the "
                "normalisation are broken"
            )
        if logits.shape[1] < 2:
            raise InputError(
                "the network answers with one logit; expected one for each class, two or more"
            )
        name, bias, averaged = self._find_head(recorder.calls, logits)
        if self._classes is not None and len(self._classes) != logits.shape[1]:
            raise InputError(
                f"{len(self._classes)} class names were given and the network has "
                f"{logits.shape[1]} classes"
            )
        self._takes_channels_last = self._runs_channels_last(probe)
        self._head_name, self._head_bias, self._head_is_averaged = name, bias, averaged
        self._num_classes = logits.shape[1]
        self._input_shape = shape
        return self

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of the images that ``trace`` saw."""
        self._require_trace()
        assert self._input_shape is not None  # noqa: S101 (set together with the head)
        return self._input_shape

    @property
    def num_classes(self) -> int:
        """How many logits the network has."""
        self._require_trace()
        assert self._num_classes is not None  # noqa: S101 (set together with the head)
        return self._num_classes

    @property
    def classes(self) -> tuple[str, ...]:
        """The class names, or the indices as text."""
        if self._classes is not None:
            return self._classes
        return tuple(str(index) for index in range(self.num_classes))

    @property
    def head(self) -> Head:
        """The final linear layer; needs ``trace``, or an ``input_size`` to trace with."""
        weight = self._head_weight().detach().float()
        flat = weight.reshape(len(weight), -1).clone()
        if self._head_bias is None:
            bias = torch.zeros(len(weight), device=weight.device)
        else:
            bias = named_tensors(self.network)[self._head_bias].detach().float().clone()
        return Head(flat, bias, self._head_name or "")

    def features(self, images: Tensor) -> Tensor:
        """The input of the final linear layer, (n, d), in the network's current mode."""
        self.trace(tuple(images.shape[1:]))  # type: ignore[arg-type]  # NCHW by contract
        seen: list[Tensor] = []
        with self._editing_head_input(_keep(seen)):
            self(images)
        return self._as_feature_rows(seen[-1])

    def logits_with_shift(self, images: Tensor, shift: Tensor) -> Tensor:
        """Logits of ``images`` when ``shift``, (d,) or (n, d), is added to the features."""
        self.trace(tuple(images.shape[1:]))  # type: ignore[arg-type]  # NCHW by contract

        def add(features: Tensor) -> Tensor:
            missing = features.ndim - 2
            return features + shift.reshape(*shift.shape, *([1] * missing)).to(features.dtype)

        with self._editing_head_input(add):
            return self(images)

    def split(self, layer: str | None = None) -> Split:
        """Cuts the network at the output of the module ``layer``, or at its deepest feature map.

        Both halves run the whole network with a hook, so any network works; the hook is gone
        when the call returns. ``back`` accepts activations of any batch size.

        Raises:
            InputError: there is no such module, it gives no single tensor, or the network also
                passes information around it (a shortcut), so that it does not cut the network.
        """
        generator = torch.Generator().manual_seed(1)
        probe = torch.rand((2, *self.input_shape), generator=generator).to(self.device)
        with self.evaluating():
            if layer is None:
                return deepest_map(self, self.network, probe, self.num_classes)
            return split_at(self, self.network, layer, probe)

    def to_fast_layout(self) -> None:
        """Lays the weights out channels last, where device and network take that; values stay.

        Needs ``trace``.
        """
        self._require_trace()
        if self._takes_channels_last:
            to_fast_layout(self.network, self.device)

    def copy(self) -> Classifier:
        """An independent classifier with its own copy of the network."""
        twin = copy.copy(self)
        # What a module keeps of a pass, or computes from other weights, is not copied otherwise.
        computed = {
            id(value): value.detach().clone()
            for module in self.network.modules()
            for value in vars(module).values()
            if isinstance(value, Tensor) and not value.is_leaf
        }
        try:
            twin.network = copy.deepcopy(self.network, computed)
        except (TypeError, RuntimeError) as error:
            raise InputError(
                f"the network cannot be copied: {error}; remove what it holds beside its weights"
            ) from error
        return twin

    # -- inner works ---------------------------------------------------------------------------

    def _runs_channels_last(self, probe: Tensor) -> bool:
        """Whether images and weights may be laid out channels last.

        Networks that flatten a map by ``x.view(len(x), -1)``, as many tutorials do, may not: torch
        refuses a view there.
        """
        if not has_channels_last(self.network, self.device):
            return False
        twin = self.copy()
        twin._takes_channels_last = True
        to_fast_layout(twin.network, self.device)
        try:
            with twin.evaluating(), torch.no_grad():
                twin(probe.contiguous(memory_format=torch.channels_last))
        except RuntimeError:
            return False
        return True

    def _check_shape(self, shape: tuple[int, int, int]) -> None:
        channels, height, width = shape
        wanted = max(len(self.mean), len(self.std))
        if wanted > 1 and channels != wanted:
            raise InputError(
                f"the images have {channels} channel(s) and the normalisation {wanted}; give "
                f"images with {wanted} channels"
            )
        if self.input_size is not None and (height, width) != tuple(self.input_size):
            raise InputError(
                f"the images are {height}x{width} and the network takes "
                f"{self.input_size[0]}x{self.input_size[1]}; resize them, or correct the input size"
            )

    def _find_head(self, calls: list[LinearCall], logits: Tensor) -> tuple[str, str | None, bool]:
        parameters = {id(tensor): name for name, tensor in self.network.named_parameters()}
        for call in reversed(calls):
            averaged = call.output.ndim == 4 and call.output.shape[2:] != (1, 1)
            rows = call.output.mean((2, 3)) if call.output.ndim == 4 else call.output
            if rows.shape != logits.shape or not _same_up_to_row_constant(rows, logits):
                continue
            name = parameters.get(id(call.weight))
            if name is None:
                raise InputError(
                    "the final linear layer computes its weight anew at every call (a "
                    "parametrisation); make it a plain parameter first, for example with "
                    "torch.nn.utils.parametrize.remove_parametrizations"
                )
            uses = sum(other.weight is call.weight for other in calls)
            if uses > 1:
                raise InputError(f"the final linear layer {name!r} runs {uses} times in one pass")
            named = {id(tensor): key for key, tensor in named_tensors(self.network).items()}
            bias = None if call.bias is None else named.get(id(call.bias))
            if call.bias is not None and bias is None:
                raise InputError(
                    "the final linear layer computes its bias anew at every call; make it a plain "
                    "parameter first"
                )
            return name, bias, averaged
        last = parameters.get(id(calls[-1].weight), "a computed weight") if calls else None
        found = (
            f"the last linear layer is {last!r}, and other operations follow it"
            if last
            else ("there is no linear layer and no 1x1 convolution in it")
        )
        raise InputError(
            f"the network has no final linear layer whose output are the logits: {found}; "
            "if it ends in softmax, give the network without it"
        )

    def _require_trace(self) -> None:
        if self._head_name is None:
            channels = max(len(self.mean), len(self.std))
            if self.input_size is None:
                raise InputError(
                    "the input size is not known yet: without images, the model itself must say "
                    "what it takes; give the input size (--input-size HEIGHT WIDTH; in Python "
                    "input_size=(height, width), or trace((channels, height, width))), and mean "
                    "and std for each channel"
                )
            self.trace((channels, *self.input_size))

    def _head_weight(self) -> Tensor:
        self._require_trace()
        assert self._head_name is not None  # noqa: S101 (_require_trace set it)
        return self.network.get_parameter(self._head_name)

    def _as_feature_rows(self, head_input: Tensor) -> Tensor:
        return head_input.mean((2, 3)) if head_input.ndim == 4 else head_input

    def _editing_head_input(self, edit: Callable[[Tensor], Tensor]) -> TorchFunctionMode:
        return HeadInput(self._head_weight(), edit)


def _check_network(network: nn.Module) -> None:
    """Refuses what can be run and no more."""
    for name, module in network.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            part = f"part {name!r} of the network" if name else "the network"
            raise InputError(
                f"{part} is TorchScript, which can be neither looked into nor trained here; give "
                "the network as it was before torch.jit"
            )
    if any(tensor.is_inference() for tensor in named_tensors(network).values()):
        raise InputError(
            "the network's weights were made under torch.inference_mode(), and have no gradients; "
            "give copy.deepcopy(network), made outside of it"
        )


def _as_channels(value: float | Sequence[float], name: str) -> tuple[float, ...]:
    try:
        numbers = tuple(float(v) for v in (value if isinstance(value, Sequence) else [value]))
    except (TypeError, ValueError):
        raise InputError(f"{name} is {value!r}; expected numbers") from None
    if not numbers or not all(map(_is_finite, numbers)):
        raise InputError(f"{name} is {value!r}; expected one finite number for each channel")
    return numbers


def _is_finite(number: float) -> bool:
    return number - number == 0


def _same_up_to_row_constant(rows: Tensor, logits: Tensor) -> bool:
    """A log-softmax after the head moves each row by a constant, which changes no decision."""
    gap = (rows - logits).float()
    if gap.shape[1] < 2:
        return False
    scale = 1 + logits.abs().max()
    return bool((gap - gap.mean(1, keepdim=True)).abs().max() <= 1e-5 * scale)


def _keep(seen: list[Tensor]) -> Callable[[Tensor], Tensor]:
    def keep(features: Tensor) -> Tensor:
        seen.append(features)
        return features

    return keep
