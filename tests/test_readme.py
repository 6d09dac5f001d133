"""README's Python examples run as they stand, but for a model that needs no download."""

import re
from pathlib import Path

import pytest
import torch
from PIL import Image

from clearhead.demo.run import MODEL
from clearhead.models import load_model

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.mark.parametrize("code", EXAMPLES)
def test_the_example_runs(code):
    given = {
        "picture": Image.new("RGB", (80, 64), "teal"),
        "module": load_model(str(MODEL)).module,
        "images": torch.randn(2, 3, 64, 64),
    }
    exec(code.replace("timm:vit_small_patch16_224", str(MODEL)), given)
    if "maps" in given:
        assert given["maps"].shape == (1, 64, 64)
    else:
        assert given["record"][-1].attn().shape == (2, 4, 65, 65)


def test_every_document_it_links_to_is_there():
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (Path(__file__).parents[1] / target).is_file(), target
