"""The command line: which commands there are, and how one is run."""

from __future__ import annotations

import os
import sys
import traceback
from typing import Annotated

import tyro

from bezoar.commands.attack import Attack, AttackPool
from bezoar.commands.bench import BenchRun, BenchTable
from bezoar.commands.clean import Clean
from bezoar.commands.demo import Demo
from bezoar.commands.evaluate import Evaluate
from bezoar.commands.generator import GeneratorShow, GeneratorTrain
from bezoar.commands.inspect import Inspect
from bezoar.commands.lists import Attacks, Methods
from bezoar.commands.options import OK, UNUSABLE
from bezoar.commands.scan import Scan
from bezoar.commands.sift import Sift
from bezoar.commands.synthesize import Synthesize
from bezoar.errors import InputError

Command = (
    Annotated[Demo, tyro.conf.subcommand("demo")]
    | Annotated[Inspect, tyro.conf.subcommand("inspect")]
    | Annotated[Scan, tyro.conf.subcommand("scan")]
    | Annotated[Sift, tyro.conf.subcommand("sift")]
    | Annotated[Clean, tyro.conf.subcommand("clean")]
    | Annotated[Synthesize, tyro.conf.subcommand("synthesize")]
    | Annotated[Evaluate, tyro.conf.subcommand("evaluate")]
    | Annotated[Attack, tyro.conf.subcommand("attack")]
    | Annotated[AttackPool, tyro.conf.subcommand("attack pool")]
    | Annotated[BenchRun, tyro.conf.subcommand("bench run")]
    | Annotated[BenchTable, tyro.conf.subcommand("bench table")]
    | Annotated[GeneratorTrain, tyro.conf.subcommand("generator train")]
    | Annotated[GeneratorShow, tyro.conf.subcommand("generator show")]
    | Annotated[Methods, tyro.conf.subcommand("methods")]
    | Annotated[Attacks, tyro.conf.subcommand("attacks")]
)
_OF_TWO_WORDS = {
    ("attack", "pool"),
    ("bench", "run"),
    ("bench", "table"),
    ("generator", "train"),
    ("generator", "show"),
}


def main(arguments: list[str] | None = None) -> None:
    """The entry point of the ``bezoar`` command; leaves with its exit code."""
    sys.exit(run(arguments))


def run(arguments: list[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    # Threads that wait by spinning slow a busy machine down many times over; torch reads this when
    # it is imported, which happens below.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    given = sys.argv[1:] if arguments is None else arguments
    if given in (["--version"], ["-V"]):
        from bezoar import __version__

        print(f"bezoar {__version__}")
        return OK
    if tuple(given[:2]) in _OF_TWO_WORDS:
        given = [" ".join(given[:2]), *given[2:]]
    _colour_the_help(not os.environ.get("NO_COLOR"))
    command = tyro.cli(
        Command,
        prog="bezoar",
        description="Find the backdoor in an image classifier, remove it, show the evidence.",
        args=given,
        config=(tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff),
    )
    try:
        code = int(command.run())
        sys.stdout.flush()  # a full disk shows here, and not when the interpreter ends
        return code
    except InputError as error:
        print(f"bezoar: {error}", file=sys.stderr)
        return UNUSABLE
    except KeyboardInterrupt:
        print("bezoar: interrupted; no file is half-written.", file=sys.stderr)
        return UNUSABLE
    except BrokenPipeError:
        _silence()
        return UNUSABLE
    except OSError as error:
        _silence()
        print(f"bezoar: {error}", file=sys.stderr)
        return UNUSABLE
    except Exception:  # else Python would leave with 1, which says that something was found
        traceback.print_exc()
        print(
            "bezoar: that is a defect of bezoar and no verdict; please report it.", file=sys.stderr
        )
        return UNUSABLE


def _colour_the_help(wanted: bool) -> None:
    """Keeps to no-color.org, which tyro 1.0 does not; a tyro without the switch stays as it is."""
    switches = getattr(tyro, "_experimental_options", {})
    if "ansi_codes" in switches:
        switches["ansi_codes"] = wanted


def _silence() -> None:
    """Nothing more is written to the standard output, which takes nothing more."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    main()
