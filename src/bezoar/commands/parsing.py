"""Which commands there are, and what was typed as one of them."""

from __future__ import annotations

import os
import sys
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
from bezoar.commands.options import Common
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
LARGEST_SEED = 2**62  # further draws add to it
_OF_TWO_WORDS = {
    ("attack", "pool"),
    ("bench", "run"),
    ("bench", "table"),
    ("generator", "train"),
    ("generator", "show"),
}


def parse(arguments: list[str]) -> Command:
    """The command that was typed.

    Raises:
        SystemExit: help was asked for and is on the screen, or what is wrong with the arguments.
        OSError: it could not be shown there.
        InputError: the seed is out of range.
    """
    if tuple(arguments[:2]) in _OF_TWO_WORDS:
        arguments = [" ".join(arguments[:2]), *arguments[2:]]
    _colour_the_help(not os.environ.get("NO_COLOR"))
    try:
        command = tyro.cli(
            Command,
            prog="bezoar",
            description="Find the backdoor in an image classifier, remove it, show the evidence.",
            args=arguments,
            config=(tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff),
        )
    except SystemExit:
        sys.stdout.flush()  # what nobody takes shows here, and not when the interpreter ends
        raise
    if isinstance(command, Common) and not 0 <= command.seed <= LARGEST_SEED:
        raise InputError(f"--seed is {command.seed}; expected a number from 0 to {LARGEST_SEED}")
    return command


def _colour_the_help(wanted: bool) -> None:
    """Keeps to no-color.org, which tyro 1.0 does not; a tyro without the switch stays as it is."""
    switches = getattr(tyro, "_experimental_options", {})
    if "ansi_codes" in switches:
        switches["ansi_codes"] = wanted
