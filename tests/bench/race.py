# SPDX-License-Identifier: MIT
"""Timing: calls that do the same work run in turn, so that a slow spell of the machine hits all."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from time import perf_counter
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from torch import Tensor

LEAST_CALLS = 3
MOST_CALLS = 50
WARM_UP_CALLS = 1  # after the one whose result is checked


@dataclass(frozen=True)
class Entry:
    """A contestant of one race. tolerance: the largest relative error at which its result counts
    as the right one. Only a peer may be wrong: it is shown as wrong and not timed."""

    name: str
    call: Callable[[], Any]
    tolerance: float
    peer: bool = False


@dataclass(frozen=True)
class Timing:
    """Seconds of one call."""

    median: float
    best: float
    calls: int

    @classmethod
    def of(cls, taken: Sequence[float]) -> "Timing":
        return cls(statistics.median(taken), min(taken), len(taken))


@dataclass
class Bench:
    """One run: its settings, and everything it measures."""

    console: Console
    progress: Progress
    threads: tuple[int, ...]
    seconds: float  # for each contestant of a race, unless LEAST_CALLS take longer
    cold_bytes: int  # the weights that a contestant goes through before it meets one again
    ceilings: list[dict[str, Any]] = field(default_factory=list)
    results: list[dict[str, Any]] = field(default_factory=list)

    def show(self, what: str) -> None:
        """As what is going on."""
        self.progress.update(self.progress.task_ids[0], description=what)
        self.progress.refresh()

    def race(
        self,
        section: str,
        case: dict[str, Any],
        entries: Sequence[Entry],
        error: Callable[[Any], float],
    ) -> dict[str, Timing | None]:
        """Checks each entry's result by `error`, then times them. None: it was wrong."""
        where = " ".join(f"{name}={value}" for name, value in case.items())
        self.show(f"{section} {where}")
        errors = {entry.name: error(entry.call()) for entry in entries}
        # written so that a NaN is wrong too
        right = [entry for entry in entries if errors[entry.name] <= entry.tolerance]
        for entry in entries:
            if entry not in right and not entry.peer:
                raise SystemExit(
                    f"{section} {where}: {entry.name} is wrong: its relative error is "
                    f"{errors[entry.name]:.3g}, expected at most {entry.tolerance:g}"
                )
        timings = interleave({entry.name: entry.call for entry in right}, self.seconds)
        for entry in entries:
            timing = timings.get(entry.name)
            self.results.append(
                {"section": section, **case, "threads": torch.get_num_threads()}
                | {"contestant": entry.name, "relative_error": errors[entry.name]}
                | ({"wrong": True} if timing is None else asdict(timing))
            )
        return {entry.name: timings.get(entry.name) for entry in entries}


def interleave(calls: dict[str, Callable[[], Any]], seconds: float) -> dict[str, Timing]:
    """Calls each in turn until it has had its seconds, at least LEAST_CALLS times each."""
    for _ in range(WARM_UP_CALLS):
        for call in calls.values():
            call()
    times: dict[str, list[float]] = {name: [] for name in calls}
    running = dict(calls)
    while running:
        for name, call in tuple(running.items()):
            start = perf_counter()
            call()
            taken = times[name]
            taken.append(perf_counter() - start)
            if len(taken) >= MOST_CALLS or (len(taken) >= LEAST_CALLS and sum(taken) >= seconds):
                del running[name]
    return {name: Timing.of(taken) for name, taken in times.items()}


def relative_error(y: Tensor, expected: Tensor) -> float:
    """Root mean square of y - expected over that of expected."""
    return float((y.double() - expected).norm() / expected.norm())


def ms(timing: Timing | None) -> str:
    """Median (best) in milliseconds."""
    if timing is None:
        return "wrong"
    digits = 3 if timing.best < 0.01 else 1
    return f"{timing.median * 1e3:.{digits}f} ({timing.best * 1e3:.{digits}f})"


def ratio(slower: Timing | None, faster: Timing | None) -> str:
    """How many times as fast the second is, by medians."""
    return f"{slower.median / faster.median:.2f}x" if slower and faster else "-"
