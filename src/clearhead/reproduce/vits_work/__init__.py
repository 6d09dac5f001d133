"""How vision transformers work (Park & Kim, arXiv 2202.06709): its figures on CIFAR, and which of its claims hold.

The models (`sizes`) are trained alike on parts of the images that are written to `out`/data (`images`), then each
instrument is run on them: every piece is a run folder with its page, and is not done twice. What was found is told in
tables, and held against what the paper says (`claims`).
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

from clearhead import runs_new, workflows
from clearhead.analyses.hessian import Spectrum
from clearhead.errors import ClearheadError
from clearhead.progress import Progress
from clearhead.reproduce.vits_work.claims import Found, claims, compared
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
    progress: Progress | None = None,
) -> str:
    """Do what is not done yet below `out`, and give the tables (Markdown).

    Args:
        out: folder of the runs.
        cifar: CIFAR-10 or CIFAR-100, as ``read_images`` takes it, with the splits train and test.
        size: of ``SIZES``.
        epochs: in place of the size's.
        train: training images in place of the size's.
        seed: of the images drawn, the weights and the order.
        device: where to train and measure.
        track: shows progress: ``track(pieces, count, title)``.

    Raises:
        DataError: for data without these splits, or with fewer images.
        ClearheadError: for another size, or fewer than three times the epochs of the warm-up.
    """
    if size not in SIZES:
        raise ClearheadError(f"size: {size!r} is unknown; there is {', '.join(SIZES)}")
    chosen = SIZES[size]
    if epochs is not None and epochs < 3 * chosen.early:
        raise ClearheadError(f"epochs: got {epochs}; at least {3 * chosen.early} are needed, three times the warm-up")
    chosen = replace(chosen, train=train or chosen.train)
    chosen = replace(chosen, settings=replace(chosen.settings, epochs=epochs or chosen.settings.epochs, seed=seed))
    data = parts(out / "data", cifar, chosen, seed)
    run: dict[str, Any] = {"device": device, "progress": progress}

    kept: dict[str, tuple[int, ...]] = {}
    for name, training in chosen.trainings.items():
        kept[name] = (chosen.early, chosen.last(name)) if name in chosen.main else (chosen.last(name),)
        part, how = data / percent(training.fraction), training.settings(chosen.settings)
        workflows.run_train(training.model, part, out / name, how, pretrained=False, save_epochs=kept[name], **run)
    spectra = _spectra(out, data, chosen, kept, device)

    checkpoints = [str(out / name / "checkpoint") for name in chosen.main]
    probed: dict[str, Any] = {"models": checkpoints, "data": str(data / "100"), "split": "test"}
    probed |= {"limit": chosen.probed, "seed": seed}
    maps, _ = (
        runs_new.run(f"layers {name}", probed, out=out / name, device=device).result for name in ("fourier", "lesion")
    )
    noise, corruptions = (
        runs_new.run(
            "evaluate",
            {"models": checkpoints, "data": str(data / of), "suite": [suite], "split": "test", "seed": seed},
            out=out / suite,
            device=device,
        ).result
        for suite, of in (("frequency-noise", "100"), ("corruptions", CORRUPTED))
    )
    # how well training fits is told by its end: the epoch that is kept was chosen not to overfit
    audits = {
        (name, split): workflows.run_audit(
            str(out / name / place), data / percent(training.fraction), out / f"{name}-on-{split}", split=split, **run
        )
        for name, training in chosen.trainings.items()
        for split, place in (("train", f"epochs/{chosen.last(name)}"), ("test", "checkpoint"))
    }
    against = {
        (before, after): workflows.run_compare(
            str(out / before / "checkpoint"),
            str(out / after / "checkpoint"),
            data / "100",
            out / f"{before}-against-{after}",
            split="test",
            **run,
        )
        for _, after, before, _ in compared(chosen)
    }
    found = Found(chosen, spectra, maps, noise, corruptions, audits, against)
    tables = [main_table(found), noise_table(noise), series_tables(found), claims_table(claims(found))]
    return "\n".join(tables)


def _spectra(
    out: Path, data: Path, size: Size, kept: dict[str, tuple[int, ...]], device: str | None
) -> dict[str, dict[int, Spectrum]]:
    """The spectra of each training at its epochs, of the loss it was trained on but for its weight decay."""
    alike: dict[tuple[str, str], list[str]] = {}
    for name, training in size.trainings.items():
        how = training.settings(size.settings)
        alike.setdefault((percent(training.fraction), how.augment), []).append(name)
    found: dict[str, dict[int, Spectrum]] = {}
    for (part, augment), names in alike.items():
        how = size.trainings[names[0]].settings(size.settings)
        models = [str(out / name / "epochs" / str(epoch)) for name in names for epoch in kept[name]]
        options: dict[str, Any] = {"models": models, "data": str(data / part), "split": "train"}
        options |= {"batches": size.batches, "seed": how.seed}
        options |= {"augment": augment, "mixup": how.mixup, "cutmix": how.cutmix}
        options |= {"label_smoothing": how.label_smoothing}
        folder = out / f"hessian-{part}-{augment}"
        measured = runs_new.run("landscape hessian", options, out=folder, device=device).result
        for name in names:
            found[name] = {epoch: measured.spectra[f"{name}, epoch {epoch}"] for epoch in kept[name]}
    return found
