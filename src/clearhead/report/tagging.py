"""The page on which images are tagged: one self-contained HTML file with its own script, style and images.

It makes no network requests: a content security policy allows this script only, by its hash, and images as data URIs.
Progress is saved in the browser, by the digest of the run.
"""

import base64
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2
from markupsafe import Markup

from clearhead.report.images import Array, data_uri, is_tiny

TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class ImageToTag:
    """An image of the page, H x W x 3 of uint8, with its name, its class and the class that the model predicts."""

    file: str
    label: str
    predicted: str
    pixels: Array


def render_tagging(
    images: Sequence[ImageToTag],
    values: Sequence[str],
    *,
    run: str,
    title: str,
    lead: str,
    command: str,
    minimum: int,
) -> str:
    """Return the page as HTML.

    Args:
        images: to tag, in order.
        values: the tags to start with; they can be changed on the page.
        run: digest by which the browser saves progress.
        title: heading.
        lead: what to do.
        command: of the repair that reads the tags.
        minimum: images that a group needs.
    """
    data = {
        "run": run,
        "values": list(values),
        "images": [
            {
                "file": one.file,
                "label": one.label,
                "predicted": one.predicted,
                "src": data_uri(one.pixels, largest=_LARGEST_SIDE),
                "tiny": is_tiny(one.pixels),
            }
            for one in images
        ],
    }
    script = (TEMPLATES / "tag.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    return environment.get_template("tag.html.j2").render(
        title=title,
        lead=lead,
        command=command,
        minimum=minimum,
        script=Markup(script),
        script_hash=f"sha256-{digest}",
        data=Markup(json.dumps(data, ensure_ascii=False).replace("<", "\\u003c")),
    )


_LARGEST_SIDE = 448
"""Pixels of an image's longer side: enough to see a watermark, and 100 images make a page of a few MB."""
