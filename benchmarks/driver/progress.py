"""Live progress: bars and the latest figures on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from types import MappingProxyType, TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from ..common.console import say
from ..common.events import CellEnded, EpochEnded, Event, LeftOut, Said, Stepped
from ..common.units import duration
from ..config.changed_rows import flat
from ..config.protocol import Protocol, steps_per_epoch
from ..store.cell import Cell

EVERY = 20.0
"""Seconds between plain lines about a group that is still training."""


def told_apart(cells: Iterable[Cell]) -> dict[str, str]:
    """Names by key for cells that have one label: with the settings in which they differ, or the key's beginning."""
    by_label: dict[str, list[Cell]] = defaultdict(list)
    for cell in cells:
        by_label[cell.label].append(cell)
    names = {}
    for label, alike in by_label.items():
        by_key = {cell.key: flat(cell.settings) for cell in alike} if len(alike) > 1 else {}
        for key, settings in by_key.items():
            differing = [
                f"{name}={value}"
                for name, value in settings.items()
                if any(other.get(name) != value for other in by_key.values())
            ]
            names[key] = f"{label} ({', '.join(differing) or key[:8]})"
    return names


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Rich would end the process, and send whatever else is printed to nowhere."""
        raise  # the error that is being handled


class Reporter:
    """Counts the steps of all cells to run, and says what happens. That it cannot be said is no cell's failure.

    Args:
        cells: how many cells will be trained.
        protocol: their recipe.
        samples: size of the training set.
        metric: the task's, by which progress is shown.
        saved: from how many epochs cells go on, by their key.
        names: what to call cells instead of by their label, by their key.
    """

    def __init__(
        self,
        cells: int,
        protocol: Protocol,
        samples: int,
        metric: str,
        saved: Mapping[str, int] = MappingProxyType({}),
        names: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self.protocol, self.metric, self.names = protocol, metric, names
        self.steps_per_epoch = steps_per_epoch(samples, protocol)
        self.saved = saved
        self.total = (cells * protocol.epochs - sum(saved.values())) * self.steps_per_epoch
        self.met: set[str] = set()  # cells of which it is known where they began
        self.cells, self.ended, self.steps = cells, 0, 0
        self.started = self.reported_at = time.monotonic()
        self.console = _Console(stderr=True)
        self.live: Progress | None = None
        self.failed = False
        if self.console.is_terminal:
            self.live = Progress(
                TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[facts]}"),
                TimeElapsedColumn(), console=self.console,
            )  # fmt: skip
            self.overall = self.live.add_task("cells", total=cells, facts="")
            self.tasks: dict[str, TaskID] = {}

    def __enter__(self) -> Reporter:
        if self.live:
            with self._unharmed():
                self.live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.live:
            with self._unharmed():
                self.live.stop()

    def __call__(self, event: Event) -> None:
        with self._unharmed():
            match event:
                case Stepped():
                    self._step(event)
                case EpochEnded():
                    self._epoch(event)
                case CellEnded():
                    self._end(event)
                case LeftOut(line):
                    self._left_out()
                    self.say(line)
                case Said(line):
                    self.say(line)

    @contextmanager
    def _unharmed(self) -> Iterator[None]:
        """Inside, a display that fails (its terminal is gone, say) gives way to plain lines, and training goes on."""
        try:
            yield
        except Exception as error:  # of the terminal, or of the library that draws on it
            live, self.live = self.live, None
            if live:
                with suppress(Exception):
                    live.stop()
            if not self.failed:
                say(f"progress cannot be shown ({type(error).__name__}: {error}); training goes on")
            self.failed = True

    @property
    def eta(self) -> str:
        if not self.steps:
            return ""
        left = max(self.total - self.steps, 0)
        return f"ETA {duration((time.monotonic() - self.started) / self.steps * left)}"

    def _name(self, event: Stepped | EpochEnded | CellEnded) -> str:
        return self.names.get(event.key, event.label)

    def _step(self, event: Stepped) -> None:
        self.steps += event.steps
        if event.key not in self.met:
            self.met.add(event.key)
            self.total += self._unforeseen(event)
        if self.live:
            self.live.update(self.overall, facts=f"{self.steps}/{self.total} steps  {self.eta}")
        elif time.monotonic() - self.reported_at > EVERY:
            epoch, step = event.position
            self.say(f"  {self._name(event)}  epoch {epoch}/{self.protocol.epochs}, step {step}  {self.eta}")

    def _unforeseen(self, first: Stepped) -> int:
        """How many steps more a cell takes than was known before its first one: first phases, parts of epochs saved."""
        (epoch, step), saved = first.position, self.saved.get(first.key, 0)
        return (1 + saved - epoch) * self.steps_per_epoch - (step - first.steps)

    def _epoch(self, event: EpochEnded) -> None:
        record, name = event.record, self._name(event)
        values = record["losses"] | record.get("watched", {})
        figures = f"{self.metric} {record['metrics'][self.metric]:.2f}" if record["metrics"] else record["phase"]
        facts = f"{figures}  {' '.join(f'{term} {value:.3g}' for term, value in values.items())}"
        if self.live:
            if event.key not in self.tasks:
                self.tasks[event.key] = self.live.add_task(name, total=self.protocol.epochs, facts="")
            self.live.update(self.tasks[event.key], completed=max(record["epoch"], 0), facts=facts)
        elif time.monotonic() - self.reported_at > EVERY:
            self.say(f"  {name}  epoch {record['epoch']}/{self.protocol.epochs}  {facts}  {self.eta}")

    def _end(self, event: CellEnded) -> None:
        self.ended += 1
        place = f"[{self.ended}/{self.cells}]"
        if event.state == "done":
            line = f"{place} {self._name(event)}  {self.metric} {event.last[self.metric]:.2f}  {self.eta}"
        else:
            line = f"{place} {self._name(event)}  {event.state.upper()}: {event.message}"
        if self.live:
            if task := self.tasks.pop(event.key, None):
                self.live.remove_task(task)
            self.live.update(self.overall, advance=1)
        self.say(line)

    def _left_out(self) -> None:
        self.cells -= 1
        self.total -= self.protocol.epochs * self.steps_per_epoch
        if self.live:
            self.live.update(self.overall, total=self.cells)

    def say(self, line: str) -> None:
        """A line that stays."""
        self.reported_at = time.monotonic()
        if self.live:
            with self._unharmed():
                self.live.console.print(line, markup=False, highlight=False)
                return
        say(line)
