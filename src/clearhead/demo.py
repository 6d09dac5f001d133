"""The whole job on generated pictures and a small model that ships with clearhead: audit, repair, compare, one page."""

from pathlib import Path

from clearhead.data.demo import make_demo
from clearhead.repair import Relevance
from clearhead.results import ComparisonResults
from clearhead.train import Settings
from clearhead.workflows import Track, run_audit, run_compare, run_repair, run_report

MODEL = Path(__file__).parent / "assets" / "demo"
"""A timm checkpoint made by scripts/train_demo.py: a ViT that has learned to read the ground."""

SETTINGS = Settings(epochs=3, lr=5e-4, batch_size=64, schedule="cosine", crop=0.8)
LOSS = Relevance(target="truth", exchange=0.5)


def run_demo(out: Path, *, device: str | None = None, track: Track | None = None) -> tuple[ComparisonResults, Path]:
    """Make the pictures, audit the model on the shifted test set, repair it, compare, and write one page.

    The epoch is chosen on the validation pictures, in which the shortcut holds as in training; the test pictures, in
    which it does not, are used once, by the audit and the comparison. What is there already is not done again.

    Returns:
        The comparison on the test set, and the path of the page.
    """
    data = out / "data"
    if not (data / "metadata.csv").exists():
        make_demo(data)
    run_audit(str(MODEL), data, out / "audit", split="test", batch_size=100, device=device, track=track)
    run_repair(str(MODEL), data, out / "repair", SETTINGS, LOSS, device=device, track=track)
    repaired = str(out / "repair" / "checkpoint")
    comparison = run_compare(
        str(MODEL), repaired, data, out / "compare", split="test", batch_size=100, device=device, track=track
    )
    page = out / "report.html"
    run_report([out / name for name in ("compare", "audit", "repair")], page, "A small ViT before and after its repair")
    return comparison, page
