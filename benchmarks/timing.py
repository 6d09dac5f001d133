"""Timing for all benchmarks: interleaved rounds, so that a slow spell of the machine hits every candidate alike."""

import statistics
import time
from collections.abc import Callable

import torch


def seconds(candidates: dict[str, Callable[[], object]], rounds: int = 7) -> dict[str, float]:
    """Median seconds of each candidate over the rounds, after one warm-up."""
    spent: dict[str, list[float]] = {name: [] for name in candidates}
    for function in candidates.values():
        function()
    for _ in range(rounds):
        for name, function in candidates.items():
            _wait()
            start = time.perf_counter()
            function()
            _wait()
            spent[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in spent.items()}


def table(times: dict[str, float], unit: str, images: int) -> None:
    """Print seconds, images a second, and the ratio to `unit`, as a Markdown table."""
    print(f"| | s a batch of {images} | images/s | ratio to {unit} |\n|---|---|---|---|")
    for name, value in times.items():
        print(f"| {name} | {value:.3f} | {images / value:.1f} | {value / times[unit]:.2f} |")


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
