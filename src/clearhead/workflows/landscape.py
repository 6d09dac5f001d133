"""landscape hessian: how flat and how convex is the loss around the weights?"""

import time
from collections.abc import Sequence
from pathlib import Path

from clearhead.data.shards import read_images
from clearhead.landscape import spectra
from clearhead.models import load_model
from clearhead.models.classifier import on_device
from clearhead.results import Results, SpectrumResults
from clearhead.runs import begin, read_results
from clearhead.workflows.pieces import Track, data_name, facts_of, finish, given, model_name, once, titled


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
    crop: float | None = None,
    tolerance: float = 1e-2,
    workers: int = 0,
    seed: int = 0,
    device: str | None = None,
    track: Track | None = None,
) -> SpectrumResults:
    """The largest eigenvalues of the loss on mini-batches, models side by side. ``clearhead landscape hessian``.

    The arguments are those of ``clearhead.landscape.spectra``; each model reads the data by its own classes.
    """
    arguments = given(locals())
    if not begin(out, "landscape hessian", arguments):
        started = time.perf_counter()
        names = once([model_name(model) for model in models])
        options = {"k": k, "batches": batches, "batch_size": batch_size, "weight_decay": weight_decay, "crop": crop}
        options |= {"tolerance": tolerance, "workers": workers, "seed": seed}
        found = {}
        for name, model in zip(names, models, strict=True):
            classifier = on_device(load_model(model), device)
            folder = read_images(data, split=split, classes=classifier.classes)
            found[name] = spectra(classifier, folder, **options, track=titled(track, name))  # type: ignore[arg-type]
        facts = facts_of(arguments, started, folder.samples, classifier)
        problems = list(folder.problems)
        finish(out, SpectrumResults("spectrum", names, data_name(data, split), k, found, problems, facts))
    return read_results(out, Results)
