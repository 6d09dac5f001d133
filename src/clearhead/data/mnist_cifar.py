"""MNIST-CIFAR: a digit stands above a picture of a car or a truck and usually, not always, tells which it is.

The set of Nicolicioiu et al. (2023, arXiv 2308.16274), after Shah et al. (2020). The label is that of the CIFAR-10
picture, automobile 0 or truck 1. The MNIST digit, 0 or 1, agrees with it but for a tenth of the images in training and
in distribution (ID), for a half of them out of distribution (OOD): a classifier that reads only the digit is right on
90 % ID and 50 % OOD.

Each automobile and truck of the two CIFAR-10 splits is used once in `train`, or once in ID and once in OOD. The test
split is divided into validation (a fifth of each class) and test before any pairing, cars and digits alike, so no
picture is in both a validation and a test part. (The public code divides ID and OOD apart: its OOD validation
shares pictures with its ID test. It also drops what does not pair up, about ten of 2,000 ID images.) Digits recur where
a part needs more than there are: MNIST's test split has 980 zeros for about 1,000 places.
"""

import csv
import gzip
import zlib
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from clearhead.data.image_io import DataError
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
"""Which pictures each part is made of, and the probability that its digit disagrees with its vehicle."""
VALIDATION = 5
"""One in so many pictures of the test splits is for validation."""


@dataclass(frozen=True)
class Part:
    """N images of one part; uint8 images, all else int64."""

    images: np.ndarray  # N x 3 x 64 x 32, the digit above the vehicle
    label: np.ndarray  # N: 0 automobile, 1 truck; in `spurious` the digit
    digit: np.ndarray  # N: 0 or 1
    mnist: np.ndarray  # N: the digit's row in MNIST's train or test split
    cifar: np.ndarray  # N: the vehicle's row in CIFAR-10's train or test split


@dataclass(frozen=True)
class _Pictures:
    """Pictures of two classes."""

    pixels: np.ndarray  # N x side x side (x 3), uint8
    which: np.ndarray  # N: 0 or 1
    row: np.ndarray  # N: place in the source's split

    def at(self, index: np.ndarray) -> "_Pictures":
        return _Pictures(self.pixels[index], self.which[index], self.row[index])


def mnist_cifar(mnist: str | Path, cifar: str | Path, seed: int = 0) -> dict[str, Part]:
    """The parts train (10,000 images), id-val and ood-val (400), id-test, ood-test and spurious (1,600), mixed.

    `mnist` and `cifar` are local folders: Parquet files of the Hub's layout (`image` or `img`, `label`), MNIST's idx
    files (also .gz, also in MNIST/raw), CIFAR-10's cifar-10-batches-py. Whether a digit disagrees is drawn for each
    image, as in the public code, so its share varies about 0.1 or 0.5. In `spurious` the label is the digit's and the
    vehicle is at random: what a model gets right there, it got from the digit. It is made of the test parts' pictures,
    so nothing should be chosen by it. Equal seeds and files give equal arrays. Raises DataError.
    """
    if seed < 0:
        raise DataError(f"seed must be 0 or more, got {seed}")
    digits, vehicles = _read_mnist(Path(mnist)), _read_cifar10(Path(cifar))
    rng = np.random.default_rng([seed, 0])
    pools = {"train": (digits["train"], vehicles["train"])}
    pools["val"], pools["test"] = zip(_divided(digits["test"], rng), _divided(vehicles["test"], rng), strict=True)
    parts = {}
    for number, (name, (pool, disagreement)) in enumerate(PARTS.items(), 1):
        above, below, images = _paired(*pools[pool], disagreement, np.random.default_rng([seed, number]))
        label = above.which if name == "spurious" else below.which
        parts[name] = Part(images, label, above.which, above.row, below.row)
    return parts


def make_mnist_cifar(root: str | Path, mnist: str | Path, cifar: str | Path, seed: int = 0) -> None:
    """Write the parts of `mnist_cifar` below `root`, as a folder that `read_folder` reads.

    PNG images of 32 x 64 pixels in automobile/ and truck/, masks (255 = the vehicle's half) and metadata.csv with file,
    split (the part) and digit. The table is written last: where it is there, the set is complete. Raises DataError,
    also if `root` already holds a metadata.csv.
    """
    root = Path(root)
    table = root / "metadata.csv"
    if table.exists():
        raise DataError(f"{table} exists: give an empty folder, or delete this one to make the data set anew")
    parts = mnist_cifar(mnist, cifar, seed)
    lower = BytesIO()
    Image.fromarray(np.repeat([[0], [255]], 32, axis=0).repeat(32, axis=1).astype(np.uint8)).save(lower, "png")
    try:
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
        unfinished = table.with_suffix(".tmp")
        with unfinished.open("w", newline="", encoding="utf-8") as opened:
            csv.writer(opened).writerows([["file", "split", "digit"], *rows])
        unfinished.replace(table)
    except OSError as error:
        raise DataError(f"{root} could not be written: {error}") from error


def _divided(pictures: _Pictures, rng: np.random.Generator) -> tuple[_Pictures, _Pictures]:
    """A fifth of each class, at random, and the rest."""
    held_out = np.zeros(len(pictures.which), dtype=bool)
    for value in (0, 1):
        there = rng.permutation(np.flatnonzero(pictures.which == value))
        if len(there) < VALIDATION:
            raise DataError(f"{VALIDATION} test images of each class are needed to divide them, found {len(there)}")
        held_out[there[: len(there) // VALIDATION]] = True
    return pictures.at(np.flatnonzero(held_out)), pictures.at(np.flatnonzero(~held_out))


def _paired(
    digits: _Pictures, vehicles: _Pictures, disagreement: float, rng: np.random.Generator
) -> tuple[_Pictures, _Pictures, np.ndarray]:
    """Each vehicle once, in random order, and a digit for each: the two halves and the images made of them."""
    below = vehicles.at(rng.permutation(len(vehicles.which)))
    wanted = below.which ^ (rng.random(len(below.which)) < disagreement)
    chosen = np.empty_like(wanted)
    for value in (0, 1):
        places = np.flatnonzero(wanted == value)
        chosen[places] = np.resize(rng.permutation(np.flatnonzero(digits.which == value)), len(places))
    above = digits.at(chosen)
    images = np.zeros((len(wanted), 3, 64, 32), dtype=np.uint8)
    images[:, :, 2:30, 2:30] = above.pixels[:, None]  # 28 to 32 pixels, one channel to three
    images[:, :, 32:] = below.pixels.transpose(0, 3, 1, 2)
    return above, below, images


def _read_mnist(folder: Path) -> dict[str, _Pictures]:
    """The zeros and ones of MNIST's train and test splits."""
    if files := _parquet_files(folder, "mnist"):
        return {split: _from_parquet(paths, DIGITS, 28, "L") for split, paths in files.items()}
    for place in (folder, folder / "raw", folder / "MNIST" / "raw"):
        if any(place.glob("train-images-idx3-ubyte*")):
            return {split: _from_idx(place, stem) for split, stem in (("train", "train"), ("test", "t10k"))}
    raise DataError(
        f"{folder}: no MNIST there; looked for Parquet files (also in mnist/ and data/) and for "
        "train-images-idx3-ubyte or its .gz (also in raw/ and MNIST/raw/)"
    )


def _read_cifar10(folder: Path) -> dict[str, _Pictures]:
    """The automobiles and trucks of CIFAR-10's train and test splits."""
    if files := _parquet_files(folder, "plain_text"):
        return {split: _from_parquet(paths, VEHICLES, 32, "RGB") for split, paths in files.items()}
    root = folder.parent if folder.name == "cifar-10-batches-py" else folder
    if not (root / "cifar-10-batches-py").is_dir():
        raise DataError(
            f"{folder}: no CIFAR-10 there; looked for Parquet files (also in plain_text/ and data/) and for "
            "cifar-10-batches-py"
        )
    from torchvision.datasets import CIFAR10

    pictures = {}
    for split in ("train", "test"):
        try:  # compares checksums before it unpickles
            source = CIFAR10(root, train=split == "train", download=False)
        except RuntimeError as error:
            raise DataError(f"{folder}: files of cifar-10-batches-py are missing or not as published") from error
        rows, which = _rows(np.array(source.targets), VEHICLES, str(folder))
        pictures[split] = _Pictures(source.data[rows], which, rows)
    return pictures


def _rows(labels: np.ndarray, classes: tuple[int, int], where: str) -> tuple[np.ndarray, np.ndarray]:
    """The rows of two classes and which of the two each is. Raises DataError where a class is missing."""
    for label in classes:
        if not (labels == label).any():
            raise DataError(f"{where}: no image has label {label}; labels {classes[0]} and {classes[1]} are needed")
    rows = np.flatnonzero(np.isin(labels, classes))
    return rows, (labels[rows] == classes[1]).astype(np.int64)


def _parquet_files(folder: Path, configuration: str) -> dict[str, list[Path]]:
    """The Parquet files of the train and the test split, told by their names; none where there is no Parquet file."""
    for place in (folder, folder / configuration, folder / "data"):
        if files := sorted(place.glob("*.parquet")):
            splits = {split: [path for path in files if split in path.name.lower()] for split in ("train", "test")}
            for split, paths in splits.items():
                if not paths:
                    there = ", ".join(path.name for path in files[:5])
                    raise DataError(f"{place}: no Parquet file has {split} in its name; there is {there}")
            return splits
    return {}


def _from_parquet(paths: list[Path], classes: tuple[int, int], side: int, mode: str) -> _Pictures:
    """Two classes of a split; each image is a struct of the file's bytes and path."""
    where = ", ".join(map(str, paths))
    try:
        table = pa.concat_tables([pq.ParquetFile(path).read() for path in paths])
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{where} cannot be read as Parquet: {error}") from error
    column = next((name for name in ("image", "img") if name in table.column_names), None)
    if column is None or "label" not in table.column_names:
        raise DataError(f"{where}: columns image (or img) and label are needed, there is {table.column_names}")
    rows, which = _rows(table["label"].to_numpy(), classes, where)
    pixels = []
    for row, cell in zip(rows, table[column].take(rows).to_pylist(), strict=True):
        try:
            with Image.open(BytesIO(cell["bytes"])) as opened:
                picture = np.asarray(opened.convert(mode))
        except Exception as error:  # Pillow's plugins raise nearly anything on broken files
            raise DataError(f"{where}: {column} of row {row} is no image {{bytes, path}}: {error}") from error
        if picture.shape[:2] != (side, side):
            size = f"{picture.shape[1]} x {picture.shape[0]}"
            raise DataError(f"{where}: the image of row {row} is {size} pixels, {side} x {side} are needed")
        pixels.append(picture)
    return _Pictures(np.stack(pixels), which, rows)


def _from_idx(place: Path, stem: str) -> _Pictures:
    """The zeros and ones of one split of MNIST's own files."""
    images, labels = _idx(place / f"{stem}-images-idx3-ubyte"), _idx(place / f"{stem}-labels-idx1-ubyte")
    if images.shape != (len(labels), 28, 28) or labels.ndim != 1:
        raise DataError(
            f"{place}: {stem} images of shape {images.shape} and labels of {labels.shape}; N x 28 x 28 and N are needed"
        )
    rows, which = _rows(labels, DIGITS, str(place))
    return _Pictures(images[rows], which, rows)


def _idx(path: Path) -> np.ndarray:
    """An idx file of bytes, or its .gz: two zeros, the type 8, the count of sides, the sides (big-endian), the data."""
    try:
        packed = path.with_name(f"{path.name}.gz")
        data = path.read_bytes() if path.is_file() else gzip.decompress(packed.read_bytes())
        if data[:3] != b"\0\0\x08":
            raise ClearheadError("it does not begin as a file of bytes does")
        sides = np.frombuffer(data, ">i4", count=data[3], offset=4)
        return np.frombuffer(data, np.uint8, offset=4 + 4 * len(sides)).reshape(sides)
    except (OSError, EOFError, zlib.error, ValueError, IndexError) as error:
        raise DataError(f"{path} (or .gz) cannot be read as an idx file: {error}") from error
