"""Work in several processes: independent pieces that this one hands out, or this command started several times."""

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor

from clearhead.errors import ClearheadError
from clearhead.progress import Progress

_PATIENCE = timedelta(days=7)  # the first process may have to measure and draw while the others wait


class ProcessError(ClearheadError, OSError):
    """A process that ended without an answer; the message says what to try."""


def run_all(
    function: Callable[..., None],
    pieces: Sequence[tuple[Any, ...]],
    jobs: int = 1,
    progress: Progress | None = None,
    title: str = "runs",
) -> None:
    """Call a function of a module with the arguments of each piece, in so many processes.

    Each process has its share of the threads. The first error stops what has not begun and is raised.
    """
    if jobs == 1:
        for piece in progress(pieces, len(pieces), title) if progress else pieces:
            function(*piece)
        return
    # spawned: a process forked after CUDA was asked for cannot use it
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, context, _share_threads, (jobs,)) as pool:
        futures = [pool.submit(function, *piece) for piece in pieces]
        try:
            done = as_completed(futures)
            for future in progress(done, len(pieces), title) if progress else done:
                future.result()
        except BrokenProcessPool as error:
            raise ProcessError("a process was killed, for want of memory perhaps: try fewer jobs") from error
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _share_threads(jobs: int) -> None:
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // jobs))


def rank_and_size() -> tuple[int, int]:
    """The number of this process and how many run this command together (``torchrun``, ``accelerate launch``)."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def barrier() -> None:
    """Go on when all processes that run this command have come here."""
    if rank_and_size()[1] > 1:
        from accelerate import PartialState

        cpu = not torch.cuda.is_available()  # else Accelerate takes the processes for single ones
        PartialState(cpu=cpu, timeout=_PATIENCE).wait_for_everyone()


def mean_over_processes(values: Tensor) -> Tensor:
    """The mean of a tensor over the processes that run this command; without a gradient."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        values = values.detach().clone()
        torch.distributed.all_reduce(values)
        values = values / torch.distributed.get_world_size()
    return values


@contextmanager
def main_process_first() -> Iterator[None]:
    """A block that the first of several processes goes through before the others do."""
    first = rank_and_size()[0] == 0
    if not first:
        barrier()
    yield
    if first:
        barrier()
