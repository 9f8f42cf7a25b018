"""What a person watches: progress with rate and time left on every step that takes more than a few seconds.

On a terminal a live bar; elsewhere (Dagster's step logs, CI) a log line every few seconds.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from embed_pipeline.escaping import counted

logger = logging.getLogger(__name__)

LOG_INTERVAL_SECONDS = 5.0


@dataclass
class Bar:
    """One running count. ``advance`` is the only call a stage needs."""

    label: str
    total: int
    unit: str
    done: int = 0
    started: float = field(default_factory=time.monotonic)
    _logged: float = field(default_factory=time.monotonic)
    live: Progress | None = None
    task: TaskID | None = None

    def advance(self, count: int = 1, note: str = "") -> None:
        """Count ``count`` more units done; ``note`` is shown next to the rate."""
        self.done += count
        if self.live is not None and self.task is not None:
            self.live.update(self.task, completed=self.done, note=note, rate=f"{self.rate:.1f}/s")
            return
        now = time.monotonic()
        if now - self._logged >= LOG_INTERVAL_SECONDS:
            self._logged = now
            logger.info("%s", self.line(note))

    @property
    def rate(self) -> float:
        """Units a second since the start."""
        return self.done / max(time.monotonic() - self.started, 1e-9)

    def line(self, note: str = "") -> str:
        """The progress as one line of text."""
        left = f", {self.rate:.1f}/s, {(self.total - self.done) / self.rate:.0f} s left" if self.done else ""
        tail = f", {note}" if note else ""
        return f"{self.label}: {self.done:,}/{counted(self.total, self.unit)}{left}{tail}"


@contextmanager
def progress(label: str, total: int, unit: str = "item") -> Iterator[Bar]:
    """Show progress over ``total`` units while the block runs; ``unit`` is the noun for one."""
    bar = Bar(label=label, total=total, unit=unit)
    if not sys.stderr.isatty():
        yield bar
        seconds = time.monotonic() - bar.started
        if seconds >= LOG_INTERVAL_SECONDS:
            logger.info("%s: %s in %.0f s", label, counted(bar.done, unit), seconds)
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=30),
        TextColumn("{task.completed}/{task.total}"),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as live:
        bar.live, bar.task = live, live.add_task(label, total=total, rate="", note="")
        yield bar
