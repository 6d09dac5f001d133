"""layers: what becomes of feature maps through the depth of a model, and what each layer is needed for."""

import time
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

from clearhead.analyses.cka import cka
from clearhead.analyses.fourier import FeatureMaps, feature_maps
from clearhead.analyses.lesion import Lesions, lesions
from clearhead.data.dataset import ImageIndex
from clearhead.data.images import read_images
from clearhead.data.splits import sample_n
from clearhead.layers import LayersError
from clearhead.models import load_model
from clearhead.models.classifier import on_device
from clearhead.results import CkaResults, FourierResults, LesionResults, Results, once
from clearhead.runs import begin, read_results
from clearhead.workflows.pieces import Progress, data_name, finish, given, model_name, of_each, provenance_of, titled


def run_fourier(
    models: Sequence[str],
    data: str | Path,
    out: Path,
    *,
    split: str | None = None,
    images: int | None = None,
    batch_size: int = 32,
    workers: int = 0,
    seed: int = 0,
    device: str | None = None,
    progress: Progress | None = None,
) -> FourierResults:
    """Frequencies and variance of feature maps through depth, models side by side. ``clearhead layers fourier``.

    Any images will do: labels are not asked for. `images`: at most so many, drawn at random; None for all. The other
    arguments are those of ``clearhead.layers.feature_maps``.
    """
    return _each_model(locals(), "layers fourier", feature_maps, FeatureMaps, FourierResults)


def run_lesion(
    models: Sequence[str],
    data: str | Path,
    out: Path,
    *,
    split: str | None = None,
    images: int | None = None,
    batch_size: int = 32,
    workers: int = 0,
    seed: int = 0,
    device: str | None = None,
    progress: Progress | None = None,
) -> LesionResults:
    """What models lose without each of their units, side by side. ``clearhead layers lesion``.

    `images`: at most so many, drawn at random; None for all. The other arguments are those of
    ``clearhead.layers.lesions``.
    """
    return _each_model(locals(), "layers lesion", lesions, Lesions, LesionResults, labelled=True)


def run_cka(
    models: Sequence[str],
    data: str | Path,
    out: Path,
    *,
    split: str | None = None,
    images: int | None = None,
    batch_size: int = 64,
    workers: int = 0,
    seed: int = 0,
    device: str | None = None,
    progress: Progress | None = None,
) -> CkaResults:
    """How alike the units of one model, or of two, are. ``clearhead layers cka``.

    Any images will do: labels are not asked for. `images`: at most so many, drawn at random; None for all. The other
    arguments are those of ``clearhead.analyses.cka``. Raises LayersError for more than two models.
    """
    arguments = given(locals())
    if not 1 <= len(models) <= 2:
        raise LayersError(f"models: {len(models)} were given; similarity is of one model with itself, or of two")
    if not begin(out, "layers cka", arguments):
        started = time.perf_counter()
        loaded = [on_device(load_model(model), device) for model in models]
        folder = sample_n(read_images(data, split=split), images, seed)
        names = once([model_name(model) for model in models])
        options: dict[str, Any] = {"batch_size": batch_size, "workers": workers, "seed": seed}
        other = loaded[1] if len(loaded) > 1 else None
        similarity = cka(loaded[0], folder, other, **options, progress=titled(progress, " and ".join(names)))
        provenance = provenance_of(arguments, started, folder.samples, loaded[0])
        finish(out, CkaResults("cka", names, data_name(data, split), similarity, list(folder.issues), provenance))
    return read_results(out, Results)


def _each_model(
    given_to: dict[str, Any],
    command: str,
    instrument: Callable[..., Any],
    kind: type,
    results: Callable[..., Any],
    labelled: bool = False,
) -> Any:
    """A run of an instrument on one model after the other; with labels each reads the data by its own classes."""
    arguments, out = given(given_to), given_to["out"]
    models, data, split = (given_to[name] for name in ("models", "data", "split"))

    @cache
    def drawn(classes: Sequence[str] | None) -> ImageIndex:
        return sample_n(read_images(data, split=split, classes=classes), given_to["images"], given_to["seed"])

    def read(classes: Sequence[str]) -> ImageIndex:
        return drawn(classes if labelled else None)

    if not begin(out, command, arguments):
        started, names = time.perf_counter(), once([model_name(model) for model in models])
        options = {name: given_to[name] for name in ("batch_size", "workers", "seed")}
        run = {name: given_to[name] for name in ("device", "progress")}
        places = list(zip(names, models, strict=True))
        found, folder, classifier = of_each(places, read, partial(instrument, **options), kind, out, **run)
        provenance = provenance_of(arguments, started, folder.samples, classifier)
        finish(out, results(command.split()[1], names, data_name(data, split), found, list(folder.issues), provenance))
    return read_results(out, Results)
