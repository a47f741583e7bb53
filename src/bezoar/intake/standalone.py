"""The source that goes beside a purified model: it needs torch, and no bezoar.

It is made of the modules that bezoar itself runs, word for word but for their imports of each
other, so that what is tested is what is delivered.
"""

from __future__ import annotations

import ast
import inspect
from types import ModuleType

import bezoar
from bezoar.networks import generators, purified, trigger_generators

MODULES = (generators, trigger_generators, purified)
MARK = "# Made by bezoar"  # how a file that may be replaced begins


def source() -> str:
    """The text of a module with ``load`` and everything that it needs."""
    parts = [_split(module) for module in MODULES]
    imports = sorted({line for lines, _ in parts for line in lines})
    return "\n".join(
        [
            f"{MARK} {bezoar.__version__} from parts of its own source, which is",
            "# Copyright the bezoar authors and licensed under the Apache License, Version 2.0",
            "# (http://www.apache.org/licenses/LICENSE-2.0), without warranties of any kind.",
            f'"""{purified.__doc__}"""',
            "",
            "from __future__ import annotations",
            "",
            *imports,
            "",
            "InputError = ValueError",
            *(body for _, body in parts),
        ]
    )


def _split(module: ModuleType) -> tuple[list[str], str]:
    """The imports of a module but for those of bezoar, and the text that follows them."""
    text = inspect.getsource(module)
    imports, end = [], 0
    for node in ast.parse(text).body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            end = node.end_lineno or end
            root = (node.module or "") if isinstance(node, ast.ImportFrom) else ""
            if not root.startswith(("bezoar", "__future__")):
                imports.append(ast.unparse(node))
    return imports, "\n".join(text.splitlines()[end:]) + "\n"
