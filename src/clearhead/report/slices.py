"""Slices on the page: which parts of the classes a model fails on, and pictures of them."""

from pathlib import Path

from clearhead.analyses.slices import Overlap, Slice
from clearhead.metrics.statistics import format_value
from clearhead.report.example_images import gallery
from clearhead.report.page import Row, Section, Table
from clearhead.results import SlicesResults

MOST_SLICES = 12
"""The table shows this many, the surest to be worse first."""

_SPACES = {
    "features": "features (what the last layer is given)",
    "relevance": "relevance (where the map lies)",
    "both": "features and relevance",
}


def slice_sections(run: SlicesResults, folder: Path, of: str = "") -> list[Section]:
    """The table of the slices, and for each that is worse than its class the mistakes nearest to its middle."""
    worse = [part for part in run.slices if part.worse]
    shown = run.slices[:MOST_SLICES]
    text = (
        f"Each class was divided by {_SPACES[run.space]} on one half of its images; the numbers are of the other half, "
        f"{run.held_out:,} images. {len(worse)} of {len(run.slices)} slices have more mistakes than the rest of their "
        f"class (p at most 0.05: Fisher's exact test, corrected for all of them). Metadata did not help to find them."
    )
    if len(shown) < len(run.slices):
        text += f" The {len(shown)} of lowest p are shown."
    columns = list(dict.fromkeys(overlap.column for part in run.slices for overlap in part.overlaps))
    rows = [_row(part) for part in shown]
    titles = ["errors", "errors in the rest", "p", "taken for", *columns]
    sections: list[Section] = [Table(f"Slices{of}", titles, rows, text, names="slice")]
    for part, examples in zip(worse, run.examples, strict=False):
        if examples:
            shares = [f"Column {o.column}: {_shares(o)}. " for o in part.overlaps]
            text = (
                f"{format_value(part.error.value, '%')} of its {part.error.count:,} images are wrong, "
                f"{format_value(part.rest.value, '%')} of the rest of {part.label}. {''.join(shares)}"
                f"Shown are the mistakes nearest to its middle. Maps: {run.method}, of the class the model predicts."
            )
            sections.append(gallery(f"Slice {part.name}{of}", text, examples, folder))
    return sections


def _row(part: Slice) -> Row:
    taken = f"{part.mistaken_for} ({100 * part.mistaken_share:.0f}%)" if part.mistaken_for else ""
    p = f"{part.p_value:.2g}" if part.p_value >= 1e-4 else "below 0.0001"
    return Row(part.name, [part.error, part.rest, p, taken, *map(_shares, part.overlaps)])


def _shares(overlap: Overlap) -> str:
    """The value, its share of the slice, and of the rest of the class."""
    return f"{overlap.value} in {100 * overlap.inside:.0f}% (rest {100 * overlap.outside:.0f}%)"
