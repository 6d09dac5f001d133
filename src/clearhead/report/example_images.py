"""Example images of a run on its page."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from clearhead import results
from clearhead.analyses.audit import Audit
from clearhead.report.page import ExampleImages, Gallery


def gallery(title: str, text: str, examples: Sequence[results.ExampleImages], folder: Path) -> Gallery:
    """Return the example images of a run in a folder under one heading."""
    rows = []
    for example in examples:
        images = [(caption, np.asarray(Image.open(folder / "pictures" / file))) for caption, file in example.pictures]
        rows.append(ExampleImages(images, example.title, example.text))
    return Gallery(title, text, rows)


def map_text(audit: Audit) -> str:
    """What the maps of its strips are."""
    return f"Maps: {audit.method}, of the class each model predicts; the line is the mask."
