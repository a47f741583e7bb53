"""The command line: how a command is run, and what it leaves with.

Little is imported before ``run`` can catch what happens, such as Ctrl-C while the rest is imported:
Python would leave with 1, which says that something was found.
"""

from __future__ import annotations

import os
import sys

from bezoar.commands.exit_codes import OK, UNUSABLE
from bezoar.errors import InputError

OUT_OF_MEMORY = (
    "there is not enough memory for this; give fewer images (--limit) or smaller ones "
    "(--input-size), or run it where there is more (--device)"
)


def main(arguments: list[str] | None = None) -> None:
    """The entry point of the ``bezoar`` command; leaves with its exit code."""
    sys.exit(run(arguments))


def run(arguments: list[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    # Threads that wait by spinning slow a busy machine down many times over; torch reads this when
    # it is imported, which happens below.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    reason: str | None
    try:
        code = _obey(sys.argv[1:] if arguments is None else arguments)
        sys.stdout.flush()  # a full disk shows here, and not when the interpreter ends
        return code
    except KeyboardInterrupt:
        reason = "interrupted; no file is half-written."
    except BrokenPipeError:
        reason = None  # nobody reads on
    except (InputError, OSError) as error:
        reason = str(error)
    except Exception as error:
        reason = OUT_OF_MEMORY if _out_of_memory(error) else _defect()
    _end(reason)
    return UNUSABLE


def _defect() -> str:
    import traceback

    said = "that is a defect of bezoar and no verdict; please report it:\n"
    return said + traceback.format_exc().rstrip()


def _out_of_memory(error: Exception) -> bool:
    """Whether memory was short; torch has an exception of its own for a GPU's alone."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


def _obey(arguments: list[str]) -> int:
    if arguments in (["--version"], ["-V"]):
        from bezoar import __version__
        from bezoar.screen import say

        say(f"bezoar {__version__}")
        return OK
    from bezoar.commands.parsing import parse

    return int(parse(arguments).run())


def _end(reason: str | None) -> None:
    """Says why; a stream that takes nothing more is left, as it would change the exit code."""
    from bezoar.screen import complain

    def last_words() -> None:
        if reason is not None:
            complain(reason)
        sys.stderr.flush()

    for stream, end in ((sys.stdout, sys.stdout.flush), (sys.stderr, last_words)):
        try:
            end()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


if __name__ == "__main__":
    main()
