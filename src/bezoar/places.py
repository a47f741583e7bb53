"""Where a path leads, without losing the name that the user gave it."""

from __future__ import annotations

from pathlib import Path


def place_of(path: Path) -> Path:
    """The absolute path without ``..``, as the system reads it; its last name is kept.

    The system follows a link before it goes up: shortened as text, ``link/../x`` to ``x``, a path
    may lead to another file. A link's own name says more than that of a file in some store, so
    links are followed no further than that.

    >>> place_of(Path("/models/../model.pt")).as_posix()
    '/model.pt'
    """
    path = path.absolute()
    if ".." not in path.parts:
        return path
    return path.resolve() if path.name == ".." else path.parent.resolve() / path.name
