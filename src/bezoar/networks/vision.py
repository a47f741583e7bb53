"""torchvision and timm, imported when they are needed and through this one guard.

torchvision's wheel for CUDA does not import beside a CPU build of torch: its compiled part is not
loaded, and then it registers Python code for operators that nobody declared ("operator
torchvision::nms does not exist"). Classification networks do not use these operators, so it is
enough to declare their schemas.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType

import torch

from bezoar.errors import InputError

SYMPTOM = "operator torchvision::nms does not exist"
SCHEMAS = tuple(
    f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor" for name in ("nms", "qnms")
)

# The declarations end with the library object, so it lives as long as the process.
_declarations: list[torch.library.Library] = []


def import_torchvision() -> ModuleType:
    """Returns the torchvision package, also where it was built for another kind of torch.

    Raises:
        InputError: it is not installed, or does not work with this torch.
    """
    try:
        return _import("torchvision")
    except RuntimeError as error:
        if SYMPTOM not in str(error):
            raise InputError(
                f"torchvision does not work with torch {torch.__version__}: {error}; install the "
                "versions that belong together"
            ) from error
    for name in [n for n in sys.modules if n == "torchvision" or n.startswith("torchvision.")]:
        del sys.modules[name]
    if not _declarations:
        library = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
        for schema in SCHEMAS:
            library.define(schema)  # type: ignore[no-untyped-call]
        _declarations.append(library)
    return _import("torchvision")


def import_timm() -> ModuleType:
    """Returns the timm package.

    Raises:
        InputError: it is not installed.
    """
    import_torchvision()  # timm imports it, without the guard
    return _import("timm")


def _import(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise InputError(
            f"{name} is needed for this architecture and cannot be imported ({error}); install it, "
            "in your copy of bezoar, with: pip install -c constraints.txt -e '.[vision]'"
        ) from error
