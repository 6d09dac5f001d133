"""Run audit, repair and compare on generated images with a small model that ships with clearhead.

A second repair has tags of 100 images instead of masks.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

from clearhead.analyses.compare import ComparisonResult
from clearhead.analyses.compare import measure as compare
from clearhead.analyses.repair_check import comparison_table
from clearhead.data.images import read_images
from clearhead.data.tags import TaggedFile, write_tags
from clearhead.demo.data import USUAL_BACKGROUND, make_demo
from clearhead.models import load_model, save_model
from clearhead.models.classifier import on_device
from clearhead.progress import log, show_progress
from clearhead.repairs import RelevanceLoss, default_config, repair
from clearhead.report.page import Table
from clearhead.report.page import write as write_page
from clearhead.runs import Run, merge_pages, run
from clearhead.storage import resumable
from clearhead.training.config import TrainConfig

MODEL = Path(__file__).parents[1] / "assets" / "demo"
"""A timm checkpoint made by scripts/train_demo.py: a ViT that relies on the background."""

TITLE = "A small ViT before and after its repair"

BATCH_SIZE = 64
ATTRIBUTION = "libragrad"
"""The most faithful map of this model; that of GAE is no better than chance (docs/results.md)."""

OPTIONS: dict[str, Any] = {"target": "truth", "background_swap": 0.5, "attribution": ATTRIBUTION}
LOSS = RelevanceLoss(**OPTIONS)


def settings() -> TrainConfig:
    """Return how the demo trains."""
    return replace(default_config("demo"), batch_size=BATCH_SIZE)


def repair_by_tags(data: Path, out: Path, *, device: str | None = None) -> ComparisonResult:
    """Propose images to tag, tag them, retrain the classifier head on them alone, and compare on the test split.

    The person who tags is simulated: the tags are the known backgrounds, usual for the class or not.
    """
    proposed = run("tag", {"model": str(MODEL), "data": str(data), "batch_size": 100}, out=out / "tag", device=device)

    def compute() -> ComparisonResult:
        model = on_device(load_model(str(MODEL)), device)
        train, validation, test = (read_images(data, split=s, classes=model.classes) for s in ("train", "val", "test"))
        background = {sample.file: sample.groups["background"] for sample in train.samples}
        with_shortcut, without = proposed.result.values
        rows = [
            TaggedFile(
                one.file, with_shortcut if background[one.file] == USUAL_BACKGROUND[one.label] else without, one.label
            )
            for one in proposed.result.proposals
        ]
        tags = out / "tags.csv"
        write_tags(tags, rows)
        repaired, _ = repair(model, train, validation, method="dfr", tags=tags, device=device, progress=show_progress)
        save_model(repaired, out / "tagged" / "checkpoint")
        maskless = replace(test, samples=tuple(replace(sample, mask=None) for sample in test.samples))
        return compare(model, repaired, maskless, batch_size=100, progress=show_progress)

    return resumable(out / "tagged", "comparison", compute, ComparisonResult)


def tag_section(result: ComparisonResult) -> Table:
    """Return the comparison of the repair by tags as a section of the demo's page."""
    text = (
        "100 training images proposed by clearhead tag, tagged by whether their background is the usual one of their "
        "class (simulated from the known backgrounds), and the classifier head retrained on them alone (dfr)."
    )
    return comparison_table(result.comparison, "Repaired by 100 tags, without masks", text)


def run_demo(out: Path, *, device: str | None = None) -> tuple[Run, Path]:
    """Generate the images, audit the model on the shifted test split, repair it by masks and by tags, and compare.

    The epoch is selected on the validation split, which has the same shortcut as the training split. The test split,
    which does not have it, is used by the audit and the comparisons only. Finished steps are not run again.

    Returns:
        The comparison on the test split, and the path of the page.
    """
    data = out / "data"
    if not (data / "metadata.csv").exists():
        make_demo(data)
    model, measured = str(MODEL), {"data": str(data), "split": "test", "batch_size": 100, "method": ATTRIBUTION}
    audit = run("audit", {"model": model, **measured}, out=out / "audit", device=device)
    training = {"preset": "demo", "batch_size": BATCH_SIZE, **OPTIONS}
    repaired = run("repair", {"model": model, "data": str(data), **training}, out=out / "repair", device=device)
    after = str(out / "repair" / "checkpoint")
    compared = run("compare", {"before": model, "after": after, **measured}, out=out / "compare", device=device)
    by_tags = repair_by_tags(data, out, device=device)
    difference = by_tags.comparison.differences["worst-group accuracy"]
    log.info("repaired by 100 tags, without masks: worst-group accuracy %+.1f points", 100 * difference.value)
    page, merged = out / "report.html", merge_pages([compared, audit, repaired], TITLE)
    write_page(replace(merged, sections=[*merged.sections, tag_section(by_tags)]), page)
    return compared, page
