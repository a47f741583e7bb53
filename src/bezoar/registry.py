"""Name → thing, filled by one decorator; the command line, the docs and the tests read it."""

from __future__ import annotations

import difflib
import fnmatch
import importlib.metadata
from collections.abc import Callable
from typing import Generic, TypeVar

from bezoar.errors import InputError

T = TypeVar("T")


class Registry(Generic[T]):
    """A catalogue of one kind of thing ("method", "attack", "network").

    Packages outside bezoar add to it through the entry-point group ``bezoar.<kind>s``: the entry
    point names a module, and importing it runs its decorators.

    >>> colours = Registry("colour")
    >>> @colours.register("red")
    ... class Red: ...
    >>> colours.get("red").__name__
    'Red'
    >>> colours.get("rad")
    Traceback (most recent call last):
    ...
    bezoar.errors.InputError: there is no colour 'rad'; perhaps you meant 'red' (known: red)
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._things: dict[str, T] = {}
        self._plugins_loaded = False

    def register(self, name: str) -> Callable[[T], T]:
        """Returns a decorator that enters its argument under ``name``."""

        def enter(thing: T) -> T:
            if name in self._things:
                raise ValueError(f"the {self.kind} {name!r} is registered twice")
            self._things[name] = thing
            return thing

        return enter

    def names(self, pattern: str = "*") -> list[str]:
        """The names that match a shell pattern, sorted."""
        self._load_plugins()
        return sorted(fnmatch.filter(self._things, pattern))

    def get(self, name: str) -> T:
        """Returns the thing called ``name``.

        Raises:
            InputError: nothing has that name; the message names the nearest ones.
        """
        self._load_plugins()
        if name in self._things:
            return self._things[name]
        near = difflib.get_close_matches(name, self._things, n=1)
        hint = f"; perhaps you meant {near[0]!r}" if near else ""
        raise InputError(
            f"there is no {self.kind} {name!r}{hint} (known: {', '.join(sorted(self._things))})"
        )

    def _load_plugins(self) -> None:
        if self._plugins_loaded:
            return
        self._plugins_loaded = True
        for entry in importlib.metadata.entry_points(group=f"bezoar.{self.kind}s"):
            entry.load()
