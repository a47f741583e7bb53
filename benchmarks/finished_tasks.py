"""The tasks of a measuring script, run side by side; one that fails is told and costs only itself.

``bezoar.executors`` runs them; a script writes each value at once and leaves what failed to a
rerun.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from bezoar.executors import Done, Task, make_executor

LONGEST = 3600  # seconds of one task


def finished(tasks: Iterable[Task], executor: str) -> Iterator[tuple[str, Any]]:
    """The key and the value of each task that was done, as they end.

    Args:
        tasks: what to run.
        executor: where, and how many side by side, such as ``local:2``.
    """
    for key, outcome in make_executor(executor, timeout_s=LONGEST, reuse=True).run(list(tasks)):
        if isinstance(outcome, Done):
            yield key, outcome.value
        else:
            print(key, outcome.message, outcome.traceback, flush=True)
