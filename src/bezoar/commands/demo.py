"""``bezoar demo``."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from bezoar.commands.exit_codes import OK
from bezoar.commands.options import Common
from bezoar.commands.outputs import (
    check_outputs,
    command_line,
    write_record,
)
from bezoar.screen import progress_bar, say


@dataclass(frozen=True, kw_only=True)
class Demo(Common):
    """Poison, scan, clean, check: real handwritten digits, under a minute, with a report.

    Attributes:
        out: folder for the models, the records and the report.
        open: do not show the report in the browser.
    """

    out: Path = Path("bezoar-demo")
    # the help shows --no-open, of which "(default: True)" would say the opposite
    open: Annotated[bool, tyro.conf.arg(help_behavior_hint="")] = True

    def run(self) -> int:
        """Runs the demo."""
        import torch

        from bezoar import demo
        from bezoar.device import resolve_device

        device = resolve_device(self.device)
        torch.set_num_threads(1)  # sharing out 8x8 images costs more than it saves
        # The demo makes its own folder, and the JSON may lie in it.
        if self.json and Path(self.json).parent != self.out:
            check_outputs(self.json)
        with progress_bar(self.silent) as progress:
            record, page = demo.run(
                self.out, seed=self.seed, device=device, progress=progress, command=command_line()
            )
        if not self.silent:
            for line in record["story"]:
                say(line)
            say(f"Report: {page}")
        write_record(self.json, record)
        if self.open and not self.silent and sys.stdout.isatty():
            import webbrowser

            webbrowser.open(page.resolve().as_uri())
        return OK
