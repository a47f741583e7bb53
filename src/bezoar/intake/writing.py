"""Writing weights in the form of the file they came from, without ever losing a file."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import safetensors.torch
import torch
from torch import Tensor

from bezoar.errors import InputError
from bezoar.intake.matching import converted, matching_state
from bezoar.intake.weights import SAFETENSORS, TORCH_ZIP, WeightsFile
from bezoar.records import beside

_TORCH_ENDINGS = (".pt", ".pth", ".ckpt", ".pkl", ".tar", ".bin")


def check_writable(out: str | Path, source: WeightsFile) -> None:
    """Finds out before expensive work whether ``write_weights`` could write to ``out``.

    Raises:
        InputError: ``out`` is the file that was read (under any name or link), a folder, or in a
            folder that does not exist or cannot be written to.
    """
    target = Path(out)
    if _is_same_file(target, source.path):
        raise InputError(
            f"{out} is the file that the weights came from; it is never overwritten, so give "
            "another name"
        )
    if target.exists() and not target.is_file():
        what = "a folder" if target.is_dir() else "no regular file"
        raise InputError(f"{out} is {what}; give the name of a file to write")
    folder = _resolved(target).parent
    if not folder.is_dir():
        raise InputError(f"the folder {folder} does not exist; create it, or give another file")
    # The rights alone do not tell: file systems can be read-only, and full.
    probe = beside(_resolved(target))
    try:
        with probe.open("xb"):
            pass
    except OSError as error:
        raise _cannot_write(out, error) from error
    finally:
        probe.unlink(missing_ok=True)


def check_ending(out: str | Path, source: WeightsFile) -> None:
    """Refuses a name whose ending promises another container than that of ``source``.

    ``write_weights`` keeps the container, and a name that ends otherwise misleads whoever loads it.

    Raises:
        InputError: ``out`` ends as a safetensors file and the source is none, or the reverse.
    """
    ending = Path(out).suffix.lower()
    if source.container == SAFETENSORS and ending in _TORCH_ENDINGS:
        kind, wanted = "safetensors", ".safetensors"
    elif source.container != SAFETENSORS and ending == ".safetensors":
        kind, wanted = "torch", ".pt or .pth"
    else:
        return
    raise InputError(
        f"{out} ends in {ending}, and {source.path.name} is a {kind} file, whose container is "
        f"kept; give a name that ends in {wanted}"
    )


def write_weights(source: WeightsFile, state: Mapping[str, Tensor], out: str | Path) -> None:
    """Writes ``state`` with the keys, dtypes, container and further content of ``source``.

    Args:
        source: the file that was read; it is never overwritten.
        state: name → tensor, with the names of the network (``network.state_dict()``).
        out: the file to write; it appears complete or not at all.

    Raises:
        InputError: names or shapes differ from the source, a value does not fit the source's
            number format, or ``out`` cannot be written.
    """
    check_writable(out, source)
    own = matching_state(source, state)
    tensors = _in_source_form(source, own)
    if source.container == SAFETENSORS:
        save_safetensors(tensors, out, dict(source.metadata) or None)
    else:
        save_torch(_rebuilt(source, tensors), out, zipped=source.container == TORCH_ZIP)


def save_safetensors(
    tensors: Mapping[str, Tensor], out: str | Path, metadata: dict[str, str] | None = None
) -> None:
    """Writes a safetensors file that appears complete or not at all."""
    whole = {key: tensor.contiguous().clone() for key, tensor in tensors.items()}
    # save_file would make the file unreadable for everybody else, whatever the umask.
    save(out, lambda stream: stream.write(safetensors.torch.save(whole, metadata)))


def save_torch(document: Any, out: str | Path, *, zipped: bool = True) -> None:
    """Writes a file of ``torch.save`` that appears complete or not at all."""
    save(out, lambda stream: torch.save(document, stream, _use_new_zipfile_serialization=zipped))


def save(out: str | Path, write: Callable[[BinaryIO], object]) -> None:
    """Has ``write`` fill a new file beside ``out``, and renames that to ``out``.

    Raises:
        InputError: the disk is full, or the folder cannot be written to.
    """
    target = _resolved(Path(out))
    partial = beside(target)
    try:
        with partial.open("xb") as stream:
            write(stream)
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(target)
    except (OSError, safetensors.SafetensorError) as error:
        raise _cannot_write(out, error) from error
    except RuntimeError as error:  # how torch's zip writer says that the disk is full
        raise _cannot_write(out, error) from error
    finally:
        partial.unlink(missing_ok=True)


def _in_source_form(source: WeightsFile, own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Key in the file → tensor in the file's dtype; tensors that were one stay one."""
    shared: dict[Any, Tensor] = {}
    result = {}
    for name, key in source.keys.items():
        tensor, dtype = own[name], source.tensors[name].dtype
        place = (tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype, dtype)
        if tensor.numel() == 0 or place not in shared:
            shared[place] = converted(tensor, dtype, name).clone()
        result[key] = shared[place]
    return result


def _rebuilt(source: WeightsFile, tensors: Mapping[str, Tensor]) -> Any:
    """The source's tree with other tensors; only the dictionaries on the way are copied."""
    root = copy.copy(source.document)
    node = root
    for part in source.nesting:
        node[part] = copy.copy(node[part])
        node = node[part]
    for key, tensor in tensors.items():
        if isinstance(node[key], torch.nn.Parameter):
            tensor = torch.nn.Parameter(tensor, requires_grad=node[key].requires_grad)
        node[key] = tensor
    return root


def _is_same_file(target: Path, source: Path) -> bool:
    if _resolved(target) == _resolved(source):
        return True
    try:
        return target.samefile(source)
    except OSError:
        return False


def _resolved(path: Path) -> Path:
    return Path(os.path.realpath(path))


def _cannot_write(out: str | Path, error: Exception) -> InputError:
    reason = getattr(error, "strerror", None) or str(error).strip().splitlines()[0]
    return InputError(
        f"{out} cannot be written: {reason}; choose another folder or free some space"
    )
