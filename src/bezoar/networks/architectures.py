"""Networks by name: ``timm:NAME``, ``torchvision:NAME``, ``bezoar:NAME``, ``file.py:function``.

No weights are ever downloaded; they come from the user's file. A ``file.py:function`` architecture
is the user's own code and is executed: name only files that you would run yourself.
"""

from __future__ import annotations

import ast
import contextlib
import difflib
import importlib.util
import inspect
import itertools
import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from bezoar import networks
from bezoar.errors import InputError
from bezoar.networks.vision import import_timm, import_torchvision

FORMS = "timm:NAME, torchvision:NAME, bezoar:NAME or path/to/file.py:function"
CHANNEL_NAMES = ("in_chans", "in_channels", "channels", "num_channels")
PRETRAINED_NAMES = (
    "pretrained",
    "weights",
    "weights_backbone",
    "pretrained_cfg",
    "checkpoint_path",
)

# Of what an architecture's file may import so many files and folders are looked at (ours).
_MOST_FILES, _MOST_FOLDERS = 1000, 10_000
_ENVIRONMENTS = ("pyvenv.cfg", "conda-meta")  # what tells the folder of one

_module_numbers = itertools.count()


def runs_a_file(architecture: str) -> bool:
    """Whether building it runs a Python file that is no installed package: ``file.py:function``.

    >>> runs_a_file("nets/mine.py:build"), runs_a_file("timm:resnet18")
    (True, False)
    """
    installed = architecture.partition(":")[0] in ("timm", "torchvision", "bezoar")
    return not installed and architecture.rpartition(":")[0].endswith(".py")


def build_network(
    architecture: str,
    arguments: Mapping[str, Any] | None = None,
    *,
    num_classes: int | None = None,
    channels: int | None = None,
) -> nn.Module:
    """Builds an untrained network; torch's global random generator is left as it was.

    Args:
        architecture: one of the four forms. A path is relative to the working directory.
        arguments: keyword arguments for the network's function.
        num_classes: passed on where the function takes it and ``arguments`` does not say it.
        channels: the same, under whichever name the function has for it.

    Raises:
        InputError: the name, file, function or an argument is not known, or the function failed.

    >>> build_network("bezoar:resnet-8", num_classes=4)(torch.zeros(1, 3, 32, 32)).shape
    torch.Size([1, 4])
    """
    given = dict(arguments or {})
    wanted = {"num_classes": num_classes, "channels": channels}
    kind, separator, name = architecture.partition(":")
    with torch.random.fork_rng(devices=[]):
        if separator and kind == "timm":
            return _timm(name, given, wanted)
        if separator and kind == "torchvision":
            return _torchvision(name, given, wanted)
        if separator and kind == "bezoar":
            return _call(architecture, networks.networks.get(name), given, wanted)
        path, _, function = architecture.rpartition(":")
        if path.endswith(".py"):
            return _from_file(Path(path), function, given, wanted)
    if architecture.endswith(".py"):
        known = _functions_in(Path(architecture))
        raise InputError(
            f"architecture {architecture!r} does not say which function builds the network; give "
            f"{architecture}:FUNCTION with one of: {', '.join(known) or 'none found'}"
        )
    near = difflib.get_close_matches(kind, ("timm", "torchvision", "bezoar"), n=1)
    hint = f"; perhaps you meant '{near[0]}:{name}'" if near and separator else ""
    raise InputError(f"there is no architecture {architecture!r}; expected {FORMS}{hint}")


def sources_beside(path: Path) -> list[Path]:
    """The other Python files that the file of a ``file.py:function`` may import, nearest first.

    They lie beside it or below. Hidden folders, caches and environments are left out, and what
    comes after the first thousand.
    """
    path = path.resolve()
    found: list[Path] = []
    seen: set[str] = set()
    waiting = deque([path.parent])
    while waiting and len(seen) < _MOST_FOLDERS and len(found) < _MOST_FILES:
        folder = waiting.popleft()
        # A link to a folder above would otherwise never end.
        if (place := os.path.realpath(folder)) in seen:
            continue
        seen.add(place)
        try:
            children = sorted(folder.iterdir())
        except OSError:
            continue  # Python cannot import from it either
        for child in children:
            if child.name.startswith(".") or child.name == "__pycache__":
                continue
            if child.is_dir():
                if not any((child / sign).exists() for sign in _ENVIRONMENTS):
                    waiting.append(child)
            elif child.suffix == ".py" and child != path:
                found.append(child)
    return found[:_MOST_FILES]


def _timm(name: str, given: dict[str, Any], wanted: Mapping[str, int | None]) -> nn.Module:
    _refuse_pretrained(given, f"timm:{name}")
    timm = import_timm()
    # A tag after the dot names weights ("resnet18.a1_in1k"); a network is the same without it.
    base = name.partition(".")[0]
    if not timm.is_model(base):
        raise _unknown(f"timm:{name}", base, timm.list_models())
    filled = {"num_classes": wanted["num_classes"], "in_chans": wanted["channels"]}
    given = {**{k: v for k, v in filled.items() if v is not None}, **given}

    def create(**options: Any) -> nn.Module:
        return timm.create_model(base, pretrained=False, **options)  # type: ignore[no-any-return]

    return _call(f"timm:{name}", create, given, {})


def _torchvision(name: str, given: dict[str, Any], wanted: Mapping[str, int | None]) -> nn.Module:
    _refuse_pretrained(given, f"torchvision:{name}")
    models = importlib.import_module(import_torchvision().__name__ + ".models")
    known = models.list_models(module=models)
    if name.lower() not in known:
        raise _unknown(f"torchvision:{name}", name, known)
    filled = {"num_classes": wanted["num_classes"]}
    given = {**{k: v for k, v in filled.items() if v is not None}, **given}

    def create(**options: Any) -> nn.Module:
        return models.get_model(name, weights=None, **options)  # type: ignore[no-any-return]

    return _call(f"torchvision:{name}", create, given, {})


def _from_file(
    path: Path, function: str, given: dict[str, Any], wanted: Mapping[str, int | None]
) -> nn.Module:
    if not path.is_file():
        raise InputError(f"there is no file {path}; give the path of a Python file with a network")
    with _imported(path) as module:
        build = getattr(module, function, None) if function.isidentifier() else None
        if not callable(build):
            known = _functions_in(path)
            near = difflib.get_close_matches(function, known, n=1)
            hint = f"perhaps you meant {near[0]!r}; " if near else ""
            raise InputError(
                f"{path} has no function {function!r}; {hint}it has: "
                f"{', '.join(known) or 'no functions or classes'}"
            )
        return _call(f"{path}:{function}", build, given, wanted)


@contextlib.contextmanager
def _imported(path: Path) -> Iterator[ModuleType]:
    """Runs a Python file as a module of its own; what lies beside it can be imported meanwhile.

    Afterwards the modules beside it are forgotten, so that two folders may each have a
    ``layers.py``. What Python finds by another entry of its path stays.
    """
    name = f"bezoar_architecture_{next(_module_numbers)}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise InputError(f"{path} cannot be imported as Python code")
    module = importlib.util.module_from_spec(spec)
    folder = path.resolve().parent
    # Entries that the file adds itself are its own: what it finds there is forgotten too.
    others = _entries_below(folder)
    before = set(sys.modules)
    sys.modules[name] = module  # dataclasses and torch.jit look modules up by name
    sys.path.insert(0, str(folder))
    try:
        try:
            spec.loader.exec_module(module)
        except Exception as error:
            raise InputError(f"{path} cannot be imported: {_said(error)}") from error
        yield module
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(str(folder))
        for other in set(sys.modules) - before - {name}:
            file = getattr(sys.modules[other], "__file__", None)
            if file is None or not (place := Path(file).resolve()).is_relative_to(folder):
                continue
            # An environment in the folder holds libraries, some of which (torchvision, scipy)
            # cannot be imported twice in a process.
            if not any(place.is_relative_to(entry) for entry in others):
                del sys.modules[other]


def _entries_below(folder: Path) -> list[Path]:
    """The entries of Python's path that lie in ``folder``, such as the packages of a ``.venv``."""
    entries = (Path(entry).resolve() for entry in sys.path)
    return [entry for entry in entries if folder in entry.parents]


def _functions_in(path: Path) -> list[str]:
    """The names of the functions and classes a file defines, found without running it."""
    try:
        tree = ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return []
    kinds = (ast.FunctionDef, ast.ClassDef)
    return [n.name for n in tree.body if isinstance(n, kinds) and not n.name.startswith("_")]


def _call(
    label: str,
    function: Callable[..., Any],
    given: dict[str, Any],
    wanted: Mapping[str, int | None],
) -> nn.Module:
    arguments = {**_accepted(function, given, wanted), **given}
    try:
        network = function(**arguments)
    except InputError:
        raise
    except Exception as error:
        shown = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
        raise InputError(f"architecture {label} failed with ({shown}): {_said(error)}") from error
    if not isinstance(network, nn.Module):
        raise InputError(
            f"architecture {label} returned a {type(network).__name__}; expected a torch.nn.Module"
        )
    return network


def _accepted(
    function: Callable[..., Any], given: Mapping[str, Any], wanted: Mapping[str, int | None]
) -> dict[str, Any]:
    """Those of the wanted facts that the function has a named parameter for."""
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):
        return {}
    names = {
        name
        for name, parameter in parameters.items()
        if parameter.kind in (parameter.KEYWORD_ONLY, parameter.POSITIONAL_OR_KEYWORD)
    }
    filled: dict[str, Any] = {}
    for fact, value in wanted.items():
        spelled = CHANNEL_NAMES if fact == "channels" else (fact,)
        taken = [name for name in spelled if name in names]
        if value is not None and taken and not any(name in given for name in taken):
            filled[taken[0]] = value
    return filled


def _refuse_pretrained(given: dict[str, Any], label: str) -> None:
    for name in PRETRAINED_NAMES:
        if given.get(name):
            raise InputError(
                f"architecture {label} got {name}={given[name]!r}; weights come from your file and "
                "are never downloaded, so leave this argument out"
            )
        given.pop(name, None)


def _unknown(label: str, name: str, known: Iterable[str]) -> InputError:
    near = difflib.get_close_matches(name, list(known), n=3)
    hint = f"perhaps you meant {' or '.join(map(repr, near))}" if near else "see its documentation"
    return InputError(f"there is no architecture {label!r}; {hint}")


def _said(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"
