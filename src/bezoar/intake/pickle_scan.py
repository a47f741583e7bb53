"""What a pickle would do, read without doing it.

``check_pickle`` follows the opcodes that ``torch.save`` writes (protocol 2) and makes sure that
there is nothing but plain containers, numbers, strings and dense tensors that fit the storages
they claim. Nothing is ever unpickled here.

torch's weights-only reader refuses foreign code, but it lets a few bytes claim a tensor of any
size, which it then fills with uninitialised memory. So the values of the stack are followed as far
as they are literals, and what cannot be followed is refused.
"""

from __future__ import annotations

import pickletools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from bezoar.errors import InputError
from bezoar.intake.pickle_globals import (
    DTYPES,
    HARMLESS,
    PARAMETER_BUILDERS,
    PLAIN_BUILDERS,
    STORAGE_ITEM_BYTES,
    TENSOR_BUILDERS,
    dotted,
)

MAX_DEPTH = 64  # nested containers; checkpoints have fewer than ten
MAX_TUPLE_LEAVES = 10_000


class _Opaque:
    """A value that is not followed: a dictionary, or what a harmless call returned."""


@dataclass(frozen=True)
class _Global:
    name: str


@dataclass(frozen=True)
class _Tensor:
    """Kept apart from other values: the reader would let a state re-shape a tensor."""


@dataclass(frozen=True)
class Storage:
    """A block of values that a pickle refers to: its key, and how much it claims to hold."""

    key: str
    items: int
    item_bytes: int

    @property
    def bytes(self) -> int:
        """The claimed size."""
        return self.items * self.item_bytes


@dataclass
class Contents:
    """What ``check_pickle`` saw.

    Attributes:
        value: the pickled value where it is a literal or a list of literals.
        storages: every storage by its key.
        tensor_bytes: the size of all tensors together, views counted in full.
    """

    value: Any = None
    storages: dict[str, Storage] = field(default_factory=dict)
    tensor_bytes: int = 0


def check_pickle(stream: BinaryIO) -> Contents:
    """Follows one pickle of ``torch.save`` and leaves the stream behind its end.

    Raises:
        InputError: it does something that such a pickle never does (a half sentence).
    """
    machine = _Machine()
    try:
        return machine.run(pickletools.genops(stream))
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"it is damaged ({first_line(error)})") from error


def first_line(error: Exception) -> str:
    """The error's first line, or its type's name where it says nothing."""
    lines = str(error).strip().splitlines()
    return lines[0][:160] if lines else type(error).__name__


def _count(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise InputError("it is damaged (a size is no whole number)")
    return value


class _Machine:
    """The stack of the unpickler with literals, and stand-ins for everything else."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.contents = Contents()
        # Depth and size of every tuple by id: to use a tuple as a key, Python walks all of it,
        # in C recursion and without remembering what it has seen.
        self.tuples: dict[int, tuple[int, int, tuple[Any, ...]]] = {}

    def run(self, opcodes: Iterator[tuple[Any, Any, Any]]) -> Contents:
        for opcode, argument, _ in opcodes:
            name = opcode.name
            if name == "STOP":
                self.contents.value = self.stack.pop()
                return self.contents
            step = getattr(self, "_op_" + name.lower(), None)
            if step is not None:
                step(argument)
            elif name in {"BINUNICODE", "SHORT_BINSTRING", "BINFLOAT"} or name in _INTEGERS:
                self.stack.append(argument)
            elif name in _CONSTANTS:
                self.stack.append(_CONSTANTS[name])
            else:
                raise InputError(
                    f"it was written in another pickle protocol (opcode {name}) than the 2 that "
                    "torch's safe reader takes"
                )
        raise InputError("it is damaged (its end is missing)")

    def _since_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.marks.pop()
        return items

    def _op_proto(self, version: int) -> None:
        if version != 2:
            raise InputError(
                f"it was written in pickle protocol {version}, and torch's safe reader takes 2"
            )

    def _op_mark(self, _: None) -> None:
        self.marks.append(self.stack)
        self.stack = []

    def _op_empty_list(self, _: None) -> None:
        self.stack.append([])

    def _op_append(self, _: None) -> None:
        item = self.stack.pop()
        self.stack[-1].append(item)

    def _op_appends(self, _: None) -> None:
        items = self._since_mark()
        self.stack[-1].extend(items)

    def _op_setitem(self, _: None) -> None:
        del self.stack[-2:]
        self._expect_opaque()

    def _op_setitems(self, _: None) -> None:
        self._since_mark()
        self._expect_opaque()

    def _op_build(self, _: None) -> None:
        self.stack.pop()
        self._expect_opaque()

    def _expect_opaque(self) -> None:
        if not isinstance(self.stack[-1], _Opaque):
            raise InputError("it is damaged (it changes a value that cannot be changed)")

    def _op_tuple(self, _: None) -> None:
        self._push_tuple(self._since_mark())

    def _op_tuple1(self, _: None) -> None:
        self._push_tuple([self.stack.pop()])

    def _op_tuple2(self, _: None) -> None:
        self._push_tuple([self.stack.pop(-2), self.stack.pop()])

    def _op_tuple3(self, _: None) -> None:
        self._push_tuple([self.stack.pop(-3), self.stack.pop(-2), self.stack.pop()])

    def _push_tuple(self, items: list[Any]) -> None:
        value = tuple(items)
        inner = [self.tuples[id(item)] for item in items if id(item) in self.tuples]
        depth = 1 + max((depth for depth, _, _ in inner), default=0)
        leaves = len(items) + sum(leaves for _, leaves, _ in inner)
        if depth > MAX_DEPTH or (depth > 1 and leaves > MAX_TUPLE_LEAVES):
            raise InputError("its tuples are nested too deeply")
        if items:  # the empty tuple is one object for all
            self.tuples[id(value)] = (depth, leaves, value)
        self.stack.append(value)

    def _op_binput(self, index: int) -> None:
        self.memo[index] = self.stack[-1]

    _op_long_binput = _op_binput

    def _op_binget(self, index: int) -> None:
        self.stack.append(self.memo[index])

    _op_long_binget = _op_binget

    def _op_empty_dict(self, _: None) -> None:
        self.stack.append(_Opaque())

    def _op_global(self, argument: str) -> None:
        name = dotted(argument)
        if name not in HARMLESS:
            raise InputError(f"it asks for {name}")
        self.stack.append(_Global(name))

    def _op_newobj(self, _: None) -> None:
        self.stack.pop()
        wanted = self.stack.pop()
        if wanted not in (_Global("argparse.Namespace"), _Global("collections.OrderedDict")):
            raise InputError("it is damaged (it creates an object that is no container)")
        self.stack.append(_Opaque())

    def _op_reduce(self, _: None) -> None:
        arguments = self.stack.pop()
        called = self.stack.pop()
        if not isinstance(called, _Global) or not isinstance(arguments, tuple):
            raise InputError("it is damaged (it calls something that is no function)")
        self.stack.append(self._call(called.name, arguments))

    def _call(self, name: str, arguments: tuple[Any, ...]) -> Any:
        if name in TENSOR_BUILDERS:
            return self._tensor(name, arguments)
        if name in PARAMETER_BUILDERS:
            if not isinstance(arguments[0], _Tensor):
                raise InputError("it is damaged (a parameter is no tensor)")
            return _Tensor()
        # Other codecs would be looked up among Python's modules by name.
        if name == "_codecs.encode" and arguments[1:] != ("latin1",):
            raise InputError("it asks for _codecs.encode with another codec than latin1")
        if name in PLAIN_BUILDERS:
            return _Opaque()
        raise InputError(f"it calls {name}, which is no function")

    def _tensor(self, name: str, arguments: tuple[Any, ...]) -> _Tensor:
        storage, offset, size, stride = arguments[:4]
        if not isinstance(storage, Storage) or len(size) != len(stride):
            raise InputError("it is damaged (a tensor without a storage)")
        item_bytes = storage.item_bytes
        if name.endswith("_v3"):
            item_bytes = DTYPES[arguments[6].name].itemsize
        elements, last = 1, _count(offset)
        for length, step in zip(size, stride, strict=True):
            elements *= _count(length)
            last += max(length - 1, 0) * _count(step)
        if elements and (last + 1) * item_bytes > storage.bytes:
            raise InputError("it is damaged (a tensor is larger than the values it refers to)")
        self.contents.tensor_bytes += elements * item_bytes
        return _Tensor()

    def _op_binpersid(self, _: None) -> None:
        identity = self.stack.pop()
        if not isinstance(identity, tuple) or identity[0] != "storage":
            raise InputError("it refers to something else than stored values")
        kind, key, _location, items = identity[1:5]
        if not isinstance(kind, _Global) or not isinstance(key, str):
            raise InputError("it is damaged (a storage without a type)")
        storage = Storage(key, _count(items), STORAGE_ITEM_BYTES[kind.name])
        if self.contents.storages.setdefault(key, storage) != storage:
            raise InputError("it is damaged (a storage is described in two ways)")
        view = identity[5] if len(identity) > 5 else None  # written before torch 0.4 only
        if view is not None:
            raise InputError("it was written by a torch older than 0.4; save it again with a newer")
        self.stack.append(storage)


_INTEGERS = {"BININT", "BININT1", "BININT2", "LONG1"}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
