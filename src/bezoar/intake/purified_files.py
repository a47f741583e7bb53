"""Writing a network behind a purifier: one file of weights, and the source that loads it.

The file holds the state dict of a ``Purified``: ``network.*``, the weights in the number formats of
the file they came from, ``purifier.*``, ``mean``, ``std``, and ``configuration``. Beside it, with
the ending ``.py``, goes a module that needs only torch; its ``load`` puts the two together with the
network's own class.
"""

from __future__ import annotations

from pathlib import Path

from bezoar.errors import InputError
from bezoar.intake import standalone
from bezoar.intake.matching import converted, matching_names
from bezoar.intake.weights import WeightsFile
from bezoar.intake.writing import check_writable, save, save_safetensors, save_torch
from bezoar.networks.purified import Purified

SUFFIXES = (".safetensors", ".pt", ".pth")


def source_beside(out: str | Path) -> Path:
    """Where the source goes that loads the file ``out``."""
    return Path(out).with_suffix(".py")


def check_purified_writable(out: str | Path, source: WeightsFile) -> None:
    """Finds out before expensive work whether ``write_purified`` could write to ``out``.

    Raises:
        InputError: as ``check_writable``, for both files; the ending of ``out`` names no container;
            or there is a ``.py`` beside it that bezoar has not made.
    """
    if Path(out).suffix.lower() not in SUFFIXES:
        raise InputError(
            f"{out} is to hold a purified model, and its ending tells how; give a name that ends "
            f"in {', '.join(SUFFIXES)}"
        )
    check_writable(out, source)
    beside = source_beside(out)
    check_writable(beside, source)
    if beside.exists() and not _made_here(beside):
        raise InputError(
            f"{beside} would be replaced by the source that loads {Path(out).name}, and was not "
            "made by bezoar; give --out another name"
        )


def write_purified(source: WeightsFile, purified: Purified, out: str | Path) -> None:
    """Writes a purified network and, beside it, the source that loads it with torch alone.

    Args:
        source: the file that the network was read from, purified or not; it is never overwritten,
            and its number formats are kept.
        purified: the network of that file, changed or not, and its purifier.
        out: the file to write, ``.safetensors``, ``.pt`` or ``.pth``; the source has its name with
            the ending ``.py``. Each appears complete or not at all.

    Raises:
        InputError: names or shapes of the network differ from the source, a value does not fit the
            source's number format, or a file cannot be written.
    """
    check_purified_writable(out, source)
    state = purified.state_dict()
    # A source that was purified already has the same names, unless one more purifier was added.
    again = source.tensors.keys() <= state.keys()
    known = matching_names(source, state if again else purified.network.state_dict())
    dtypes = {name if again else f"network.{name}": own for name, own in known.items()}
    tensors = {
        name: converted(
            tensor, source.tensors[dtypes[name]].dtype if name in dtypes else tensor.dtype, name
        )
        for name, tensor in state.items()
    }
    save(source_beside(out), lambda stream: stream.write(standalone.source().encode()))
    if Path(out).suffix.lower() == ".safetensors":
        save_safetensors(tensors, out)
    else:
        save_torch({name: tensor.clone() for name, tensor in tensors.items()}, out)


def _made_here(path: Path) -> bool:
    with path.open("rb") as stream:
        return stream.read(len(standalone.MARK)) == standalone.MARK.encode()
