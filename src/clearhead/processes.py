"""Independent pieces of work, one after another or in several processes."""

import multiprocessing
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import torch


class ProcessError(OSError):
    """A process that ended without an answer; the message says what to try."""


def run_all(
    function: Callable[..., None],
    pieces: Sequence[tuple[Any, ...]],
    jobs: int = 1,
    track: Callable[[Iterable, int, str], Iterable] | None = None,
    title: str = "runs",
) -> None:
    """Call a function of a module with the arguments of each piece, in so many processes.

    Each process has its share of the threads. The first error stops what has not begun and is raised.
    """
    if jobs == 1:
        for piece in track(pieces, len(pieces), title) if track else pieces:
            function(*piece)
        return
    # spawned: a process forked after CUDA was asked for cannot use it
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, context, _share_threads, (jobs,)) as pool:
        futures = [pool.submit(function, *piece) for piece in pieces]
        try:
            done = as_completed(futures)
            for future in track(done, len(pieces), title) if track else done:
                future.result()
        except BrokenProcessPool as error:
            raise ProcessError("a process was killed, for want of memory perhaps: try fewer jobs") from error
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _share_threads(jobs: int) -> None:
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // jobs))
