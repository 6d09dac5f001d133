"""Folders of masks, by a model whose keys are the patches' colours, for which the true masks are known."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor, nn

from clearhead.data.folder import read_folder
from clearhead.data.image_io import DataError, load_image, load_mask
from clearhead.masks import Limits, write_masks
from clearhead.models import Classifier, Preprocessing, from_module
from tests.cases import classifier

BACKGROUND, OBJECT = (20, 40, 230), (230, 60, 20)
ALL = Limits(0, 1, 1, 0)


class Colours(nn.Module):
    """A transformer of one layer whose queries, keys and values are the mean colours of patches of 4 x 4."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 3, 4, 4)
        self.head = nn.Linear(3, 2)
        with torch.no_grad():
            self.patches.weight.copy_(torch.eye(3)[..., None, None].expand(3, 3, 4, 4) / 16)

    def forward(self, images: Tensor) -> Tensor:
        tokens = F.pad(self.patches(images).flatten(2).mT, (0, 0, 1, 0))[:, None]  # a first token of zeros
        return self.head(F.scaled_dot_product_attention(tokens, tokens, tokens)[:, 0, 0])


@pytest.fixture(scope="module")
def model() -> Classifier:
    torch.manual_seed(0)
    half = (0.5, 0.5, 0.5)
    return from_module(Colours(), preprocess=Preprocessing((64, 64), (80, 80), half, half), classes=("a", "b"))


def draw(size: tuple[int, int], box: tuple[float, float, float, float] | None) -> Image.Image:
    """An object in a box, given as fractions of the sides, on a uniform background."""
    image = Image.new("RGB", size, BACKGROUND)
    if box:
        (x0, x1), (y0, y1) = ([side * box[i + k] for k in (0, 2)] for i, side in enumerate(size))
        ImageDraw.Draw(image).rectangle((x0, y0, x1 - 1, y1 - 1), fill=OBJECT)
    return image


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Four images: objects at two positions, one with EXIF orientation 6, and one without an object."""
    root = tmp_path / "source"
    for name in ("cat/1.png", "cat/2.png", "dog/1.jpg", "dog/plain.png"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
    draw((128, 96), (0.25, 0.25, 0.75, 0.5)).save(root / "cat/1.png")
    draw((64, 160), (0.125, 0.5, 0.5, 0.875)).save(root / "cat/2.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    draw((128, 64), (0.25, 0.25, 0.75, 0.75)).save(root / "dog/1.jpg", exif=exif, quality=95)
    draw((64, 64), None).save(root / "dog/plain.png")
    (root / "metadata.csv").write_text("file,split,place\ncat/1.png,train,sea\n")
    return root


def write_true_masks(folder: Path) -> None:
    """Write masks of the red pixels beside the images."""
    for path in [*folder.glob("*/*.png"), *folder.glob("*/*.jpg")]:
        red = np.asarray(load_image(path))[..., 0] > 128
        target = folder / "masks" / path.parent.name / f"{path.stem}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        if red.any():
            Image.fromarray(red).save(target)


def overlap(folder: Path, name: str) -> float:
    """Return the IoU of a written mask with the red pixels."""
    (image,) = folder.glob(f"{name}.*")
    red = np.asarray(load_image(image))[..., 0] > 128
    mask = np.asarray(load_mask(folder / "masks" / f"{name}.png")) > 0
    assert mask.shape == red.shape
    return (mask & red).sum() / (mask | red).sum()


def list_files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_masks_of_objects_are_written_to_a_new_folder(source: Path, tmp_path: Path, model: Classifier) -> None:
    out = tmp_path / "new" / "out"
    tracked: list[tuple[int, str]] = []

    def progress(items, count, title):  # type: ignore[no-untyped-def]
        tracked.append((count, title))
        return items

    done = write_masks(source, out, model, batch_size=3, progress=progress)
    assert (done.folder, done.images, done.masks) == (out, 4, 3)
    assert done.dropped == {"no-object": 1}
    assert [(p.file, p.category) for p in done.issues if p.action == "mask dropped"] == [("dog/plain.png", "no-object")]
    assert (done.patch_iou, done.all_iou, done.saved_iou) == (None, None, None)
    assert tracked == [(4, "masks")]
    for name in ("cat/1", "cat/2", "dog/1"):
        assert overlap(out, name) > 0.9
    assert load_mask(out / "masks/dog/1.png").size == (64, 128)  # rotated like its image
    assert (out / "cat/1.png").samefile(source / "cat/1.png")
    assert (out / "metadata.csv").read_text() == (source / "metadata.csv").read_text()
    data = read_folder(out)
    assert sorted(sample.file for sample in data.samples if sample.mask) == ["cat/1.png", "cat/2.png", "dog/1.jpg"]
    areas = [np.asarray(load_mask(s.mask)).mean() / 255 for s in data.samples if s.mask]
    assert done.area.value == pytest.approx(np.mean(areas))
    assert sorted(p.name for p in out.parent.iterdir()) == ["out"]


def test_masks_beside_the_images_do_not_replace_others(source: Path, model: Classifier) -> None:
    before = list_files(source)
    done = write_masks(source, None, model)
    assert (done.folder, done.masks) == (source, 3)
    assert set(list_files(source)) - set(before) == {
        "masks", "masks/cat", "masks/cat/1.png", "masks/cat/2.png", "masks/dog", "masks/dog/1.png",
    }  # fmt: skip
    with pytest.raises(DataError, match=r"masks exists and is not an empty folder; name a new folder"):
        write_masks(source, None, model)


def test_new_masks_are_compared_with_true_masks(source: Path, tmp_path: Path, model: Classifier) -> None:
    write_true_masks(source)
    done = write_masks(source, tmp_path / "out", model, limits=Limits(max_area=0.2))
    assert done.dropped == {"too-large": 1, "no-object": 1}
    assert done.patch_iou
    assert done.all_iou
    assert done.saved_iou
    assert (done.patch_iou.count, done.all_iou.count, done.saved_iou.count) == (3, 3, 2)
    assert done.all_iou.value > 0.9
    overlaps = [overlap(tmp_path / "out", name) for name in ("cat/1", "cat/2")]
    assert done.saved_iou.value == pytest.approx(np.mean(overlaps))
    assert not (tmp_path / "out/masks/dog/1.png").exists()
    assert (tmp_path / "out/dog/1.jpg").exists()


@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        (Limits(min_area=0.5), "too-small"),
        (Limits(max_area=0.05), "too-large"),
        (Limits(max_border=0), None),
        (Limits(min_agreement=1), None),
    ],
)
def test_masks_are_dropped_for_a_named_reason(
    source: Path, tmp_path: Path, model: Classifier, limits: Limits, reason: str | None
) -> None:
    (source / "dog/plain.png").unlink()
    if reason is None:
        assert write_masks(source, tmp_path / "out", model, limits=limits).dropped == {}
    else:
        with pytest.raises(DataError, match=rf"the masks of all 3 images were dropped \(3 {reason}\)"):
            write_masks(source, tmp_path / "out", model, limits=limits)
        assert not (tmp_path / "out").exists()
        assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_an_object_at_the_border_or_one_that_depends_on_tau_is_dropped(tmp_path: Path, model: Classifier) -> None:
    (tmp_path / "in/cat").mkdir(parents=True)
    draw((64, 64), (0.25, 0.25, 0.75, 0.75)).save(tmp_path / "in/cat/good.png")
    draw((64, 64), (0, 0, 0.25, 0.5)).save(tmp_path / "in/cat/corner.png")
    other = (120, 40, 230)  # dissimilar to the background at this tau, similar at a slightly lower one
    faint = Image.new("RGB", (64, 64), BACKGROUND)
    faint.paste(other, (16, 16, 48, 48))
    faint.save(tmp_path / "in/cat/faint.png")
    tau = float(F.cosine_similarity(*(torch.tensor(colour) / 127.5 - 1 for colour in (BACKGROUND, other)), 0)) + 0.05
    done = write_masks(tmp_path / "in", tmp_path / "out", model, tau=tau)
    assert {p.file: p.category for p in done.issues} == {"cat/corner.png": "at-border", "cat/faint.png": "inconsistent"}


def test_images_that_share_a_mask_name_get_no_mask(source: Path, tmp_path: Path, model: Classifier) -> None:
    draw((64, 64), (0.25, 0.25, 0.75, 0.75)).save(source / "cat/1.jpg")
    done = write_masks(source, tmp_path / "out", model)
    assert done.dropped == {"shared-name": 2, "no-object": 1}
    assert (done.images, done.masks) == (5, 2)
    assert (tmp_path / "out/cat/1.jpg").exists()


def test_a_random_vision_transformer_gives_masks_of_the_images_sizes(source: Path, tmp_path: Path) -> None:
    done = write_masks(source, tmp_path / "out", classifier("timm-vit"), limits=ALL, tau=0.0)
    assert done.masks + done.dropped.get("no-object", 0) == 4
    assert not [p for p in read_folder(tmp_path / "out").issues if p.category == "mask-size"]


def test_errors_name_the_argument_and_leave_no_files(source: Path, tmp_path: Path, model: Classifier) -> None:
    before = list_files(tmp_path)
    with pytest.raises(ValueError, match="model, annotations: exactly one of the two"):
        write_masks(source)
    with pytest.raises(ValueError, match="a plain ViT works"):
        write_masks(source, tmp_path / "out", classifier("timm-swin"))
    with pytest.raises(DataError, match=r"source exists and is not an empty folder; choose another"):
        write_masks(source, source, model)
    with pytest.raises(DataError, match="no such folder"):
        write_masks(tmp_path / "none", tmp_path / "out", model)
    with pytest.raises(ValueError, match="min_area: got 2; a fraction from 0 to 1"):
        Limits(min_area=2)
    assert list_files(tmp_path) == before
