"""Writing what the user asked for, and checking before the work that it can be written."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bezoar.errors import InputError

if TYPE_CHECKING:
    from bezoar.images import ImageSet
    from bezoar.intake import LoadedModel
    from bezoar.methods import Evidence
    from bezoar.report import Picture
    from bezoar.report.contact_sheet import ContactSheet


def check_outputs(*outputs: Path | str | None, inputs: tuple[Path | str, ...] = ()) -> None:
    """An output that cannot be written should be known before the work, not after it.

    An output that would replace an input, or another output, counts as one.
    """
    taken = {
        os.path.realpath(path): "is read by this command and never overwritten" for path in inputs
    }
    for output in outputs:
        if output is None or output == "-":
            continue
        path = Path(output)
        if path.is_dir():
            raise InputError(f"{path} is a folder; give the name of a file to write")
        if not path.parent.is_dir():
            raise InputError(
                f"{path} cannot be written: the folder {path.parent} does not exist; create it, or "
                "give another file"
            )
        special = path.exists() and not path.is_file()  # a device or a pipe is written to as it is
        if not special and not os.access(path.parent, os.W_OK):
            raise InputError(
                f"{path} cannot be written: no files can be made in {path.parent}; give a file in "
                "a folder that you may write to"
            )
        place = os.path.realpath(path)
        if place in taken:
            raise InputError(f"{path} {taken[place]}; give another name for the output")
        taken[place] = "is given for two outputs"


@contextlib.contextmanager
def every_output() -> Iterator[Callable[[], AbstractContextManager[None]]]:
    """Gives what an output is attempted in: one that fails costs no other, nor what was found.

    Raises:
        InputError: some failed; it says why each did. One error alone is raised as it is.
    """
    errors: list[InputError | OSError] = []

    @contextlib.contextmanager
    def attempt() -> Iterator[None]:
        try:
            yield
        except (InputError, OSError) as error:
            errors.append(error)

    yield attempt
    if len(errors) == 1:
        raise errors[0]
    if errors:
        raise InputError("\n".join(map(str, errors)))


def write_record(target: str | None, record: dict[str, Any]) -> None:
    """Writes the record to the file ``target``; ``-`` is standard output, None is nowhere."""
    if target is None:
        return
    from bezoar.records import to_json, write_json

    if target == "-":
        sys.stdout.write(json.dumps(to_json(record), indent=1, allow_nan=False) + "\n")
    else:
        write_json(Path(target), record)


def command_line() -> str:
    """The command as it was typed, for the record."""
    return shlex.join(["bezoar", *sys.argv[1:]])


def add_sources(record: dict[str, Any], loaded: LoadedModel, images: str | None) -> None:
    """Adds to a record where the model and the images came from."""
    record["model"] |= loaded.as_record()
    if images is not None:
        record["images"]["source"] = images
    record["notices"] = [*record.get("notices", []), *loaded.notices]


def write_report(
    path: Path,
    record: dict[str, Any],
    images: ImageSet | None,
    loaded: LoadedModel,
    evidence: Sequence[Evidence],
    synthetic: ImageSet | None = None,
) -> None:
    """Renders the record of a scan or a repair with pictures and writes the page.

    The pictures show what the scan (before the repair) recovered, images of its suspects, and the
    images that a repair made up.
    """
    from bezoar.report.contact_sheet import contact_sheet
    from bezoar.report.examples import examples
    from bezoar.report.trigger_pictures import triggers

    scan = record.get("scan", record)
    pictures = []
    if images is not None and scan is not None:
        suspects = scan["suspects"]
        pictures += triggers(loaded.classifier, images, evidence, suspects)
        pictures += examples(loaded.classifier, images, suspects)
    sheet = None if synthetic is None else contact_sheet(loaded.classifier, synthetic)
    write_page(path, record, pictures, sheet)


def write_page(
    path: Path,
    record: dict[str, Any],
    pictures: Sequence[Picture] = (),
    sheet: ContactSheet | None = None,
) -> None:
    """Renders a record, with whatever pictures there are, and writes the page."""
    from bezoar import report
    from bezoar.records import to_json

    report.write(path, report.render(to_json(record), pictures, sheet))
