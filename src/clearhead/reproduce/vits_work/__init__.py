"""How vision transformers work (Park & Kim, arXiv 2202.06709): its figures on CIFAR, and which of its claims hold.

The models (`sizes`) are trained with one recipe on parts of the images that are written to `out`/data (`images`), then
each analysis is run on them. Every run has a folder with its page, and is not run twice. The measurements are listed in
tables and compared with the paper's statements (`claims`).
"""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from clearhead import runs
from clearhead.analyses.hessian import Spectrum
from clearhead.errors import ClearheadError
from clearhead.reproduce.vits_work.claims import Measurements, claims, compared
from clearhead.reproduce.vits_work.images import CORRUPTED, parts
from clearhead.reproduce.vits_work.sizes import SIZES, Size, percent
from clearhead.reproduce.vits_work.tables import claims_table, main_table, noise_table, series_tables


def reproduce(
    out: Path,
    cifar: str | Path,
    *,
    size: str = "small",
    epochs: int | None = None,
    train: int | None = None,
    seed: int = 0,
    device: str | None = None,
) -> str:
    """Run what is not finished below `out`, and return the tables (Markdown).

    Args:
        out: folder of the runs.
        cifar: CIFAR-10 or CIFAR-100, as ``read_images`` takes it, with the splits train and test.
        size: a key of ``SIZES``.
        epochs: number of epochs in place of the size's.
        train: number of training images in place of the size's.
        seed: of the drawn images, the weights and the order.
        device: where to train and measure.

    Raises:
        DataError: for data without these splits, or with fewer images.
        ClearheadError: for an unknown size, or fewer than three times the epochs of the warm-up.
    """
    if size not in SIZES:
        raise ClearheadError(f"size: {size!r} is unknown; choose from {', '.join(SIZES)}")
    chosen = SIZES[size]
    if epochs is not None and epochs < 3 * chosen.early:
        raise ClearheadError(f"epochs: got {epochs}; at least {3 * chosen.early} are needed, three times the warm-up")
    chosen = replace(chosen, train=train or chosen.train)
    chosen = replace(chosen, settings=replace(chosen.settings, epochs=epochs or chosen.settings.epochs, seed=seed))
    data = parts(out / "data", cifar, chosen, seed)

    def run(command: str, folder: str, /, **arguments: Any) -> Any:
        return runs.run(command, arguments, out=out / folder, device=device).result

    saved: dict[str, list[int]] = {}
    for name, training in chosen.trainings.items():
        saved[name] = [chosen.early, chosen.last(name)] if name in chosen.main else [chosen.last(name)]
        config = asdict(training.settings(chosen.settings))
        config |= {"data": str(data / percent(training.fraction)), "pretrained": False, "save_epochs": saved[name]}
        run("train", name, model=training.model, **config)
    spectra = _spectra(out, data, chosen, saved, device)

    checkpoints = [str(out / name / "checkpoint") for name in chosen.main]
    tested: dict[str, Any] = {"models": checkpoints, "split": "test", "seed": seed}
    whole = str(data / percent(1))
    maps = run("layers fourier", "fourier", **tested, data=whole, limit=chosen.probed)
    run("layers lesion", "lesion", **tested, data=whole, limit=chosen.probed)
    noise = run("evaluate", "frequency-noise", **tested, data=whole, suite=["frequency-noise"])
    corruptions = run("evaluate", "corruptions", **tested, data=str(data / CORRUPTED), suite=["corruptions"])
    # how well training fits is measured after its last epoch: the checkpoint's epoch was selected not to overfit
    audits = {
        (name, split): run(
            "audit",
            f"{name}-on-{split}",
            model=str(out / name / checkpoint),
            data=str(data / percent(training.fraction)),
            split=split,
        )
        for name, training in chosen.trainings.items()
        for split, checkpoint in (("train", f"epochs/{chosen.last(name)}"), ("test", "checkpoint"))
    }
    comparisons = {
        (before, after): run(
            "compare",
            f"{before}-and-{after}",
            before=str(out / before / "checkpoint"),
            after=str(out / after / "checkpoint"),
            data=whole,
            split="test",
        )
        for _, after, before, _ in compared(chosen)
    }
    measured = Measurements(chosen, spectra, maps, noise, corruptions, audits, comparisons)
    tables = [main_table(measured), noise_table(noise), series_tables(measured), claims_table(claims(measured))]
    return "\n".join(tables)


def _spectra(
    out: Path, data: Path, size: Size, saved: dict[str, list[int]], device: str | None
) -> dict[str, dict[int, Spectrum]]:
    """Return the spectra of each training at its saved epochs, of its training loss without the weight decay."""
    groups: dict[tuple[str, str], list[str]] = {}  # trainings on the same images with the same augmentation
    for name, training in size.trainings.items():
        config = training.settings(size.settings)
        groups.setdefault((percent(training.fraction), config.augment), []).append(name)
    spectra: dict[str, dict[int, Spectrum]] = {}
    for (part, augment), names in groups.items():
        config = size.trainings[names[0]].settings(size.settings)
        models = [str(out / name / "epochs" / str(epoch)) for name in names for epoch in saved[name]]
        arguments: dict[str, Any] = {"models": models, "data": str(data / part), "split": "train"}
        arguments |= {"batches": size.batches, "seed": config.seed, "augment": augment, "mixup": config.mixup}
        arguments |= {"cutmix": config.cutmix, "label_smoothing": config.label_smoothing}
        folder = out / f"hessian-{part}-{augment}"
        result = runs.run("landscape hessian", arguments, out=folder, device=device).result
        for name in names:
            spectra[name] = {epoch: result.spectra[f"{name}, epoch {epoch}"] for epoch in saved[name]}
    return spectra
