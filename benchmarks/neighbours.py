"""Time the exact search of nearest neighbours against the matrix product it needs (and faiss, where it is installed).

    OMP_NUM_THREADS=1 python benchmarks/neighbours.py [--count 20000] [--dim 192] [--k 10] [--rounds 3]

The floor is the product of all features with all features, in the chunks that `neighbours` uses.
"""

import argparse
from collections.abc import Callable

import torch
import torch.nn.functional as F
from timing import seconds, table

from clearhead.analyses.knn import neighbours

try:
    import faiss
except ImportError:
    faiss = None


def main(count: int, dim: int, k: int, rounds: int) -> None:
    x = F.normalize(torch.randn(count, dim, generator=torch.Generator().manual_seed(0)), dim=1)

    def product() -> None:
        for queries in x.split(256):
            for chunk in x.split(16384):
                queries @ chunk.T

    def by_faiss() -> None:
        index = faiss.IndexFlatIP(dim)
        index.add(x.numpy())
        index.search(x.numpy(), k + 1)

    candidates: dict[str, Callable[[], object]] = {"product only": product, "neighbours": lambda: neighbours(x, k)}
    if faiss is not None:
        faiss.omp_set_num_threads(torch.get_num_threads())
        candidates["faiss"] = by_faiss
    times = seconds(candidates, rounds)
    print(f"{count:,} x {dim}, k = {k}, {torch.get_num_threads()} threads\n")
    table(times, "product only", count)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=20000)
    parser.add_argument("--dim", type=int, default=192)
    parser.add_argument("--k", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    main(options.count, options.dim, options.k, options.rounds)
