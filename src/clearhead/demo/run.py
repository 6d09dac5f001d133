"""Run audit, repair and compare on generated images with a small model that ships with clearhead."""

from pathlib import Path

from clearhead.demo.data import make_demo
from clearhead.repairs import RelevanceLoss
from clearhead.results import ComparisonResults
from clearhead.training.config import TrainConfig
from clearhead.workflows import Progress, run_audit, run_compare, run_repair, run_report

MODEL = Path(__file__).parents[1] / "assets" / "demo"
"""A timm checkpoint made by scripts/train_demo.py: a ViT that relies on the background."""

SETTINGS = TrainConfig(epochs=3, lr=5e-4, batch_size=64, schedule="cosine", min_crop_area=0.8)
LOSS = RelevanceLoss(target="truth", background_swap=0.5)


def run_demo(
    out: Path, *, device: str | None = None, progress: Progress | None = None
) -> tuple[ComparisonResults, Path]:
    """Generate the images, audit the model on the shifted test split, repair it, compare, and write one page.

    The epoch is chosen on the validation split, which has the same shortcut as the training split. The test split,
    which does not have it, is used by the audit and the comparison only. Finished steps are not run again.

    Returns:
        The comparison on the test split, and the path of the page.
    """
    data = out / "data"
    if not (data / "metadata.csv").exists():
        make_demo(data)
    run_audit(str(MODEL), data, out / "audit", split="test", batch_size=100, device=device, progress=progress)
    run_repair(str(MODEL), data, out / "repair", SETTINGS, LOSS, device=device, progress=progress)
    repaired = str(out / "repair" / "checkpoint")
    comparison = run_compare(
        str(MODEL), repaired, data, out / "compare", split="test", batch_size=100, device=device, progress=progress
    )
    page = out / "report.html"
    run_report([out / name for name in ("compare", "audit", "repair")], page, "A small ViT before and after its repair")
    return comparison, page
