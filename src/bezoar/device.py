"""Where and in which number format networks run: the one place that decides it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

from bezoar.errors import InputError


def resolve_device(name: str | None = None) -> torch.device:
    """Returns the device called ``name``; ``None`` or ``"auto"`` is the accelerator, else the CPU.

    Raises:
        InputError: the name is no device, or this machine does not have it.
    """
    if name is None or name == "auto":
        if torch.accelerator.is_available():
            found = torch.accelerator.current_accelerator()
            if found is not None:
                return found
        return torch.device("cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()  # "meta" tensors exist and hold nothing
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        raise InputError(
            f"device {name!r} cannot be used on this machine: {reason}; use --device cpu, or leave "
            "it out"
        ) from error
    return device


def has_fast_bfloat16(device: torch.device) -> bool:
    """Whether ``bfloat16`` is faster than ``float32`` for training on ``device``.

    On CPUs it is where the processor multiplies it in hardware (AVX-512 BF16 or AMX): 2.4 times the
    images per second on wide networks. Without that it is several times slower.
    """
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu":
        cpuinfo = Path("/proc/cpuinfo")
        return cpuinfo.exists() and "avx512_bf16" in cpuinfo.read_text(errors="replace")
    return False


def evaluation_batch(device: torch.device) -> int:
    """Images in a batch without gradients that is fast on ``device``.

    On CPUs activations should stay in the caches: one thread answers 2,700 images of 32x32 a second
    with a ResNet-8 in batches of 64 or 128, and 1,300 in batches of 512. GPUs want to be filled.
    """
    return 128 if device.type == "cpu" else 512


def gradient_batch(device: torch.device) -> int:
    """Images in one pass with gradients of the images, which fill the caches sooner, likewise."""
    return 64 if device.type == "cpu" else 4096


def has_channels_last(network: nn.Module, device: torch.device) -> bool:
    """Whether ``device`` has that layout for the modules of ``network``.

    Not for GroupNorm on CPUs: its backward pass there writes beyond its memory in that layout and
    ends the process (torch 2.13, on some processors).
    """
    grouped = any(isinstance(module, nn.GroupNorm) for module in network.modules())
    return device.type != "mps" and not (grouped and device.type == "cpu")


def to_fast_layout(network: nn.Module, device: torch.device) -> None:
    """Lays the weights out channels last where the device has that layout; values stay.

    For networks of our own: ``Classifier.to_fast_layout`` tries first whether one takes it.
    """
    if has_channels_last(network, device):
        layout = {"memory_format": torch.channels_last}
        network.to(**layout)  # type: ignore[call-overload]  # torch's stub lacks memory_format


def to_plain_layout(network: nn.Module) -> None:
    """Lays the weights out contiguously, as people expect to get them; values stay."""
    layout = {"memory_format": torch.contiguous_format}
    network.to(**layout)  # type: ignore[call-overload]  # torch's stub lacks memory_format


@contextlib.contextmanager
def seeded(device: torch.device, seed: int) -> Iterator[None]:
    """Dropout and the like draw from ``seed`` inside the block; the global generators stay."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def own_stream(seed: int, number: int, device: torch.device | str = "cpu") -> torch.Generator:
    """The random numbers of part ``number`` of a run, which do not depend on its other parts."""
    return torch.Generator(device).manual_seed(seed * 1_000_003 + number)


@contextlib.contextmanager
def with_gradients() -> Iterator[None]:
    """Gradients inside the block, also where the caller has switched them off, as notebooks do."""
    with torch.inference_mode(False), torch.enable_grad():
        yield


@contextlib.contextmanager
def training_precision(device: torch.device, enabled: bool = True) -> Iterator[None]:
    """Autocast to ``bfloat16`` inside the block where that is faster on ``device``."""
    if enabled and has_fast_bfloat16(device):
        with torch.autocast(device.type, dtype=torch.bfloat16):
            yield
    else:
        yield
