"""Make MNIST-CIFAR: images of a car or a truck below an MNIST digit that is spuriously correlated with the class.

The data set of Nicolicioiu et al. (2023, arXiv 2308.16274), after Shah et al. (2020). The label is that of the CIFAR-10
image, automobile 0 or truck 1. The MNIST digit, 0 or 1, disagrees with it in 10% of the images in training and in
distribution (ID), and in 50% out of distribution (OOD): a classifier that relies only on the digit has an accuracy of
90% ID and 50% OOD.

Each automobile and truck of CIFAR-10 is used once in `train`, or once in ID and once in OOD. The test split is divided
into validation (20% of each class) and test before any pairing, vehicles and digits alike, so no source image is in
both a validation and a test part. (The public code divides ID and OOD separately: its OOD validation shares images with
its ID test. It also drops images without a partner, about ten of 2,000 ID images.) Digits are repeated if a part needs
more than exist: MNIST's test split has 980 zeros for about 1,000 images.
"""

import gzip
import zlib
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from clearhead.data.dataset import format_names
from clearhead.data.image_io import DataError, format_size
from clearhead.data.writing import require_no_metadata, write_metadata, writing
from clearhead.errors import ClearheadError

CLASSES = ("automobile", "truck")
DIGITS = (0, 1)
VEHICLES = (1, 9)
"""CIFAR-10's labels of automobile and truck."""
PARTS = {
    "train": ("train", 0.1),
    "id-val": ("val", 0.1),
    "id-test": ("test", 0.1),
    "ood-val": ("val", 0.5),
    "ood-test": ("test", 0.5),
    "spurious": ("test", 0.5),
}
"""The split each part is made from, and the probability that a digit disagrees with its vehicle."""
VALIDATION = 5
"""One in this many images of the test splits is for validation."""


@dataclass(frozen=True)
class Part:
    """The N images of one part.

    Attributes:
        images: N x 3 x 64 x 32 uint8, the digit above the vehicle.
        label: N; 0 automobile, 1 truck; in `spurious` the digit.
        digit: N; 0 or 1.
        mnist: N; the digit's row in MNIST's train or test split.
        cifar: N; the vehicle's row in CIFAR-10's train or test split.
    """

    images: np.ndarray
    label: np.ndarray
    digit: np.ndarray
    mnist: np.ndarray
    cifar: np.ndarray


@dataclass(frozen=True)
class _Images:
    """Images of two classes."""

    pixels: np.ndarray  # N x side x side (x 3), uint8
    label: np.ndarray  # N: 0 or 1
    row: np.ndarray  # N: row in the source's split

    def select(self, index: np.ndarray) -> "_Images":
        return _Images(self.pixels[index], self.label[index], self.row[index])


def mnist_cifar(mnist: str | Path, cifar: str | Path, seed: int = 0) -> dict[str, Part]:
    """Return the parts train (10,000 images), id-val and ood-val (400), id-test, ood-test and spurious (1,600).

    Whether a digit disagrees is drawn for each image, as in the public code, so the fraction varies about 0.1 or 0.5.
    In `spurious` the label is the digit's and the vehicle is random: accuracy there measures reliance on the digit. It
    is made of the test parts' images, so it must not be used for model selection. Equal seeds and files give equal
    arrays.

    Args:
        mnist: a local folder: Parquet files in the Hub's layout (`image` or `img`, `label`), or idx files (also .gz,
            also in MNIST/raw).
        cifar: a local folder: Parquet files in the Hub's layout, or cifar-10-batches-py.
        seed: decides everything that is random.

    Raises:
        DataError: for a negative seed, or files that are missing or broken.
    """
    if seed < 0:
        raise DataError(f"seed must be 0 or more, got {seed}")
    digits, vehicles = _read_mnist(Path(mnist)), _read_cifar10(Path(cifar))
    rng = np.random.default_rng([seed, 0])
    pools = {"train": (digits["train"], vehicles["train"])}
    pools["val"], pools["test"] = zip(_divide(digits["test"], rng), _divide(vehicles["test"], rng), strict=True)
    parts = {}
    for number, (name, (pool, disagreement)) in enumerate(PARTS.items(), 1):
        above, below, images = _pair(*pools[pool], disagreement, np.random.default_rng([seed, number]))
        label = above.label if name == "spurious" else below.label
        parts[name] = Part(images, label, above.label, above.row, below.row)
    return parts


def make_mnist_cifar(root: str | Path, mnist: str | Path, cifar: str | Path, seed: int = 0) -> None:
    """Write the parts of ``mnist_cifar`` as a folder for ``read_folder``.

    PNG images of 32 x 64 pixels in automobile/ and truck/, masks (255 = the vehicle's half) and metadata.csv with file,
    split (the part) and digit, which is written last: if it exists, the data set is complete. Raises DataError, also if
    `root` already holds a metadata.csv.
    """
    root = Path(root)
    require_no_metadata(root)
    parts = mnist_cifar(mnist, cifar, seed)
    lower = BytesIO()
    Image.fromarray(np.repeat([[0], [255]], 32, axis=0).repeat(32, axis=1).astype(np.uint8)).save(lower, "png")
    with writing(root):
        for label in CLASSES:
            (root / label).mkdir(parents=True, exist_ok=True)
            (root / "masks" / label).mkdir(parents=True, exist_ok=True)
        rows = []
        for name, part in parts.items():
            for number, (image, label, digit) in enumerate(zip(part.images, part.label, part.digit, strict=True)):
                file = f"{CLASSES[label]}/{name}_{number:05d}.png"
                Image.fromarray(image.transpose(1, 2, 0)).save(root / file)
                (root / "masks" / file).write_bytes(lower.getvalue())
                rows.append([file, name, digit])
        write_metadata(root, ("file", "split", "digit"), rows)


def _divide(images: _Images, rng: np.random.Generator) -> tuple[_Images, _Images]:
    """Return a random 20% of each class, and the rest."""
    held_out = np.zeros(len(images.label), dtype=bool)
    for value in (0, 1):
        members = rng.permutation(np.flatnonzero(images.label == value))
        if len(members) < VALIDATION:
            raise DataError(f"{VALIDATION} test images of each class are needed to divide them, got {len(members)}")
        held_out[members[: len(members) // VALIDATION]] = True
    return images.select(np.flatnonzero(held_out)), images.select(np.flatnonzero(~held_out))


def _pair(
    digits: _Images, vehicles: _Images, disagreement: float, rng: np.random.Generator
) -> tuple[_Images, _Images, np.ndarray]:
    """Pair each vehicle, in random order, with a digit; return digits, vehicles and the images made of them."""
    below = vehicles.select(rng.permutation(len(vehicles.label)))
    wanted = below.label ^ (rng.random(len(below.label)) < disagreement)
    selected = np.empty_like(wanted)
    for value in (0, 1):
        positions = np.flatnonzero(wanted == value)
        selected[positions] = np.resize(rng.permutation(np.flatnonzero(digits.label == value)), len(positions))
    above = digits.select(selected)
    images = np.zeros((len(wanted), 3, 64, 32), dtype=np.uint8)
    images[:, :, 2:30, 2:30] = above.pixels[:, None]  # 28 to 32 pixels, one channel to three
    images[:, :, 32:] = below.pixels.transpose(0, 3, 1, 2)
    return above, below, images


def _read_mnist(folder: Path) -> dict[str, _Images]:
    """Read the zeros and ones of MNIST's train and test splits."""
    if files := _parquet_files(folder, "mnist"):
        return {split: _from_parquet(paths, DIGITS, 28, "L") for split, paths in files.items()}
    for subfolder in (folder, folder / "raw", folder / "MNIST" / "raw"):
        if any(subfolder.glob("train-images-idx3-ubyte*")):
            return {split: _from_idx(subfolder, stem) for split, stem in (("train", "train"), ("test", "t10k"))}
    raise DataError(
        f"{folder}: no MNIST found; looked for Parquet files (also in mnist/ and data/) and for "
        "train-images-idx3-ubyte or its .gz (also in raw/ and MNIST/raw/)"
    )


def _read_cifar10(folder: Path) -> dict[str, _Images]:
    """Read the automobiles and trucks of CIFAR-10's train and test splits."""
    if files := _parquet_files(folder, "plain_text"):
        return {split: _from_parquet(paths, VEHICLES, 32, "RGB") for split, paths in files.items()}
    root = folder.parent if folder.name == "cifar-10-batches-py" else folder
    if not (root / "cifar-10-batches-py").is_dir():
        raise DataError(
            f"{folder}: no CIFAR-10 found; looked for Parquet files (also in plain_text/ and data/) and for "
            "cifar-10-batches-py"
        )
    from torchvision.datasets import CIFAR10

    images = {}
    for split in ("train", "test"):
        try:  # torchvision compares checksums before it unpickles
            source = CIFAR10(root, train=split == "train", download=False)
        except RuntimeError as error:
            raise DataError(f"{folder}: files of cifar-10-batches-py are missing or not as published") from error
        rows, labels = _rows_of(np.array(source.targets), VEHICLES, str(folder))
        images[split] = _Images(source.data[rows], labels, rows)
    return images


def _rows_of(labels: np.ndarray, classes: tuple[int, int], source: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows of two classes, and 0 or 1 for each. Raises DataError if a class is missing."""
    for label in classes:
        if not (labels == label).any():
            raise DataError(f"{source}: no image has label {label}; labels {classes[0]} and {classes[1]} are needed")
    rows = np.flatnonzero(np.isin(labels, classes))
    return rows, (labels[rows] == classes[1]).astype(np.int64)


def _parquet_files(folder: Path, configuration: str) -> dict[str, list[Path]]:
    """Return the Parquet files of the train and the test split by their names; empty if there are none."""
    for subfolder in (folder, folder / configuration, folder / "data"):
        if files := sorted(subfolder.glob("*.parquet")):
            splits = {split: [path for path in files if split in path.name.lower()] for split in ("train", "test")}
            for split, paths in splits.items():
                if not paths:
                    names = format_names(path.name for path in files)
                    raise DataError(f"{subfolder}: no Parquet file has {split} in its name; the files are {names}")
            return splits
    return {}


def _from_parquet(paths: list[Path], classes: tuple[int, int], side: int, mode: str) -> _Images:
    """Read two classes of a split; each image is a struct of the file's bytes and path."""
    source = ", ".join(map(str, paths))
    try:
        table = pa.concat_tables([pq.ParquetFile(path).read() for path in paths])
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{source} cannot be read as Parquet: {error}") from error
    column = next((name for name in ("image", "img") if name in table.column_names), None)
    if column is None or "label" not in table.column_names:
        raise DataError(f"{source}: columns image (or img) and label are needed, got {table.column_names}")
    rows, labels = _rows_of(table["label"].to_numpy(), classes, source)
    pixels = []
    for row, cell in zip(rows, table[column].take(rows).to_pylist(), strict=True):
        try:
            with Image.open(BytesIO(cell["bytes"])) as opened:
                image = np.asarray(opened.convert(mode))
        except Exception as error:  # Pillow's plugins raise nearly anything on broken files
            raise DataError(f"{source}: {column} of row {row} is not an image {{bytes, path}}: {error}") from error
        if image.shape[:2] != (side, side):
            size = format_size((image.shape[1], image.shape[0]))
            raise DataError(f"{source}: the image of row {row} has {size} pixels, {side} x {side} are needed")
        pixels.append(image)
    return _Images(np.stack(pixels), labels, rows)


def _from_idx(folder: Path, stem: str) -> _Images:
    """Read the zeros and ones of one split of MNIST's own files."""
    images, labels = _read_idx(folder / f"{stem}-images-idx3-ubyte"), _read_idx(folder / f"{stem}-labels-idx1-ubyte")
    if images.shape != (len(labels), 28, 28) or labels.ndim != 1:
        raise DataError(
            f"{folder}: {stem} images of shape {images.shape} and labels of {labels.shape}; need N x 28 x 28, N"
        )
    rows, digits = _rows_of(labels, DIGITS, str(folder))
    return _Images(images[rows], digits, rows)


def _read_idx(path: Path) -> np.ndarray:
    """Read an idx file of bytes, or its .gz: two zeros, type 8, number of dimensions, shape (big-endian), data."""
    try:
        packed = path.with_name(f"{path.name}.gz")
        data = path.read_bytes() if path.is_file() else gzip.decompress(packed.read_bytes())
        if data[:3] != b"\0\0\x08":
            raise ClearheadError("it does not start with the header of a file of bytes")
        shape = np.frombuffer(data, ">i4", count=data[3], offset=4)
        return np.frombuffer(data, np.uint8, offset=4 + 4 * len(shape)).reshape(shape)
    except (OSError, EOFError, zlib.error, ValueError, IndexError) as error:
        raise DataError(f"{path} (or .gz) cannot be read as an idx file: {error}") from error
