"""Work in several processes: independent calls spread over a pool, or one command started several times."""

import multiprocessing
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor

from clearhead.errors import ClearheadError
from clearhead.progress import Progress, track

_TIMEOUT = timedelta(days=7)  # the first process may compute for long while the others wait


class ProcessError(ClearheadError, OSError):
    """A process ended without a result; the message says what to try."""


def run_all(
    function: Callable[..., None],
    calls: Sequence[tuple[Any, ...]],
    jobs: int = 1,
    progress: Progress | None = None,
    title: str = "runs",
) -> None:
    """Call a module-level function with each tuple of arguments, in `jobs` processes that share the CPU's threads.

    The first error cancels the calls that have not started, and is raised. Raises ProcessError if a process is killed.
    """
    if jobs == 1:
        for arguments in track(calls, progress, title):
            function(*arguments)
        return
    # spawned, because a process that is forked after CUDA was initialised cannot use it
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, context, _limit_threads, (jobs,)) as pool:
        futures = [pool.submit(function, *arguments) for arguments in calls]
        try:
            for future in track(as_completed(futures), progress, title, total=len(futures)):
                future.result()
        except BrokenProcessPool as error:
            raise ProcessError("jobs: a process was killed, perhaps for lack of memory; try fewer jobs") from error
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _limit_threads(jobs: int) -> None:
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // jobs))


def rank_and_size() -> tuple[int, int]:
    """Return the rank of this process and how many run the command together (``torchrun``, ``accelerate launch``)."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def barrier() -> None:
    """Wait until all processes that run this command have called it."""
    if rank_and_size()[1] > 1:
        from accelerate import PartialState

        cpu = not torch.cuda.is_available()  # otherwise Accelerate takes each process for a single one
        PartialState(cpu=cpu, timeout=_TIMEOUT).wait_for_everyone()


def mean_over_processes(values: Tensor) -> Tensor:
    """Return the mean of a tensor over the processes that run this command, without a gradient."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        values = values.detach().clone()
        torch.distributed.all_reduce(values)
        values = values / torch.distributed.get_world_size()
    return values
