"""What an executor takes and gives: tasks and outcomes."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal, Protocol

import msgspec

from bezoar.errors import InputError

Progress = Callable[[str, str, float], None]
"""Called with the key of a task, what it is doing and the share that is finished, in [0, 1]."""


class Task(msgspec.Struct, frozen=True, kw_only=True):
    """One call in a process of its own.

    Attributes:
        key: the name of this task among its like.
        function: a function at the top level of a module that the process can import.
        arguments: its keyword arguments; what JSON can hold.
        files: further arguments: argument name → path of a file or folder that the function reads
            and leaves as it is. The function is given a path, as text, with the same last name:
            this one, or on another machine that of a copy.
        patterns: name in ``files`` → which of what lies directly in that folder the function reads,
            as ``glob`` chooses; a copy need not hold the rest.
    """

    key: str
    function: Callable[..., Any]
    arguments: dict[str, Any] = {}
    files: dict[str, str] = {}
    patterns: dict[str, str] = {}

    def __post_init__(self) -> None:
        importable_name(self.function)
        for name, path in self.files.items():
            if not isinstance(path, str) or not path:
                raise InputError(
                    f"the file {name!r} of task {self.key!r} is {path!r}; expected a path as text"
                )
            if name in self.arguments:
                raise InputError(
                    f"task {self.key!r} gives {name!r} twice, as an argument and as a file; give "
                    "it once"
                )
        try:
            json.dumps(self.arguments)
        except (TypeError, ValueError) as error:
            raise InputError(
                f"the arguments of task {self.key!r} cannot be sent to another process ({error}); "
                "expected what JSON can hold: numbers, text, lists and dicts of them"
            ) from error


class Done(msgspec.Struct, frozen=True, kw_only=True):
    """The function returned.

    Attributes:
        value: what it returned, as JSON keeps it (a tuple becomes a list).
        seconds: how long it ran, with the import of its module.
    """

    value: Any
    seconds: float


class Failed(msgspec.Struct, frozen=True, kw_only=True):
    """The function did not return.

    Attributes:
        kind: "error" is an exception in the function (also when its module could not be imported
            or its value is no JSON), "crash" the death of the process, "timeout" its end by us.
        message: one sentence.
        traceback: of the exception, or the last lines of the dead process's standard error.
        seconds: from the start of the task; with Ray, for the loss of a node, from when it was
            handed over.
    """

    kind: Literal["error", "crash", "timeout"]
    message: str
    traceback: str
    seconds: float


Outcome = Done | Failed


class Executor(Protocol):
    """Runs many independent tasks; one that fails does not touch the others."""

    def run(
        self, tasks: Iterable[Task], *, progress: Progress | None = None
    ) -> Iterator[tuple[str, Outcome]]:
        """Yields (key, outcome) as tasks finish, in any order; closing it ends those that run.

        Raises:
            InputError: two tasks have the same key.
        """
        ...


def distinct(tasks: Iterable[Task]) -> list[Task]:
    """The tasks as a list, after checking that every key is there once."""
    listed = list(tasks)
    seen: set[str] = set()
    for task in listed:
        if task.key in seen:
            raise InputError(f"two tasks have the key {task.key!r}; give each a key of its own")
        seen.add(task.key)
    return listed


def decoded(outcome: dict[str, Any]) -> Outcome:
    """The outcome that ``worker.execute`` described."""
    if outcome["kind"] == "done":
        return Done(value=outcome["value"], seconds=outcome["seconds"])
    return Failed(**outcome)


def importable_name(function: Callable[..., Any]) -> str:
    """The name "module:function" under which another process finds ``function``.

    Raises:
        InputError: there is no such name.

    >>> importable_name(json.dumps)
    'json:dumps'
    """
    module = getattr(function, "__module__", None)
    name = getattr(function, "__qualname__", None)
    found: Any = None
    if module is not None and name is not None:
        found = functools.reduce(
            lambda thing, part: getattr(thing, part, None),
            name.split("."),
            sys.modules.get(module),
        )
    if found is not function or module == "__main__":
        raise InputError(
            f"another process cannot import {name or function!r} from {module!r}; expected a "
            "function at the top level of a module, not of the script itself, a lambda or a "
            "function within another"
        )
    return f"{module}:{name}"
