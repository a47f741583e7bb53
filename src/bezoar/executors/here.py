"""Tasks in this very process, one after another: for debugging and for tests."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator

import msgspec

from bezoar.executors.contract import Outcome, Progress, Task, decoded, distinct, importable_name
from bezoar.executors.worker import execute, receiving


class HereExecutor(msgspec.Struct, frozen=True, kw_only=True):
    """No process, no limit: a debugger sees the task, and a task that dies takes all with it.

    What comes back is the same as elsewhere: exceptions are ``Failed``, values are as JSON keeps
    them. Ctrl-C ends the run.
    """

    def run(
        self, tasks: Iterable[Task], *, progress: Progress | None = None
    ) -> Iterator[tuple[str, Outcome]]:
        """Yields (key, outcome) as tasks finish, in their order: see ``Executor.run``."""
        for task in distinct(tasks):
            yield task.key, _outcome(task, progress)


def _outcome(task: Task, progress: Progress | None) -> Outcome:
    broken: list[BaseException] = []

    def receive(what: str, share: float) -> None:
        if progress is None:
            return
        try:
            progress(task.key, what, float(share))
        except BaseException as error:  # the caller's, and not the task's to swallow
            broken.append(error)
            raise

    with receiving(receive):
        described = execute(importable_name(task.function), {**task.arguments, **task.files})
    if broken:
        raise broken[0]
    return decoded(json.loads(described))
