"""Reading what ``torch.save`` wrote, old format and new, without running anything from it.

Order matters: the pickle is scanned (``pickle_globals``, ``pickle_scan``) and its claims are
compared with the file's real size before torch's weights-only reader sees a byte. From a zip
archive only the records that are needed go on, in an archive written here, so that torch's zip
parser and Python's cannot disagree about a crafted one.
"""

from __future__ import annotations

import argparse
import io
import re
import tarfile
import warnings
import zipfile
from collections import Counter, OrderedDict
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from bezoar.errors import InputError, UnsafeFileError
from bezoar.intake import pickle_scan
from bezoar.intake.pickle_globals import HARMLESS, UNSUPPORTED, list_globals

MAX_VIEW_FACTOR = 16  # tensors may overlap in a file, but not to make much more of it than it is
MAX_CODE_BYTES = 2**24  # read of compressed records, to name what they ask for
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_PROTOCOL = 1001
ASK_THE_SENDER = (
    "ask the sender for a state_dict saved with torch.save(model.state_dict(), ...) or as "
    "safetensors"
)


def read_zip(stream: BinaryIO, size: int, where: str) -> Any:
    """The tree of containers and tensors in a zip file of ``torch.save`` (torch 1.6 and newer).

    Args:
        stream: the open file, at its start.
        size: the file's size in bytes.
        where: how messages name the file.

    Raises:
        UnsafeFileError: it needs code to be executed.
        InputError: it is damaged or no such file.
    """
    with zipfile.ZipFile(stream) as archive:
        records = {entry.filename: entry for entry in archive.infolist()}
        if any(name.rpartition("/")[2] == "constants.pkl" for name in records):
            code = tuple(name for name in records if name.endswith(".py"))
            raise UnsafeFileError(
                f"{where} is a TorchScript archive: it carries program code ({len(code)} source "
                f"files), which is not executed here; {ASK_THE_SENDER}",
                _globals_of(archive, records),
            )
        _check_records(archive.infolist(), size, where)
        roots = [name.removesuffix("data.pkl") for name in records if name.endswith("data.pkl")]
        if len(roots) != 1 or roots[0].strip("/").count("/"):
            raise InputError(
                f"{where} is a zip archive without a torch checkpoint in it; "
                "give a file written by torch.save or a safetensors file"
            )
        root = roots[0]
        pickled = _record(archive, records[root + "data.pkl"], where)
        contents = _scan(io.BytesIO(pickled), where)
        _check_tensor_bytes(contents, size, where)
        rewritten = io.BytesIO()
        with zipfile.ZipFile(rewritten, "w", zipfile.ZIP_STORED) as copy:
            copy.writestr("archive/data.pkl", pickled)
            version = records.get(root + "version") or records.get(root + ".data/version")
            copy.writestr("archive/version", _record(archive, version, where) if version else "3\n")
            if order := records.get(root + "byteorder"):
                copy.writestr("archive/byteorder", _record(archive, order, where))
            for storage in contents.storages.values():
                entry = records.get(f"{root}data/{storage.key}")
                if entry is None or entry.file_size != storage.bytes:
                    raise InputError(
                        f"{where} is damaged: the values of record {storage.key!r} are missing or "
                        "have the wrong length; get a complete copy of it"
                    )
                name = f"archive/data/{storage.key}"
                copy.writestr(name, _record(archive, entry, where))
    return _load(rewritten, where)


def read_legacy(stream: BinaryIO, size: int, where: str) -> Any:
    """The same for the format before torch 1.6: five pickles, then the values one after another."""
    if _scan(stream, where).value != LEGACY_MAGIC:
        raise InputError(f"{where} is a pickle that torch.save did not write; {ASK_THE_SENDER}")
    if _scan(stream, where).value != LEGACY_PROTOCOL:
        raise InputError(f"{where} has an unknown version of torch's old file format")
    _scan(stream, where)  # the sender's number sizes
    contents = _scan(stream, where)
    keys = _scan(stream, where).value
    _check_tensor_bytes(contents, size, where)
    stored = sum(8 + storage.bytes for storage in contents.storages.values())
    complete = isinstance(keys, list) and sorted(map(str, keys)) == sorted(contents.storages)
    if not complete or stored > size - stream.tell():
        raise InputError(
            f"{where} is damaged: values of its tensors are missing; get a complete copy of it"
        )
    stream.seek(0)
    return _load(io.BytesIO(stream.read()), where)


def is_tar(stream: BinaryIO) -> bool:
    """Whether the file is a tar archive, as torch wrote before version 0.2."""
    try:
        with tarfile.open(fileobj=stream, mode="r:"):
            return True
    except (tarfile.TarError, ValueError, OverflowError):
        return False
    finally:
        stream.seek(0)


def _check_records(entries: list[zipfile.ZipInfo], size: int, where: str) -> None:
    if len({entry.filename for entry in entries}) != len(entries):
        raise InputError(f"{where} is damaged: it has two records of one name")
    if any(e.compress_type != zipfile.ZIP_STORED or e.flag_bits & 1 for e in entries):
        raise InputError(
            f"{where} is a compressed or encrypted zip archive, which torch.save never writes; "
            "unpack it and give the checkpoint itself"
        )
    if sum(entry.file_size for entry in entries) > size:
        raise InputError(f"{where} is damaged: its records claim more bytes than the file has")


def _record(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, where: str) -> bytes:
    if not entry.CRC:
        # torch.serialization.set_crc32_options(False) writes 0; None tells zipfile not to compare.
        entry.CRC = None  # type: ignore[assignment]
    try:
        return archive.read(entry)
    except zipfile.BadZipFile as error:
        raise InputError(
            f"{where} is damaged ({pickle_scan.first_line(error)}); get a complete copy of it"
        ) from error


def _globals_of(archive: zipfile.ZipFile, records: dict[str, zipfile.ZipInfo]) -> tuple[str, ...]:
    found: dict[str, None] = {}
    left = MAX_CODE_BYTES
    for name, entry in records.items():
        if name.endswith(".pkl") and left:
            with archive.open(entry) as record:
                pickled = record.read(left)
            left -= len(pickled)
            found.update(dict.fromkeys(list_globals(io.BytesIO(pickled))))
    return tuple(found)


def _scan(stream: BinaryIO, where: str) -> pickle_scan.Contents:
    """Scans the pickle at the stream's position; refuses what is unsafe, unsupported, damaged."""
    start = stream.tell()
    named = list_globals(stream)
    unsafe = [n for n in named if n not in HARMLESS | set(UNSUPPORTED)]
    if unsafe:
        shown = ", ".join(unsafe[:12]) + (f" and {len(unsafe) - 12} more" if unsafe[12:] else "")
        raise UnsafeFileError(
            f"{where} needs code to be executed on load and was refused; nothing of it ran. It "
            f"wants: {shown}. To use its weights, {ASK_THE_SENDER}",
            tuple(unsafe),
        )
    for name in named:
        if name in UNSUPPORTED:
            raise InputError(
                f"{where} holds {UNSUPPORTED[name]}; expected dense tensors of numbers"
            )
    stream.seek(start)
    try:
        return pickle_scan.check_pickle(stream)
    except InputError as error:
        raise InputError(
            f"{where} cannot be read: {error}; get a complete copy of it, or {ASK_THE_SENDER}"
        ) from error


def _check_tensor_bytes(contents: pickle_scan.Contents, size: int, where: str) -> None:
    stored = sum(storage.bytes for storage in contents.storages.values())
    if stored > size or contents.tensor_bytes > MAX_VIEW_FACTOR * size + 2**20:
        claimed = max(stored, contents.tensor_bytes)
        raise InputError(
            f"{where} is damaged: its tensors claim {claimed} bytes and the file has {size}"
        )


def _load(stream: BinaryIO, where: str) -> Any:
    stream.seek(0)
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(_STAND_INS):
            warnings.simplefilter("ignore")
            return _plain(torch.load(stream, map_location="cpu", weights_only=True), {}, 0)
    except InputError as error:
        raise InputError(f"{where} cannot be used: {error}") from error
    except Exception as error:
        raise InputError(
            f"{where} cannot be read ({pickle_scan.first_line(error)}); get a complete copy of "
            f"it, or {ASK_THE_SENDER}"
        ) from error


def _plain(value: Any, seen: dict[int, tuple[Any, Any]], depth: int) -> Any:
    """Rebuilds a loaded tree from plain containers; shared parts stay shared.

    A loaded OrderedDict may carry attributes that shadow its methods, so only its items and the
    ``_metadata`` that torch keeps there go over.
    """
    if depth > pickle_scan.MAX_DEPTH:
        raise InputError(f"its containers are nested more than {pickle_scan.MAX_DEPTH} deep")
    if id(value) in seen:
        return seen[id(value)][1]
    kind = type(value)
    result: Any
    if value is None or kind in _LEAVES or isinstance(value, np.generic):
        return value
    if kind is _Array:
        return value.array
    if isinstance(value, Tensor):
        result = _plain_tensor(value)
    elif kind in {tuple, set}:
        result = kind(_plain(item, seen, depth + 1) for item in value)
    elif kind is list:
        result = []
        seen[id(value)] = (value, result)
        result.extend(_plain(item, seen, depth + 1) for item in value)
    elif kind is argparse.Namespace:
        result = argparse.Namespace()
        seen[id(value)] = (value, result)
        result.__dict__.update(_plain(dict(value.__dict__), seen, depth + 1))
    elif kind in {dict, OrderedDict, Counter}:
        result = kind()
        seen[id(value)] = (value, result)
        for key, item in dict.items(value):
            result[_plain(key, seen, depth + 1)] = _plain(item, seen, depth + 1)
        metadata = value.__dict__.get("_metadata") if kind is OrderedDict else None
        if isinstance(metadata, dict):
            result._metadata = _plain(metadata, seen, depth + 1)
    else:
        raise InputError(f"it holds a {kind.__name__}, which belongs in no checkpoint")
    seen[id(value)] = (value, result)  # the original is kept alive, or its id would be used again
    return result


def _plain_tensor(value: Tensor) -> Tensor:
    if value.layout != torch.strided or value.is_quantized or value.is_meta:
        raise InputError("it holds tensors that are not dense; expected dense tensors of numbers")
    plain = value.detach().resolve_conj().resolve_neg()
    if isinstance(value, torch.nn.Parameter):
        return torch.nn.Parameter(plain, requires_grad=value.requires_grad)
    return plain


class _DType:
    """Stands in for ``numpy.dtype``: numbers and text only, and none of numpy's own unpickling."""

    def __init__(self, code: str, *_: Any) -> None:
        if not isinstance(code, str) or not re.fullmatch(r"[biufcSU]\d{1,5}", code):
            raise InputError(f"it holds a numpy value of type {code!r}; expected plain numbers")
        self.code = code
        self.order = "="

    def __setstate__(self, state: Any) -> None:
        if state[1] in ("<", ">"):
            self.order = state[1]

    def resolve(self) -> np.dtype[Any]:
        return np.dtype(self.order + self.code)


class _Array:
    """Stands in for ``numpy.ndarray`` while loading."""

    array: np.ndarray[Any, Any]

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, data = state
        flat = np.frombuffer(data, dtype.resolve())
        self.array = flat.reshape(shape, order="F" if fortran else "C").copy()


def _new_array(*_: Any) -> _Array:
    return _Array()


def _scalar(dtype: _DType, data: bytes) -> Any:
    resolved = dtype.resolve()
    if len(data) != resolved.itemsize:
        raise InputError("it is damaged (a numpy number of the wrong length)")
    return np.frombuffer(data, resolved)[0]


_LEAVES = {bool, int, float, complex, str, bytes}
_LEAVES |= {torch.Size, torch.dtype, torch.device}
_STAND_INS: list[Any] = [
    (argparse.Namespace, "argparse.Namespace"),
    (_DType, "numpy.dtype"),
    (_Array, "numpy.ndarray"),
    (_new_array, "numpy.core.multiarray._reconstruct"),
    (_new_array, "numpy._core.multiarray._reconstruct"),
    (_scalar, "numpy.core.multiarray.scalar"),
    (_scalar, "numpy._core.multiarray.scalar"),
]
