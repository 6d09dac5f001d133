"""landscape: how flat and how convex is the loss around the weights, and which way did training take through it?"""

import time
from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal

from clearhead.analyses.hessian import Spectrum, spectra
from clearhead.analyses.surface import Surface, surface
from clearhead.data.augment import Augmentation
from clearhead.data.dataset import ImageIndex
from clearhead.data.images import read_images
from clearhead.landscape import LandscapeError, trajectory, weight_vector
from clearhead.models import load_model
from clearhead.results import Results, SpectrumResults, SurfaceResults, TrajectoryResults, once
from clearhead.runs import begin, read_results
from clearhead.workflows.pieces import (
    Progress,
    data_name,
    finish,
    given,
    model_name,
    of_each,
    provenance_of,
    run_of,
    versions_told,
)


def run_hessian(
    models: Sequence[str],
    data: str | Path,
    out: Path,
    *,
    split: str | None = None,
    k: int = 5,
    batches: int = 20,
    batch_size: int = 16,
    weight_decay: float = 0.0,
    augment: Augmentation = "none",
    mixup: float = 0.0,
    cutmix: float = 0.0,
    label_smoothing: float = 0.0,
    tolerance: float = 1e-3,
    whole: bool = False,
    workers: int = 0,
    seed: int = 0,
    device: str | None = None,
    progress: Progress | None = None,
) -> SpectrumResults:
    """The largest eigenvalues of the loss on mini-batches, models side by side. ``clearhead landscape hessian``.

    The arguments are those of ``clearhead.analyses.hessian``; each model reads the data by its own classes. A run
    of ``train --save-epochs`` among `models` stands for the epochs it kept and its checkpoint.
    """
    arguments = given(locals())
    if not begin(out, "landscape hessian", arguments):
        started, names = time.perf_counter(), once([model_name(model) for model in models])
        options: dict[str, Any] = {"k": k, "batches": batches, "batch_size": batch_size, "weight_decay": weight_decay}
        options |= {"augment": augment, "mixup": mixup, "cutmix": cutmix, "label_smoothing": label_smoothing}
        options |= {"tolerance": tolerance, "whole": whole, "workers": workers, "seed": seed}
        read = cache(partial(_read, data, split))
        instrument = partial(spectra, **options)
        found, folder, classifier = of_each(
            _each(models), read, instrument, Spectrum, out, device=device, progress=progress
        )
        provenance = provenance_of(arguments, started, folder.samples, classifier)
        provenance["images"] = (
            f"{min(batches, len(folder.samples) // batch_size) * batch_size:,} of {len(folder.samples):,}"
        )
        issues = list(folder.issues)
        finish(out, SpectrumResults("spectrum", names, data_name(data, split), k, found, issues, provenance))
    return read_results(out, Results)


def run_surface(
    models: Sequence[str],
    data: str | Path,
    out: Path,
    *,
    split: str | None = None,
    dims: int = 2,
    points: int = 21,
    span: float = 1.0,
    along: Literal["random", "eigenvectors"] = "random",
    weight_decay: float = 0.0,
    images: int = 1000,
    batch_size: int = 64,
    workers: int = 0,
    seed: int = 0,
    device: str | None = None,
    progress: Progress | None = None,
) -> SurfaceResults:
    """The loss on a grid of weights around each model's own. ``clearhead landscape surface``.

    The arguments are those of ``clearhead.analyses.surface``; models are as for ``run_hessian``.
    """
    arguments = given(locals())
    if not begin(out, "landscape surface", arguments):
        started, names = time.perf_counter(), once([model_name(model) for model in models])
        options: dict[str, Any] = {"dims": dims, "points": points, "span": span, "along": along}
        options |= {"weight_decay": weight_decay, "images": images, "batch_size": batch_size}
        options |= {"workers": workers, "seed": seed}
        read = cache(partial(_read, data, split))
        instrument = partial(surface, **options)
        found, folder, classifier = of_each(
            _each(models), read, instrument, Surface, out, device=device, progress=progress
        )
        provenance = provenance_of(arguments, started, folder.samples, classifier)
        provenance["images"] = f"{min(images, len(folder.samples)):,} of {len(folder.samples):,}"
        issues = list(folder.issues)
        finish(out, SurfaceResults("surface", names, data_name(data, split), along, found, issues, provenance))
    return read_results(out, Results)


def run_trajectory(run: str | Path, out: Path, *, progress: Progress | None = None) -> TrajectoryResults:
    """The way of the weights through the epochs that a training run kept. ``clearhead landscape trajectory``.

    Its checkpoint is that of one of the epochs and so not a snapshot of its own. Raises LandscapeError for a folder
    without ``epochs/``, or with fewer than two.
    """
    arguments = given(locals())
    if not begin(out, "landscape trajectory", arguments):
        started = time.perf_counter()
        kept = _epochs(Path(run))
        if len(kept) < 2:
            raise LandscapeError(
                f"{run}: {len(kept)} saved epochs, at least 2 are needed: train with --save-epochs 1,5,10,..."
            )
        snapshots = progress(kept, len(kept), "snapshots") if progress else kept
        way = trajectory(weight_vector(load_model(str(folder)).module) for folder in snapshots)
        provenance = {"run": str(run), "time": f"{time.perf_counter() - started:.0f} s", "versions": versions_told()}
        finish(out, TrajectoryResults("trajectory", Path(run).name, [int(f.name) for f in kept], way, provenance))
    return read_results(out, Results)


def _read(data: str | Path, split: str | None, classes: Sequence[str]) -> ImageIndex:
    return read_images(data, split=split, classes=classes)


def _epochs(run: Path) -> list[Path]:
    """The checkpoints of the epochs that a run kept, in order."""
    return sorted((f for f in run.glob("epochs/*") if f.name.isdecimal()), key=lambda folder: int(folder.name))


def _each(models: Sequence[str]) -> list[tuple[str, str]]:
    """Names and places of models: a run folder stands for its checkpoint, after the epochs it kept, if any.

    Of several runs of one name each has its number, and all its epochs bear it.
    """
    found: list[tuple[Path, str, str]] = []  # the run, what of it, and where that is
    for model in models:
        kept, checkpoint = _epochs(Path(model)), Path(model) / "checkpoint"
        places = [str(place) for place in (*kept, *([checkpoint] if checkpoint.is_dir() else []))] or [model]
        for place in places:
            run, epoch = run_of(place)
            found.append((run, epoch or ("checkpoint" if kept else ""), place))
    runs = list(dict.fromkeys(run for run, _, _ in found))
    names = dict(zip(runs, once([model_name(str(run)) for run in runs]), strict=True))
    alone = len(models) == 1 < len(found)
    told = [what if alone else ", ".join(filter(None, [names[run], what])) for run, what, _ in found]
    return list(zip(once(told), (place for _, _, place in found), strict=True))
