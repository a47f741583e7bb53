"""Decoded images kept on disk: decoding tens of thousands of small files takes many seconds.

One folder an entry, named by a hash over the names, sizes and times of the source files, so that a
changed source is another entry. It is written beside and renamed; reading maps it into memory and
checks the hash over all pixels. A cache that cannot be read or written costs time, never an error;
the folder may be deleted at any time.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from bezoar.images import ImageSet

_FORMAT = 1


def default_folder() -> Path:
    """Where decoded and downloaded images are kept unless the caller says otherwise."""
    return Path("~/.cache/bezoar").expanduser()


def cached(
    make: Callable[[], ImageSet], label: str, sources: Sequence[Path], folder: Path
) -> ImageSet:
    """The images that ``make`` decodes from ``sources``, from the cache if they are there.

    Args:
        make: decodes them.
        label: what they are, apart from the files: the data set, the split, the box; part of the
            entry's name.
        sources: the files they come from.
        folder: of the cache; it need not exist.

    Returns:
        The images; their notices say if the cache was damaged or could not be written.
    """
    entry = folder / "decoded" / f"{label}-{_key(label, sources)}"
    notice = None
    if entry.is_dir():
        try:
            return _read(entry)
        except (OSError, ValueError, KeyError, TypeError, EOFError) as error:
            notice = f"the cached images in {entry} were damaged ({error}) and were decoded again"
            shutil.rmtree(entry, ignore_errors=True)
    images = make()
    try:
        _write(entry, images)
    except OSError as error:
        notice = f"the decoded images could not be kept in {folder}: {error.strerror or error}"
    if notice is not None:
        images.notices = (*images.notices, notice)
    return images


def _key(label: str, sources: Sequence[Path]) -> str:
    facts = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in sources]
    return hashlib.sha256(json.dumps([_FORMAT, label, sorted(facts)]).encode()).hexdigest()[:16]


def _read(entry: Path) -> ImageSet:
    facts = json.loads((entry / "facts.json").read_text(encoding="utf-8"))
    # Mode "c": torch wants memory it may write to; what is written stays private to the process.
    pixels = np.load(entry / "images.npy", mmap_mode="c")
    labels = np.load(entry / "labels.npy") if facts["labelled"] else None
    images = ImageSet(
        torch.from_numpy(pixels),
        None if labels is None else torch.from_numpy(labels),
        facts["classes"],
        notices=facts["notices"],
    )
    if images.sha256() != facts["sha256"]:
        raise ValueError("the hash over its pixels and labels is another")
    return images


def _write(entry: Path, images: ImageSet) -> None:
    entry.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=".part-", dir=entry.parent))
    try:
        np.save(partial / "images.npy", images.images.numpy())
        if images.labels is not None:
            np.save(partial / "labels.npy", images.labels.numpy())
        facts = {
            "labelled": images.labels is not None,
            "classes": images.classes,
            "notices": images.notices,
            "sha256": images.sha256(),
        }
        (partial / "facts.json").write_text(json.dumps(facts), encoding="utf-8")
        try:
            partial.rename(entry)
        except OSError:
            if not entry.is_dir():  # or else another process was faster, and its entry is as good
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
