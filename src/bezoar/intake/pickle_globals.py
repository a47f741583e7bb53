"""Which functions and classes a pickle asks for, and which of them are harmless.

The names are read off the opcodes; nothing is ever unpickled here.
"""

from __future__ import annotations

import pickletools
from collections.abc import Iterator
from typing import Any, BinaryIO

import torch

STORAGE_ITEM_BYTES = {
    "torch.FloatStorage": 4,
    "torch.DoubleStorage": 8,
    "torch.HalfStorage": 2,
    "torch.BFloat16Storage": 2,
    "torch.LongStorage": 8,
    "torch.IntStorage": 4,
    "torch.ShortStorage": 2,
    "torch.CharStorage": 1,
    "torch.ByteStorage": 1,
    "torch.BoolStorage": 1,
    "torch.ComplexFloatStorage": 8,
    "torch.ComplexDoubleStorage": 16,
    "torch.storage.UntypedStorage": 1,
}
DTYPES = {str(value): value for value in vars(torch).values() if isinstance(value, torch.dtype)}

# Only these may be called by a file, and only in the ways that ``_call`` and ``_new`` accept.
TENSOR_BUILDERS = {
    "torch._utils._rebuild_tensor",
    "torch._utils._rebuild_tensor_v2",
    "torch._utils._rebuild_tensor_v3",
}
PARAMETER_BUILDERS = {
    "torch._utils._rebuild_parameter",
    "torch._utils._rebuild_parameter_with_state",
}
PLAIN_BUILDERS = {
    "collections.OrderedDict",
    "collections.Counter",
    "builtins.set",
    "builtins.complex",
    "torch.Size",
    "torch.device",
    "_codecs.encode",
    "argparse.Namespace",
    "numpy.dtype",
    "numpy.ndarray",
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar",
    "numpy.core.multiarray._reconstruct",
    "numpy._core.multiarray._reconstruct",
}
HARMLESS = (
    TENSOR_BUILDERS | PARAMETER_BUILDERS | PLAIN_BUILDERS | set(STORAGE_ITEM_BYTES) | set(DTYPES)
)
_QUANTIZED = (
    *("torch.per_tensor_affine", "torch.per_tensor_symmetric"),
    *("torch.per_channel_affine", "torch.per_channel_symmetric"),
    *("torch.per_channel_affine_float_qparams",),
    *("torch.QInt8Storage", "torch.QUInt8Storage", "torch.QInt32Storage"),
    *("torch.QUInt4x2Storage", "torch.QUInt2x4Storage"),
)
# Harmless too, but nothing that a repair could work on: refused with their own sentence.
UNSUPPORTED = {
    "torch._utils._rebuild_qtensor": "quantized tensors",
    **dict.fromkeys(_QUANTIZED, "quantized tensors"),
    "torch.serialization._get_layout": "sparse tensors",
    "torch._utils._rebuild_sparse_tensor": "sparse tensors",
    "torch._utils._rebuild_nested_tensor": "nested tensors",
    "torch._utils._rebuild_meta_tensor_no_storage": "meta tensors, which carry no values",
    "torch._utils._rebuild_wrapper_subclass": "tensors of a special class",
    "torch._utils._rebuild_device_tensor_from_numpy": "tensors of a special device",
    "torch._utils._rebuild_device_tensor_from_cpu_tensor": "tensors of a special device",
    "torch._tensor._rebuild_from_type_v2": "tensors of a special class",
}


def list_globals(stream: BinaryIO) -> tuple[str, ...]:
    """The globals ("module.name") of one pickle in order of appearance, as far as it is readable.

    The stream is left behind the pickle's end. A name that the pickle computes is given as
    "a name computed at load time".
    """
    found: dict[str, None] = {}
    recent: list[Any] = []
    memo: dict[int, Any] = {}
    try:
        for opcode, argument, _ in _opcodes(stream):
            name = opcode.name
            if name in {"GLOBAL", "INST"}:
                found[dotted(argument)] = None
                recent.append(None)
            elif name == "STACK_GLOBAL":
                module, attribute = recent[-2:] if len(recent) > 1 else (None, None)
                known = isinstance(module, str) and isinstance(attribute, str)
                found[f"{module}.{attribute}" if known else "a name computed at load time"] = None
                recent.append(None)
            elif name.startswith("EXT"):
                found["a class registered by copyreg"] = None
            elif name == "MEMOIZE":
                memo[len(memo)] = recent[-1] if recent else None
            elif "PUT" in name:
                memo[argument] = recent[-1] if recent else None
            elif "GET" in name:
                recent.append(memo.get(argument))
            elif opcode.stack_after:
                recent.append(argument if isinstance(argument, str) else None)
    except Exception:  # noqa: S110 (the list ends where the pickle stops being readable)
        pass
    return tuple(found)


def _opcodes(stream: BinaryIO) -> Iterator[tuple[pickletools.OpcodeInfo, Any, int | None]]:
    return pickletools.genops(stream)


def dotted(argument: str) -> str:
    """The full name behind the argument of a GLOBAL opcode, which has a space for the dot."""
    module, _, name = argument.partition(" ")
    # Protocol 2 writes the names of Python 2.
    module = {"__builtin__": "builtins", "copy_reg": "copyreg"}.get(module, module)
    return f"{module}.{name}"
