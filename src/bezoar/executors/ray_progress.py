"""Progress from the nodes of a Ray cluster: an actor collects it, and the driver passes it on."""

from __future__ import annotations

import contextlib
import math
import time
from typing import Any

from bezoar.executors.contract import Progress

_REPORT_S = 0.3  # between two reports of a task on the same thing


class Board:
    """Where tasks on all nodes report, and where this process reads what they do.

    It is an actor on this process's own node, so that it is lost only together with it.
    """

    def __init__(self, ray: Any, progress: Progress) -> None:
        here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
            ray.get_runtime_context().get_node_id(), soft=False
        )
        self.ray, self.progress = ray, progress
        self.actor = ray.remote(num_cpus=0, scheduling_strategy=here)(Reports).remote()

    def pass_on(self) -> None:
        """Calls the progress callback with all that came since the last call."""
        try:
            reports = self.ray.get(self.actor.take.remote())
        except self.ray.exceptions.RayError:  # without it the tasks themselves go on
            return
        for key, what, share in reports:
            self.progress(key, what, share)

    def close(self) -> None:
        """Ends the actor."""
        self.ray.kill(self.actor)


class Reports:
    """The actor: the last word of each task on each thing that it does, until it is taken."""

    def __init__(self) -> None:
        self.reports: dict[tuple[str, str], tuple[str, str, float]] = {}

    def add(self, key: str, what: str, share: float) -> None:
        """Takes a report."""
        stem = _stem(what)
        self.reports.pop((key, stem), None)  # the order is that of the last words
        self.reports[key, stem] = (key, what, share)

    def take(self) -> list[tuple[str, str, float]]:
        """Gives what was not taken yet."""
        taken, self.reports = list(self.reports.values()), {}
        return taken


class Reporter:
    """A task's way to the board: not every word of it, but the first and the last on each thing."""

    def __init__(self, ray: Any, actor: Any, key: str) -> None:
        self.ray, self.actor, self.key = ray, actor, key
        self.what, self.sent = "", -math.inf
        self.held: tuple[str, float] | None = None
        self.reference: Any = None

    def add(self, what: str, share: float) -> None:
        """Sends the report, or holds it until there is a newer one."""
        if self.held is not None and _stem(self.held[0]) != _stem(what):
            self._send(*self.held)
        now = time.monotonic()
        if _stem(what) == self.what and now - self.sent < _REPORT_S and share < 1:
            self.held = (what, share)
            return
        self.sent = now
        self._send(what, share)

    def _send(self, what: str, share: float) -> None:
        self.what, self.held = _stem(what), None
        self.reference = self.actor.add.remote(self.key, what, share)

    def finish(self) -> None:
        """Waits until everything is there, so that no report comes after the outcome."""
        if self.held is not None:
            self._send(*self.held)
        if self.reference is not None:
            with contextlib.suppress(self.ray.exceptions.RayError):
                self.ray.get(self.reference, timeout=5)


def _stem(what: str) -> str:
    return what.partition(" (")[0]  # what is in brackets changes, such as losses
