"""The weights in a model file, whatever container and wrapping they came in."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import safetensors
import torch
from torch import Tensor

from bezoar.errors import InputError
from bezoar.intake import torch_files
from bezoar.intake.pickle_scan import first_line

SAFETENSORS, TORCH_ZIP, TORCH_LEGACY = "safetensors", "torch zip", "torch legacy"

# Names that training scripts give to what holds the weights, the likeliest first.
USUAL_NAMES = (
    *("state_dict", "model_state_dict", "model_state", "model", "net", "network", "net_state_dict"),
    *("netC", "classifier", "weights", "params", "parameters", "module", "student", "backbone"),
    *("model_ema", "state_dict_ema", "ema_state_dict", "ema_model", "ema", "params_ema"),
    *("swa_model", "teacher", "best_model", "best_state_dict"),
)
NOT_WEIGHTS = ("optim", "sched", "scaler", "rng", "amp", "history", "callback", "loss", "sampler")

# Wrappers put their own name before every key: DataParallel and DistributedDataParallel
# ("module."), torch.compile ("_orig_mod."), a training class that keeps the network as a member.
WRAPPERS = ("module", "_orig_mod", "model", "net", "network", "student", "_model", "ema_model")


@dataclass(frozen=True, eq=False)
class WeightsFile:
    """Weights as read, and everything needed to write others in the same form.

    Attributes:
        path: the file they came from.
        container: "safetensors", "torch zip" or "torch legacy".
        tensors: name without wrapper prefix → tensor on the CPU, in the file's dtype.
        keys: name without wrapper prefix → key in the file.
        nesting: the keys that lead to the dictionary of weights in the file; () is the top.
        prefix: what was taken off every key, such as "module.".
        others: further sets of weights in the file, as "a.b"; they are neither used nor changed.
        document: the whole content of a torch file; None for safetensors.
        metadata: the text table of a safetensors file.
        size: bytes of the file.
        sha256: its hash.
        notices: full sentences on what a reader should know, such as a choice that was made.
    """

    path: Path
    container: str
    tensors: Mapping[str, Tensor]
    keys: Mapping[str, str]
    size: int
    sha256: str
    nesting: tuple[Any, ...] = ()
    prefix: str = ""
    others: tuple[str, ...] = ()
    document: Any = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    notices: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"WeightsFile({self.path.name!r}, {self.container}, {len(self.tensors)} tensors)"


def read_weights(path: str | Path, *, entry: str | None = None) -> WeightsFile:
    """Reads the weights in a file and executes nothing from it.

    Args:
        path: a safetensors file, or one written by ``torch.save`` (either format).
        entry: which set of weights, where the file holds several ("ema", or "a.b" for one inside
            another); by default the one with the most usual name, then the largest.

    Raises:
        UnsafeFileError: the file needs code to be executed on load.
        InputError: there is no such file, or it holds no weights that can be read.
    """
    path = Path(path)
    where = str(path)
    try:
        if path.is_dir():
            raise InputError(f"{where} is a folder; expected a file with weights")
        if not path.is_file():
            raise InputError(f"there is no file {where}; give the path of a file with weights")
        with path.open("rb") as stream:
            sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
            size = stream.tell()
            stream.seek(0)
            container = _container(stream, size, where)
            document, metadata = _read(stream, container, size, path)
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"{where} cannot be read: {error.strerror or error}") from error
    except Exception as error:
        raise InputError(
            f"{where} is damaged ({first_line(error)}); get a complete copy of it"
        ) from error
    nesting, others = _choose(document, entry, where)
    chosen = _at(document, nesting)
    tensors = {k: v for k, v in dict.items(chosen) if isinstance(k, str) and isinstance(v, Tensor)}
    averaged = tensors.get("n_averaged")  # torch's AveragedModel counts beside the weights
    if averaged is not None and averaged.ndim == 0 and len(tensors) > 1:
        del tensors["n_averaged"]
    prefix = _common_prefix(tensors)
    notices = []
    if others:
        used = ".".join(map(str, nesting)) or "the top level"
        notices.append(
            f"The file holds several sets of weights; {used!r} is used, and "
            f"{', '.join(map(repr, others))} would be left as it is in a cleaned file."
        )
    return WeightsFile(
        path=path,
        container=container,
        tensors={key.removeprefix(prefix): tensor.detach() for key, tensor in tensors.items()},
        keys={key.removeprefix(prefix): key for key in tensors},
        size=size,
        sha256=sha256,
        nesting=nesting,
        prefix=prefix,
        others=others,
        document=None if container == SAFETENSORS else document,
        metadata=metadata,
        notices=tuple(notices),
    )


def check_finite(weights: WeightsFile) -> None:
    """Refuses weights that are not all finite numbers.

    Raises:
        InputError: naming the tensors with NaN or infinite values.
    """
    broken = nonfinite_names(weights.tensors)
    if broken:
        shown = ", ".join(broken[:5]) + (f" and {len(broken) - 5} more" if broken[5:] else "")
        raise InputError(
            f"{weights.path} has NaN or infinite values in {shown}; the network cannot work. Ask "
            "for a checkpoint from before the training diverged, or a complete copy"
        )


def nonfinite_names(tensors: Mapping[str, Tensor]) -> tuple[str, ...]:
    """The names of the tensors that hold a NaN or an infinite value."""
    return tuple(
        name
        for name, tensor in tensors.items()
        if (tensor.is_complex() and not bool(torch.isfinite(tensor).all()))
        or (tensor.is_floating_point() and not bool(torch.isfinite(_widened(tensor)).all()))
    )


def _widened(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.element_size() < 2 else tensor  # float8 has no isfinite


def _container(stream: BinaryIO, size: int, where: str) -> str:
    """Recognises the container by its first bytes; the name's ending proves nothing."""
    start = stream.read(512)
    stream.seek(0)
    if not start:
        raise InputError(f"{where} is empty; get a complete copy of it")
    if start.startswith(b"PK\x03\x04"):
        return TORCH_ZIP
    header_bytes = int.from_bytes(start[:8], "little")
    if start[8:9] == b"{" and len(start) > 9:
        if header_bytes > size - 8:
            raise InputError(
                f"{where} is damaged: its header claims {header_bytes} bytes and the file has "
                f"{size}; get a complete copy of it"
            )
        return SAFETENSORS
    if torch_files.is_tar(stream):
        raise InputError(
            f"{where} is a tar archive, as torch wrote before version 0.2; unpack it, or "
            f"{torch_files.ASK_THE_SENDER}"
        )
    if start.startswith(b"\x80") and start[1:2] <= b"\x05":
        return TORCH_LEGACY
    if start.startswith(b"version https://git-lfs"):
        raise InputError(
            f"{where} is a Git LFS pointer, not the weights themselves; run 'git lfs pull'"
        )
    kind = _kind(start, where)
    raise InputError(
        f"{where} is {kind}, not a checkpoint; expected a file written by torch.save or a "
        "safetensors file"
    )


def _kind(start: bytes, where: str) -> str:
    known = {
        b"\x89PNG": "a PNG image",
        b"\xff\xd8\xff": "a JPEG image",
        b"\x89HDF": "an HDF5 file (Keras)",
        b"\x1f\x8b": "a gzip archive",
        b"\x93NUMPY": "a numpy array",
        b"GGUF": "a GGUF file",
        b"%PDF": "a PDF",
    }
    for magic, name in known.items():
        if start.startswith(magic):
            return name
    text = start.strip().lower()
    if text.startswith((b"<!doctype", b"<html")):
        return "a web page (the download may have failed)"
    if all(byte >= 32 or byte in b"\t\n\r\f" for byte in start):
        return "a text file"
    # an ONNX file has no first bytes of its own
    return "an ONNX model" if where.lower().endswith(".onnx") else "of no known format"


def _read(stream: BinaryIO, container: str, size: int, path: Path) -> tuple[Any, dict[str, str]]:
    if container == TORCH_LEGACY:
        return torch_files.read_legacy(stream, size, str(path)), {}
    if container == TORCH_ZIP:
        try:
            return torch_files.read_zip(stream, size, str(path)), {}
        except zipfile.BadZipFile as error:
            raise InputError(
                f"{path} is an incomplete or damaged zip archive ({first_line(error)}); get a "
                "complete copy of it"
            ) from error
    try:
        with safetensors.safe_open(path, framework="pt", device="cpu") as file:
            # Cloned, because the tensors otherwise stay views of a file that may change.
            names = list(file.keys())
            tensors = {name: file.get_tensor(name).clone() for name in names}
            return tensors, dict(file.metadata() or {})
    except Exception as error:
        raise InputError(
            f"{path} is a damaged safetensors file ({first_line(error)}); get a complete copy of it"
        ) from error


def _choose(
    document: Any, entry: str | None, where: str
) -> tuple[tuple[Any, ...], tuple[str, ...]]:
    """Where the weights are in the file's tree, and where else there are some."""
    found = dict(_sets_of_weights(document, ()))
    if not found:
        what = "no tensors" if isinstance(document, dict) else f"a {type(document).__name__}"
        raise InputError(
            f"{where} holds {what}; expected a dictionary of named tensors (a state_dict)"
        )
    names = {".".join(map(str, nesting)): nesting for nesting in found}
    weights = [nesting for nesting in found if not _is_by_product(nesting)] or list(found)
    largest = max(found[nesting] for nesting in weights)
    # Beside a state_dict people keep small tensors of their own, such as the mean of the images.
    weights = [nesting for nesting in weights if found[nesting] * 10 >= largest]
    if entry is None:
        chosen = min(weights, key=lambda nesting: (_unusualness(nesting), -found[nesting]))
    elif entry in names:
        chosen = names[entry]
    else:
        known = ", ".join(repr(name) for name in names if name) or "only one, without a name"
        raise InputError(f"{where} has no weights under {entry!r}; it has: {known}")
    others = [nesting for nesting in weights if nesting != chosen]
    return chosen, tuple(".".join(map(str, n)) or "the top level" for n in others)


def _sets_of_weights(tree: Any, nesting: tuple[Any, ...]) -> Iterator[tuple[tuple[Any, ...], int]]:
    """Every dictionary with named tensors in it, with its number of values."""
    stack, seen = [(tree, nesting)], set()
    while stack:
        node, path = stack.pop()
        if not isinstance(node, dict) or id(node) in seen:
            continue
        seen.add(id(node))
        named = [v for k, v in dict.items(node) if isinstance(k, str) and isinstance(v, Tensor)]
        # A count or a loss that was stored as a tensor makes no set of weights.
        if any(tensor.ndim > 0 for tensor in named):
            yield path, sum(tensor.numel() for tensor in named)
        stack.extend((v, (*path, k)) for k, v in reversed(list(dict.items(node))))


def _is_by_product(nesting: tuple[Any, ...]) -> bool:
    return any(word in str(part).lower() for part in nesting for word in NOT_WEIGHTS)


def _unusualness(nesting: tuple[Any, ...]) -> tuple[int, int]:
    ranks = [USUAL_NAMES.index(part) for part in nesting if part in USUAL_NAMES]
    return max(ranks, default=len(USUAL_NAMES) if nesting else -1), len(nesting)


def _at(document: Any, nesting: tuple[Any, ...]) -> Any:
    for key in nesting:
        document = document[key]
    return document


def _common_prefix(names: Mapping[str, Tensor]) -> str:
    prefix = ""
    while True:
        rest = {name.removeprefix(prefix).partition(".") for name in names}
        first = {part for part, _, _ in rest}
        if len(first) != 1 or not first <= set(WRAPPERS) or any(not tail for _, _, tail in rest):
            return prefix
        prefix += first.pop() + "."
