"""Files and folders as blocks of bytes, and as copies that the processes of a machine share.

``pack`` reads a file or folder once and hands its content on in blocks; ``local_copy`` writes them
down once on a machine, under the hash of the content, however many processes want it at once. What
carries the blocks from one to the other is the caller's matter.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any

import msgspec

from bezoar.places import place_of

BLOCK = 32 << 20
KEPT = 20 << 30  # bytes of copies that stay on a machine for later tasks


class Package(msgspec.Struct, frozen=True, kw_only=True):
    """A file or folder whose content lies somewhere else.

    Attributes:
        key: hash of the name and the content.
        name: of the file or folder.
        size: bytes of the content.
        entries: where the list of its parts lies, as ``listing`` gives it.
        blocks: where their bytes lie, one after another, in order.
    """

    key: str
    name: str
    size: int
    entries: Any
    blocks: list[Any]


def pack(path: Path, put: Callable[[Any], Any], pattern: str | None = None) -> Package:
    """Reads the file or folder; ``put`` stores a thing and returns what stands for it.

    With a pattern the folder counts as if it held only what ``listing`` then finds in it.

    Raises:
        OSError: there is nothing, it cannot be read, or it changed meanwhile.
    """
    path = place_of(path)
    entries = listing(path, pattern)
    digest = hashlib.sha256(json.dumps([path.name, entries]).encode())
    blocks = []
    for block in _content(path, entries):
        digest.update(block)
        blocks.append(put(block))
    size = sum(size or 0 for _, size in entries)
    return Package(
        key=digest.hexdigest(), name=path.name, size=size, entries=put(entries), blocks=blocks
    )


def listing(path: Path, pattern: str | None = None) -> list[tuple[str, int | None]]:
    """What a file or folder consists of: (path inside, bytes), None for a folder; sorted.

    The file or folder itself has the path ".". Links are followed. A pattern chooses among what
    lies directly in the folder, as ``glob`` does.

    Raises:
        OSError: there is nothing there, or it cannot be read.
    """
    if not path.is_dir():
        return [(".", path.stat().st_size)]
    chosen = None if pattern is None else set(glob.glob(pattern, root_dir=path))  # noqa: PTH207 (readers expand patterns by it too)
    found: list[tuple[str, int | None]] = [(".", None)]
    waiting: list[tuple[Path, tuple[str, ...]]] = [(path, (os.path.realpath(path),))]
    while waiting:
        folder, above = waiting.pop()
        for child in folder.iterdir():
            inside = child.relative_to(path).as_posix()
            if folder == path and chosen is not None and inside not in chosen:
                continue
            if child.is_dir():
                place = os.path.realpath(child)
                if place not in above:  # a link to a folder that it lies in
                    found.append((inside, None))
                    waiting.append((child, (*above, place)))
            elif child.is_file():
                found.append((inside, child.stat().st_size))
    return sorted(found)


def _content(path: Path, entries: Iterable[tuple[str, int | None]]) -> Iterator[bytes]:
    """The bytes of all files, one after another, in blocks."""
    collected = bytearray()
    for inside, size in entries:
        if size is None:
            continue
        left = size
        with (path / inside).open("rb") as file:
            while left:
                part = file.read(min(left, BLOCK - len(collected)))
                if not part:
                    raise OSError(f"{path / inside} became shorter while it was read")
                collected += part
                left -= len(part)
                if len(collected) == BLOCK:
                    yield bytes(collected)
                    collected.clear()
    if collected:
        yield bytes(collected)


@contextlib.contextmanager
def local_copy(
    package: Package, root: Path, get: Callable[[Any], Any], *, kept: int = KEPT
) -> Iterator[Path]:
    """A copy of the file or folder below ``root``, made if there is none; it stays for the block.

    Afterwards it may give way to others, the one longest unused first.

    Args:
        package: what is wanted.
        root: a folder of this machine.
        get: returns what ``put`` has stored.
        kept: bytes of copies below which nothing gives way.

    Raises:
        OSError: it cannot be written.
    """
    import fcntl  # POSIX only, as is the executor that needs copies

    root.mkdir(parents=True, exist_ok=True)
    folder = root / package.key
    with _lock_of(folder).open("a+") as lock:
        while True:
            fcntl.flock(lock, fcntl.LOCK_SH)  # nobody removes it as long as somebody reads it
            if folder.is_dir():
                break
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not folder.is_dir():
                _make_room(root, kept - package.size)
                _write(package, folder, get)
                lock.truncate(0)
                lock.write(str(package.size))
                lock.flush()
        os.utime(lock.fileno())
        yield folder / package.name


def _lock_of(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.lock")


def _partial_of(folder: Path) -> Path:
    """What is not yet, or no longer, whole; one at a time, as the lock is held."""
    return folder.with_name(f".{folder.name}.part")


def _write(package: Package, folder: Path, get: Callable[[Any], Any]) -> None:
    """Writes beside ``folder`` and renames."""
    partial = _partial_of(folder)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        stream = _Stream(get(block) for block in package.blocks)
        for inside, size in get(package.entries):
            path = partial / package.name / inside
            if size is None:
                path.mkdir()
            else:
                with path.open("wb") as file:
                    stream.copy(size, file)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


class _Stream:
    """Blocks as one stream of bytes."""

    def __init__(self, blocks: Iterator[bytes]) -> None:
        self.blocks = blocks
        self.rest = memoryview(b"")

    def copy(self, size: int, file: IO[bytes]) -> None:
        while size:
            if not self.rest:
                self.rest = memoryview(next(self.blocks))
            part = self.rest[:size]
            file.write(part)
            self.rest = self.rest[len(part) :]
            size -= len(part)


def _make_room(root: Path, kept: int) -> None:
    """Removes copies that nobody reads, the longest unused first, until ``kept`` bytes are left."""
    import fcntl

    copies = sorted(root.glob("*.lock"), key=lambda lock: lock.stat().st_mtime)
    sizes = {lock: int(lock.read_text() or 0) for lock in copies}
    total = sum(sizes.values())
    for path in copies:
        if total <= kept:
            return
        with path.open("a+") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            folder = path.with_suffix("")
            partial = _partial_of(folder)
            with contextlib.suppress(OSError):  # not there: an earlier removal was cut short
                folder.rename(partial)  # a half removed folder must not pass for a copy
            shutil.rmtree(partial, ignore_errors=True)
            lock.truncate(0)
            total -= sizes[path]
