"""The hidden folder in which a model is written before it gets its name, of one process alone."""

from __future__ import annotations

import contextlib
import glob
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def part_of(out: Path) -> Iterator[Path]:
    """A new folder beside ``out``, to be renamed to it; otherwise it is gone after the block.

    Other processes may be making the same model, and each has one of its own. It is locked as long
    as its process lives, so that the next one clears away what a killed process left, and nothing
    else.

    Raises:
        OSError: it cannot be made.
    """
    _clear(out)
    fresh = out.with_name(f".{out.name}.{secrets.token_hex(8)}")
    part = fresh.with_name(f"{fresh.name}.part")
    fresh.mkdir()
    held = os.open(fresh, os.O_RDONLY)
    try:
        _lock(held)
        fresh.rename(part)  # only now it can be taken for one that was left
        yield part
    finally:
        os.close(held)
        for folder in (fresh, part):
            shutil.rmtree(folder, ignore_errors=True)


def _clear(out: Path) -> None:
    for left in out.parent.glob(f".{glob.escape(out.name)}.*.part"):
        with contextlib.suppress(OSError):  # locked, or another process is clearing it
            held = os.open(left, os.O_RDONLY)
            try:
                _lock(held)
                shutil.rmtree(left)
            finally:
                os.close(held)


def _lock(held: int) -> None:
    """Locks an open folder.

    Raises:
        OSError: another process holds it.
    """
    import fcntl  # POSIX only, as are the executors that make pools

    fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
