"""A live display for terminals: what runs now with its progress, and a line for each step that ended."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
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
from rwkvflow.display.words import duration, figures, headline, one_line, summary

STEP_WIDTH = 38  # most ids of steps; longer ones push the rest to the right
MARKS = {"done": ("✓", "green"), "failed": ("✗", "bold red"), "skipped": ("–", "yellow"), "cancelled": ("–", "yellow")}


@dataclass
class Bar:
    """One line at the bottom: a command, and the steps that it carries out."""

    task: TaskID
    steps: set[str] = field(default_factory=set)


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
            TimeElapsedColumn(),
            TextColumn("[dim]{task.fields[label]}"),
            console=self.console,
            transient=True,
        )
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
            case StepStarted():
                self._started(event)
            case StepProgress() if event.step in self._bars_by_step:
                self._progress.update(
                    self._bars_by_step[event.step].task,
                    completed=event.done,
                    total=event.total,
                    amount=amount(event),
                    label=escape(one_line(event.label, 40)),
                )
            case StepLog() if self.verbose:
                self._print(Text(f"  {event.step} | {event.line}", style="dim"))
            case StepFinished():
                self._finished(event)
            case Notice():
                style = "yellow" if event.level == "warning" else "dim"
                self._print(Text(event.message, style=style))
            case RunFinished():
                self._print(Text(summary(event), style="bold red" if event.failed else "bold green"))

    def _started(self, event: StepStarted) -> None:
        bar = self._bars.get(event.batch) if event.batch else None
        if bar is None:
            bar = Bar(self._progress.add_task(escape(event.batch or event.step), total=None, amount="", label=""))
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
        self._progress.console.print(text, soft_wrap=True, highlight=False)


def amount(event: StepProgress) -> str:
    """ "12.3 / 45.0 MB", "3 / 8", or nothing where it is unknown."""
    if event.unit == "B":
        total = f" / {event.total / 1e6:.1f}" if event.total else ""
        return f"{event.done / 1e6:.1f}{total} MB"
    return f"{event.done:g} / {event.total:g}" if event.total else ""
