"""An accelerator for machines without one: host memory that goes by another device's name.

It computes what the CPU computes, to the last bit, and refuses what a GPU refuses: tensors of two
devices in one operation, and generators of another device. What only a GPU has, such as its
precision, its speed and its memory, it does not show. ``install`` registers it in this process,
where torch then takes it for the accelerator; it cannot be taken back.
"""

import hashlib
import os
import shutil
import subprocess
import types
from pathlib import Path

import torch
from torch.utils import cpp_extension

NAME = "pretended"
SOURCE = Path(__file__).with_suffix(".cpp")
COMPILER = os.environ.get("CXX", "c++")


def missing():
    """What it needs and is not there, or None."""
    if shutil.which(COMPILER) is None:
        return f"no C++ compiler ({COMPILER}) to build the pretended accelerator with"
    if torch.accelerator.is_available():
        return "this machine has an accelerator of its own; the pretended one would hide it"
    return None


def install(folder):
    """Builds it in ``folder`` and registers it; some twenty seconds the first time."""
    torch.ops.load_library(built(Path(folder)))
    torch.utils.rename_privateuse1_backend(NAME)
    torch._register_device_module(NAME, device_module())
    torch.utils.generate_methods_for_privateuse1_backend(for_module=True, for_storage=True)


def built(folder):
    """The library's path."""
    stamp = hashlib.sha256(SOURCE.read_bytes() + torch.__version__.encode()).hexdigest()[:16]
    library = folder / f"pretended-{stamp}.so"
    if not library.exists():
        made = library.with_suffix(".part")
        includes = [f"-I{path}" for path in cpp_extension.include_paths()]
        libraries = [f"-L{path}" for path in cpp_extension.library_paths()]
        abi = f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}"
        options = ["-std=c++20", "-O1", "-shared", "-fPIC", "-w", "-DAT_PER_OPERATOR_HEADERS", abi]
        files = [str(SOURCE), "-o", str(made), "-ltorch", "-ltorch_cpu", "-lc10"]
        command = [COMPILER, *options, *includes, *libraries, *files]
        subprocess.run(command, check=True)  # noqa: S603 (nothing of it comes from outside)
        made.replace(library)
    return library


def device_module():
    """``torch.pretended``, as far as torch asks for it."""
    calls = torch.ops.pretended
    module = types.ModuleType(f"torch.{NAME}")
    module.is_available = module.is_initialized = lambda: True
    module.device_count = lambda: 1
    module.current_device = lambda: 0
    module._is_in_bad_fork = lambda: False
    module._lazy_init = module.init = lambda: None
    module.synchronize = module.set_device = lambda device=None: None
    module.manual_seed = module.manual_seed_all = calls.manual_seed
    module.get_rng_state = lambda device=None: calls.rng_state()
    module.set_rng_state = lambda state, device=None: calls.set_rng_state(state)
    module.get_amp_supported_dtype = list
    return module
