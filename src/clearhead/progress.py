"""Progress of long work: bars on a terminal, one line per step in a log or a pipe.

Functions that take long accept ``progress``, a callable that wraps an iterable::

    for batch in track(batches, progress, "predictions"):

Lines such as one per training epoch go through ``logging.getLogger("clearhead")`` at level INFO, so that a notebook or
a script sees them with ``logging.basicConfig(level="INFO")``.
"""

import logging
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol, TypeVar

T = TypeVar("T")

log = logging.getLogger("clearhead")

SECONDS_PER_LINE = 10.0
"""A step that lasts longer writes a line this often, and one when it ends."""


class Progress(Protocol):
    """Wraps an iterable of known length to show how far it has come."""

    def __call__(self, items: Iterable[T], total: int, description: str | Callable[[], str], /) -> Iterable[T]:
        """Yield the items; a callable `description` is asked again at each item, to show the current loss."""


def track(
    items: Iterable[T], progress: Progress | None, description: str | Callable[[], str], total: int | None = None
) -> Iterable[T]:
    """Return the items, wrapped by `progress` unless it is None; `total` defaults to ``len(items)``."""
    if progress is None:
        return items
    return progress(items, len(items) if total is None else total, description)  # type: ignore[arg-type]


def prefixed(progress: Progress | None, prefix: str) -> Progress | None:
    """Return a progress whose descriptions start with a prefix, such as the name of one of several models."""
    if progress is None:
        return None
    inner = progress

    def wrapped(items: Iterable[T], total: int, description: str | Callable[[], str], /) -> Iterable[T]:
        return inner(items, total, lambda: f"{prefix}: {_text(description)}")

    return wrapped


def log_progress(items: Iterable[T], total: int, description: str | Callable[[], str], /) -> Iterator[T]:
    """Log ``predictions: 320/455, 41.0/s, 3 s remaining`` every 10 seconds and at the end."""
    started = last = time.perf_counter()
    for done, item in enumerate(items, 1):
        yield item
        now = time.perf_counter()
        if now - last >= SECONDS_PER_LINE or done == total:
            last = now
            rate = done / max(now - started, 1e-9)
            left = f"{duration((total - done) / rate)} remaining" if done < total else f"{duration(now - started)}"
            log.info(
                "%s: %s/%s, %s/s, %s", _text(description), f"{done:,}", f"{total:,}", _rate(rate), left, extra=_BAR
            )


def show_progress(items: Iterable[T], total: int, description: str | Callable[[], str], /) -> Iterator[T]:
    """Show a bar on standard error where that is a terminal, and log lines as ``log_progress`` does."""
    logged = log_progress(items, total, description)
    if not sys.stderr.isatty():
        yield from logged
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(_text(description), total=total)
        for item in logged:
            yield item
            bar.update(task, advance=1, description=_text(description))


_BAR = {"progress": True}
"""Marks lines that a bar on the terminal shows already."""


def is_shown_by_bar(record: logging.LogRecord) -> bool:
    """Whether a log record repeats what a bar shows."""
    return getattr(record, "progress", False) and sys.stderr.isatty()


def duration(seconds: float) -> str:
    """Format a duration: ``8 s``, ``3 min 12 s``, ``1 h 5 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def _rate(per_second: float) -> str:
    return f"{per_second:,.0f}" if per_second >= 100 else f"{per_second:.3g}"


def _text(description: str | Callable[[], str]) -> str:
    return description if isinstance(description, str) else description()
