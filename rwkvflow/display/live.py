"""A live display for terminals: what runs now, how far the run is, and a line for each step that ended.

Drawing costs time that the work could have: once a second is enough to see that something moves.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)
from rich.text import Text

from rwkvflow.base.events import (
    Event,
    Notice,
    RunFinished,
    RunStarted,
    StepFinished,
    StepLog,
    StepProgress,
    StepStarted,
    fit_to_show,
)
from rwkvflow.base.text import bytes_text
from rwkvflow.display.words import duration, figures, headline, one_line, summary

DRAWN_PER_SECOND = 1
STEP_WIDTH = 38  # most ids of steps; longer ones push the rest to the right
MARKS = {"done": ("✓", "green"), "failed": ("✗", "bold red"), "skipped": ("–", "yellow"), "cancelled": ("–", "yellow")}


@dataclass
class Bar:
    """One line at the bottom: a command, and the steps that it carries out."""

    task: TaskID
    steps: set[str] = field(default_factory=set)
    alone: bool = False  # nobody says when it begins and ends: it does when all of it is done


@dataclass
class Whole:
    """How far a run is: steps that ended of all, bytes that were read or fetched, and since when."""

    task: TaskID
    steps: int
    began: float
    ended: int = 0
    worked: int = 0  # of those, what was not found finished
    bytes_of: dict[str, float] = field(default_factory=dict)

    def amount(self) -> str:
        """ "3 of 12 steps, 45.00 MB"."""
        moved = sum(self.bytes_of.values())
        return f"{self.ended} of {self.steps} steps" + (f", {bytes_text(moved)}" if moved else "")

    def left(self, now: float) -> str:
        """How long the rest takes, if its steps are like those so far; nothing before there are any."""
        if not self.worked or self.ended >= self.steps:
            return ""
        return f"about {duration((now - self.began) / self.worked * (self.steps - self.ended))} left"


class RateColumn(ProgressColumn):
    """Bytes a second and the time left, of a task that counts bytes; of others the time left, where it is known."""

    def render(self, task: Task) -> Text:
        """ "12.34 MB/s, 4.0 s left"."""
        told = [f"{bytes_text(task.speed)}/s"] if task.speed and task.fields.get("unit") == "B" else []
        if task.time_remaining and not task.finished and task.fields.get("unit") is not None:
            told.append(f"{duration(task.time_remaining)} left")
        return Text(", ".join(told), style="dim")


class LiveDisplay:
    """Bars at the bottom of the terminal, history above them."""

    def __init__(self, console: Console | None = None, *, verbose: bool = False) -> None:
        self.console = console or Console(stderr=True)
        self.verbose = verbose
        self._guard = threading.Lock()
        self._bars: dict[str, Bar] = {}  # by batch, or by step where it has none
        self._bars_by_step: dict[str, Bar] = {}
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("[dim]{task.fields[amount]}"),
            RateColumn(),
            TimeElapsedColumn(),
            TextColumn("[dim]{task.fields[label]}"),
            console=self.console,
            transient=True,
            refresh_per_second=DRAWN_PER_SECOND,
        )
        self._whole: Whole | None = None
        self._progress.start()

    def __call__(self, event: Event) -> None:
        """Show the event; from any thread."""
        with self._guard:
            self._take(fit_to_show(event))

    def close(self) -> None:
        """Take the bars down, so that the cursor and later output are in order."""
        with self._guard:
            self._progress.stop()

    def _take(self, event: Event) -> None:
        match event:
            case RunStarted():
                self._print(Text(headline(event), style="bold"))
                task = self._progress.add_task("all steps", total=event.steps, amount="", label="", unit=None)
                self._whole = Whole(task, event.steps, time.monotonic())
            case StepStarted():
                self._started(event)
            case StepProgress():
                self._moved(event)
            case StepLog() if self.verbose:
                self._print(Text(f"  {event.step} | {event.line}", style="dim"))
            case StepFinished():
                self._finished(event)
            case Notice():
                style = "yellow" if event.level == "warning" else "dim"
                self._print(Text(event.message, style=style))
            case RunFinished():
                if self._whole is not None:
                    self._progress.remove_task(self._whole.task)
                    self._whole = None
                self._print(Text(summary(event), style="bold red" if event.failed else "bold green"))

    def _moved(self, event: StepProgress) -> None:
        bar = self._bars_by_step.get(event.step)
        if bar is None:
            if event.total and event.done >= event.total:
                return
            task = self._progress.add_task(escape(event.step), total=None, amount="", label="", unit=event.unit)
            bar = self._bars[event.step] = self._bars_by_step[event.step] = Bar(task, {event.step}, alone=True)
        self._progress.update(
            bar.task,
            completed=event.done,
            total=event.total,
            amount=amount(event),
            label=escape(one_line(event.label, 40)),
            unit=event.unit,
        )
        if self._whole is not None and event.unit == "B":
            self._whole.bytes_of[event.step] = event.done
            self._progress.update(self._whole.task, amount=self._whole.amount())
        if bar.alone and event.total and event.done >= event.total:
            self._ended(event.step)

    def _started(self, event: StepStarted) -> None:
        bar = self._bars.get(event.batch) if event.batch else None
        if bar is None:
            bar = Bar(
                self._progress.add_task(escape(event.batch or event.step), total=None, amount="", label="", unit=None)
            )
            self._bars[event.batch or event.step] = bar
        bar.steps.add(event.step)
        self._bars_by_step[event.step] = bar
        if event.batch:
            text = f"{event.batch} ({len(bar.steps)})" if len(bar.steps) > 1 else event.step
            self._progress.update(bar.task, description=escape(text))

    def _ended(self, step: str) -> None:
        bar = self._bars_by_step.pop(step, None)
        if bar is None:
            return
        bar.steps.discard(step)
        if not bar.steps:
            self._progress.remove_task(bar.task)
            self._bars = {name: other for name, other in self._bars.items() if other is not bar}

    def _finished(self, event: StepFinished) -> None:
        self._ended(event.step)
        if (whole := self._whole) is not None:
            whole.ended += 1
            whole.worked += event.status == "done"
            left = whole.left(time.monotonic())
            self._progress.update(whole.task, completed=whole.ended, amount=whole.amount(), label=left)
        if event.status == "cached":
            if self.verbose:
                self._print(Text(f"  = {event.step}", style="dim"))
            return
        mark, style = MARKS[event.status]
        line = Text(f"  {mark} ", style=style).append(f"{event.step:<{STEP_WIDTH}}", style="default")
        if event.status == "done":
            line.append(f"{duration(event.seconds):>9}", style="dim").append(figures(event.notes), style="cyan")
            self.console.print(line, no_wrap=True, overflow="ellipsis", highlight=False)  # a row of a table
            return
        if event.message:
            line.append(f"  {event.message}", style=style)
        self._print(line)

    def _print(self, text: Text) -> None:
        # On a terminal words wrap at words; what goes into a file or a pipe keeps its lines.
        self.console.print(text, soft_wrap=not self.console.is_terminal, highlight=False)


def amount(event: StepProgress) -> str:
    """ "12.34 MB / 1.05 GB", "3 / 8", or nothing where it is unknown."""
    if event.unit == "B":
        total = f" / {bytes_text(event.total)}" if event.total else ""
        return f"{bytes_text(event.done)}{total}"
    return f"{event.done:g} / {event.total:g}" if event.total else ""
