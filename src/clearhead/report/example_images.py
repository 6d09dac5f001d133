"""Pictures of a run on its page."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from clearhead.analyses.audit import Audit
from clearhead.report import page
from clearhead.report.page import Gallery
from clearhead.results import ExampleImages


def gallery(title: str, text: str, examples: Sequence[ExampleImages], folder: Path) -> Gallery:
    """Strips of the run in a folder under one heading."""

    def picture(strip: ExampleImages) -> page.ExampleImages:
        images = [(caption, np.asarray(Image.open(folder / "pictures" / file))) for caption, file in strip.pictures]
        return page.ExampleImages(images, strip.title, strip.text)

    return Gallery(title, text, [picture(strip) for strip in examples])


def map_text(audit: Audit) -> str:
    """What the maps of its strips are."""
    return f"Maps: {audit.method}, of the class each model predicts; the line is the mask."
