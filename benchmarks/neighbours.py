"""Exact nearest neighbours among features, found by faiss and without: against the matrix product they need.

    python -m pip install faiss-cpu
    OMP_NUM_THREADS=1 python benchmarks/neighbours.py [--count 20000] [--dim 192] [--k 10] [--rounds 3]

The floor is the product of all features with all, in the parts that `neighbours` takes.
"""

import argparse
from unittest.mock import patch

import torch
import torch.nn.functional as F
from timing import seconds, table

from clearhead.analyses.knn import neighbours


def main(count: int, dim: int, k: int, rounds: int) -> None:
    import faiss

    faiss.omp_set_num_threads(torch.get_num_threads())
    x = F.normalize(torch.randn(count, dim, generator=torch.Generator().manual_seed(0)), dim=1)

    def product() -> None:
        for queries in x.split(256):
            for part in x.split(16384):
                queries @ part.T

    def without() -> torch.Tensor:
        with patch("clearhead.analyses.knn.find_spec", return_value=None):
            return neighbours(x, k)

    same = (neighbours(x, k) == without()).double().mean().item()
    times = seconds({"the product alone": product, "by faiss": lambda: neighbours(x, k), "without": without}, rounds)
    print(f"{count:,} x {dim}, k = {k}, {torch.get_num_threads()} threads; the two agree on {same:.3%}\n")
    table(times, "the product alone", count)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=20000)
    parser.add_argument("--dim", type=int, default=192)
    parser.add_argument("--k", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    main(options.count, options.dim, options.k, options.rounds)
