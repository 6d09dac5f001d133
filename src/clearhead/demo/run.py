"""Run audit, repair and compare on generated images with a small model that ships with clearhead."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from clearhead.demo.data import make_demo
from clearhead.repairs import RelevanceLoss, default_config
from clearhead.runs import Run, render_report, run
from clearhead.training.config import TrainConfig

MODEL = Path(__file__).parents[1] / "assets" / "demo"
"""A timm checkpoint made by scripts/train_demo.py: a ViT that relies on the background."""

TITLE = "A small ViT before and after its repair"

BATCH_SIZE = 64
OPTIONS: dict[str, Any] = {"target": "truth", "background_swap": 0.5}
LOSS = RelevanceLoss(**OPTIONS)


def settings() -> TrainConfig:
    """Return how the demo trains."""
    return replace(default_config("demo"), batch_size=BATCH_SIZE)


def run_demo(out: Path, *, device: str | None = None) -> tuple[Run, Path]:
    """Generate the images, audit the model on the shifted test split, repair it, compare, and write one page.

    The epoch is selected on the validation split, which has the same shortcut as the training split. The test split,
    which does not have it, is used by the audit and the comparison only. Finished steps are not run again.

    Returns:
        The comparison on the test split, and the path of the page.
    """
    data = out / "data"
    if not (data / "metadata.csv").exists():
        make_demo(data)
    model, measured = str(MODEL), {"data": str(data), "split": "test", "batch_size": 100}
    audit = run("audit", {"model": model, **measured}, out=out / "audit", device=device)
    training = {"preset": "demo", "batch_size": BATCH_SIZE, **OPTIONS}
    repair = run("repair", {"model": model, "data": str(data), **training}, out=out / "repair", device=device)
    after = str(out / "repair" / "checkpoint")
    compare = run("compare", {"before": model, "after": after, **measured}, out=out / "compare", device=device)
    page = out / "report.html"
    render_report([one.folder for one in (compare, audit, repair)], page, TITLE)
    return compare, page
