"""MNIST-CIFAR from every form of its sources, with generated digits and vehicles."""

import csv
import gzip
import hashlib
import os
import pickle
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.datasets import CIFAR10

from clearhead.data.dataset import group_labels
from clearhead.data.folder import read_folder
from clearhead.data.image_io import DataError, load_mask
from clearhead.data.mnist_cifar import make_mnist_cifar, mnist_cifar

SPLITS = ("train", "test")
SHARES = {"train": 0.1, "id-val": 0.1, "id-test": 0.1, "ood-val": 0.5, "ood-test": 0.5, "spurious": 0.5}


@pytest.fixture(scope="module")
def raw() -> SimpleNamespace:
    """Images and labels of both sources and splits: fewer zeros than cars, and other classes too."""
    rng = np.random.default_rng(3)
    counts = {"train": {0: 125, 1: 165, 7: 20}, "test": {0: 70, 1: 90, 5: 10}}
    vehicles = {"train": {1: 150, 9: 150, 4: 20}, "test": {1: 100, 9: 100, 0: 10}}

    def labels(counts: dict[int, int]) -> np.ndarray:
        return rng.permutation(np.repeat(list(counts), list(counts.values())))

    mnist = {split: labels(counts[split]) for split in SPLITS}
    cifar = {split: labels(vehicles[split]) for split in SPLITS}
    return SimpleNamespace(
        mnist={s: (rng.integers(0, 256, (len(y), 28, 28), dtype=np.uint8), y) for s, y in mnist.items()},
        cifar={s: (rng.integers(0, 256, (len(y), 32, 32, 3), dtype=np.uint8), y) for s, y in cifar.items()},
    )


def png(image: np.ndarray, scratch: Path) -> bytes:
    Image.fromarray(image).save(scratch / "one.png")
    return (scratch / "one.png").read_bytes()


def write_parquet(folder: Path, source: dict, column: str, shards: int = 1) -> Path:
    folder.mkdir(parents=True)
    for split, (images, labels) in source.items():
        cells = [{"bytes": png(image, folder), "path": None} for image in images]
        table = pa.table({column: cells, "label": labels})
        size = -(-len(table) // shards)
        for shard in range(shards):
            pq.write_table(table.slice(shard * size, size), folder / f"{split}-{shard:05d}-of-{shards:05d}.parquet")
    (folder / "one.png").unlink()
    return folder


def idx(values: np.ndarray) -> bytes:
    return bytes([0, 0, 8, values.ndim]) + np.array(values.shape, ">i4").tobytes() + values.astype(np.uint8).tobytes()


def write_idx(folder: Path, source: dict, packed: bool = False) -> None:
    folder.mkdir(parents=True)
    for split, stem in (("train", "train"), ("test", "t10k")):
        for name, values in zip(("images-idx3", "labels-idx1"), source[split], strict=True):
            if packed:
                (folder / f"{stem}-{name}-ubyte.gz").write_bytes(gzip.compress(idx(values)))
            else:
                (folder / f"{stem}-{name}-ubyte").write_bytes(idx(values))


def write_batches(folder: Path, source: dict) -> dict[str, str]:
    """CIFAR-10's pickled batches; their checksums by file name."""
    folder.mkdir(parents=True)
    images, labels = source["train"]
    content = {"batches.meta": {"label_names": list("abcdefghij")}}
    for number, rows in enumerate(np.array_split(np.arange(len(labels)), 5), 1):
        content[f"data_batch_{number}"] = {"data": flat(images[rows]), "labels": labels[rows].tolist()}
    content["test_batch"] = {"data": flat(source["test"][0]), "labels": source["test"][1].tolist()}
    for name, batch in content.items():
        (folder / name).write_bytes(pickle.dumps(batch))
    return {name: hashlib.md5((folder / name).read_bytes()).hexdigest() for name in content}


def flat(images: np.ndarray) -> np.ndarray:
    return images.transpose(0, 3, 1, 2).reshape(len(images), -1)


@pytest.fixture(scope="module")
def sources(raw, tmp_path_factory) -> SimpleNamespace:
    root = tmp_path_factory.mktemp("sources")
    return SimpleNamespace(
        mnist=write_parquet(root / "mnist", raw.mnist, "image"), cifar=write_parquet(root / "cifar", raw.cifar, "img")
    )


@pytest.fixture(scope="module")
def parts(sources):
    return mnist_cifar(sources.mnist, sources.cifar)


def same(one, other) -> bool:
    return all(
        np.array_equal(getattr(one[name], field), getattr(other[name], field))
        for name in SHARES
        for field in ("images", "label", "digit", "mnist", "cifar")
    )


def test_images_are_a_digit_above_a_vehicle(raw, parts):
    assert list(parts) == list(SHARES)
    for name, part in parts.items():
        (digits, values), (vehicles, labels) = (
            s["train" if name == "train" else "test"] for s in (raw.mnist, raw.cifar)
        )
        assert (part.images.dtype, part.images.shape[1:]) == (np.uint8, (3, 64, 32))
        for image, above, below in zip(part.images, part.mnist, part.cifar, strict=True):
            np.testing.assert_array_equal(image[:, :32], [np.pad(digits[above], 2)] * 3)
            np.testing.assert_array_equal(image[:, 32:], np.moveaxis(vehicles[below], -1, 0))
        np.testing.assert_array_equal(part.digit, values[part.mnist])
        label = values[part.mnist] if name == "spurious" else labels[part.cifar] == 9
        np.testing.assert_array_equal(part.label, label)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**63))
def test_validation_and_test_parts_share_no_source_image_and_every_vehicle_is_used(raw, sources, seed):
    parts = mnist_cifar(sources.mnist, sources.cifar, seed)
    for rows in ("mnist", "cifar"):
        validation, test = (
            {row for name in names for row in getattr(parts[name], rows)}
            for names in (("id-val", "ood-val"), ("id-test", "ood-test", "spurious"))
        )
        assert not validation & test
    labels = raw.cifar["test"][1]
    assert sorted(parts["train"].cifar) == np.flatnonzero(np.isin(raw.cifar["train"][1], (1, 9))).tolist()
    assert sorted(parts["spurious"].cifar) == sorted(parts["id-test"].cifar)
    for domain in ("id", "ood"):
        both = [*parts[f"{domain}-val"].cifar, *parts[f"{domain}-test"].cifar]
        assert sorted(both) == np.flatnonzero(np.isin(labels, (1, 9))).tolist()
        assert Counter(parts[f"{domain}-val"].label.tolist()) == {0: 20, 1: 20}
        assert Counter(parts[f"{domain}-test"].label.tolist()) == {0: 80, 1: 80}
    for part in parts.values():  # digits repeat only after all are used, and evenly
        for digit in (0, 1):
            counts = Counter(part.mnist[part.digit == digit].tolist()).values()
            assert max(counts) - min(counts) <= 1


def test_the_digit_disagrees_with_the_stated_probability(raw, sources):
    """Over 12 seeds; the bound is four standard deviations of the binomial."""
    seeds = [mnist_cifar(sources.mnist, sources.cifar, seed) for seed in range(12)]
    for name, share in SHARES.items():
        labels = raw.cifar["train" if name == "train" else "test"][1]
        for vehicle in (1, 9):
            wrong = np.concatenate(
                [parts[name].digit[labels[parts[name].cifar] == vehicle] != (vehicle == 9) for parts in seeds]
            )
            assert abs(wrong.mean() - share) < 4 * np.sqrt(share * (1 - share) / len(wrong))
    assert len({(parts["train"].digit != parts["train"].label).sum() for parts in seeds}) > 1


def test_equal_seeds_give_equal_arrays(sources, parts):
    assert same(mnist_cifar(sources.mnist, sources.cifar, 0), parts)
    other = mnist_cifar(sources.mnist, sources.cifar, 1)
    for name, part in parts.items():
        assert not np.array_equal(part.cifar, other[name].cifar)
        assert not np.array_equal(part.mnist, other[name].mnist)
    assert set(parts["id-val"].cifar) != set(other["id-val"].cifar)


def test_all_forms_of_the_sources_give_the_same_arrays(raw, sources, parts, tmp_path, monkeypatch):
    write_parquet(tmp_path / "hub/mnist", raw.mnist, "image", shards=3)
    write_parquet(tmp_path / "hub/plain_text", raw.cifar, "img", shards=2)
    assert same(mnist_cifar(tmp_path / "hub", tmp_path / "hub"), parts)
    for path, packed in (("bare", False), ("packed", True), ("tv/MNIST/raw", False), ("tvgz/MNIST/raw", True)):
        write_idx(tmp_path / path, raw.mnist, packed)
        assert same(mnist_cifar(str(tmp_path / path.split("/")[0]), str(sources.cifar)), parts)
    sums = write_batches(tmp_path / "cifar-10-batches-py", raw.cifar)
    monkeypatch.setattr(CIFAR10, "train_list", [[f"data_batch_{n}", sums[f"data_batch_{n}"]] for n in range(1, 6)])
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", sums["test_batch"]]])
    monkeypatch.setitem(CIFAR10.meta, "md5", sums["batches.meta"])
    for folder in (tmp_path, tmp_path / "cifar-10-batches-py"):
        assert same(mnist_cifar(sources.mnist, folder), parts)


def test_the_written_folder_has_masks_and_groups(sources, parts, tmp_path):
    make_mnist_cifar(tmp_path / "set", sources.mnist, sources.cifar)
    assert read_folder(tmp_path / "set").issues == ()
    for name, part in parts.items():
        folder = read_folder(tmp_path / "set", split=name, check=False)
        assert folder.classes == ("automobile", "truck")
        samples = sorted(folder.samples, key=lambda sample: sample.path.stem)
        assert [sample.label for sample in samples] == part.label.tolist()
        assert [sample.groups["digit"] for sample in samples] == list(map(str, part.digit))
        for sample, image in zip(samples, part.images, strict=True):
            np.testing.assert_array_equal(np.asarray(Image.open(sample.path)), image.transpose(1, 2, 0))
        mask = np.asarray(load_mask(samples[0].mask))
        assert mask.shape == (64, 32)
        assert (mask[:32] == 0).all()
        assert (mask[32:] == 255).all()
        assert {sample.mask.read_bytes() for sample in samples} == {samples[0].mask.read_bytes()}
        expected = {f"class={folder.classes[y]}, digit={d}" for y, d in zip(part.label, part.digit, strict=True)}
        assert set(group_labels(folder, None)) == expected
    rows = list(csv.DictReader((tmp_path / "set/metadata.csv").open()))
    assert list(rows[0]) == ["file", "split", "digit"]
    with pytest.raises(DataError, match=r"metadata\.csv exists"):
        make_mnist_cifar(tmp_path / "set", sources.mnist, sources.cifar)


def test_a_folder_that_cannot_be_written_raises_an_error(sources, tmp_path):
    (tmp_path / "taken").touch()
    with pytest.raises(DataError, match="taken could not be written"):
        make_mnist_cifar(tmp_path / "taken", sources.mnist, sources.cifar)


def test_missing_sources_raise_an_error(sources, tmp_path):
    with pytest.raises(DataError, match=r"no MNIST found; looked for Parquet .* train-images-idx3-ubyte"):
        mnist_cifar(tmp_path, sources.cifar)
    with pytest.raises(DataError, match=r"no CIFAR-10 found; looked for Parquet .* cifar-10-batches-py"):
        mnist_cifar(sources.mnist, tmp_path / "nowhere")
    with pytest.raises(DataError, match="seed must be 0 or more, got -1"):
        mnist_cifar(sources.mnist, sources.cifar, -1)


def test_invalid_parquet_files_raise_an_error(raw, sources, tmp_path):
    bad = tmp_path / "bad"
    bad.mkdir()
    (bad / "train.parquet").write_bytes(b"nothing of the kind")
    with pytest.raises(DataError, match=r"no Parquet file has test in its name; the files are train\.parquet"):
        mnist_cifar(bad, sources.cifar)
    (bad / "test.parquet").write_bytes(b"")
    with pytest.raises(DataError, match=r"train\.parquet cannot be read as Parquet"):
        mnist_cifar(bad, sources.cifar)

    def raises(message: str, images: list, labels: list, **names: str) -> None:
        columns = {names.get("image", "image"): images, names.get("label", "label"): labels}
        for split in SPLITS:
            pq.write_table(pa.table(columns), bad / f"{split}.parquet")
        with pytest.raises(DataError, match=message):
            mnist_cifar(bad, sources.cifar)

    good = {"bytes": png(raw.mnist["train"][0][0], tmp_path), "path": "1.png"}
    large = {"bytes": png(np.zeros((30, 29), np.uint8), tmp_path), "path": "2.png"}
    raises(
        r"columns image \(or img\) and label are needed, got \['image', 'fine_label'\]",
        [good],
        [1],
        label="fine_label",
    )
    raises("are needed, got", [good], [1], image="photo")
    raises("no image has label 1; labels 0 and 1 are needed", [good, good], [0, 3])
    raises("no image has label 0", [good, good], ["zero", "one"])
    raises("image of row 1 is not an image", [good, {"bytes": b"scrap", "path": "x"}], [0, 1])
    raises("image of row 1 is not an image", [good, {"bytes": None, "path": "x"}], [0, 1])
    raises("image of row 0 is not an image", ["a.png", "b.png"], [0, 1])
    raises("the image of row 1 has 29 x 30 pixels, 28 x 28 are needed", [good, large], [0, 1])
    raises("5 test images of each class are needed to divide them, got 4", [good] * 9, [1, 0] * 4 + [1])


def test_invalid_idx_files_raise_an_error(raw, sources, tmp_path):
    def raises(name: str, content: bytes | None, message: str) -> None:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        write_idx(folder, raw.mnist)
        (folder / name).unlink()
        if content is not None:
            (folder / name).write_bytes(content)
        with pytest.raises(DataError, match=message):
            mnist_cifar(folder, sources.cifar)

    images, labels = raw.mnist["test"]
    raises("t10k-labels-idx1-ubyte", None, "t10k-labels-idx1-ubyte .* cannot be read")
    raises("t10k-labels-idx1-ubyte", b"", "it does not start with the header of a file of bytes")
    raises("t10k-images-idx3-ubyte", idx(images)[:-1], "t10k-images-idx3-ubyte .* cannot be read")
    raises("t10k-images-idx3-ubyte", b"\0\0\x08\x03\0", "t10k-images-idx3-ubyte .* cannot be read")
    raises("t10k-images-idx3-ubyte", idx(images[:-1]), r"images of shape \(169, 28, 28\) and labels of \(170,\)")
    raises("t10k-labels-idx1-ubyte", idx(np.full_like(labels, 7)), "no image has label 0")
    raises("t10k-labels-idx1-ubyte", idx(labels[:, None]), r"labels of \(170, 1\)")
    write_idx(tmp_path / "packed", raw.mnist, packed=True)
    broken = tmp_path / "packed/train-labels-idx1-ubyte.gz"
    for content in (b"no gzip", broken.read_bytes()[:-30]):
        broken.write_bytes(content)
        with pytest.raises(DataError, match=r"train-labels-idx1-ubyte .* cannot be read"):
            mnist_cifar(tmp_path / "packed", sources.cifar)


def test_modified_pickles_are_not_opened(raw, sources, tmp_path):
    write_batches(tmp_path / "cifar-10-batches-py", raw.cifar)
    with pytest.raises(DataError, match="missing or not as published"):
        mnist_cifar(sources.mnist, tmp_path)


@pytest.mark.skipif("CLEARHEAD_DATA" not in os.environ, reason="CLEARHEAD_DATA (mnist/, cifar10/) is not set")
def test_the_real_data_set_has_the_published_counts():
    data = Path(os.environ["CLEARHEAD_DATA"])
    parts = mnist_cifar(data / "mnist", data / "cifar10")
    counts = {"train": 10_000, "id-val": 400, "id-test": 1_600, "ood-val": 400, "ood-test": 1_600, "spurious": 1_600}
    assert {name: len(part.images) for name, part in parts.items()} == counts
    for name in ("train", "id-val", "id-test", "ood-val", "ood-test"):
        part, share = parts[name], SHARES[name]
        assert (part.label == 1).mean() == 0.5
        wrong = (part.digit != part.label).mean()
        assert abs(wrong - share) < 4 * np.sqrt(share * (1 - share) / len(part.label))
    assert len(set(parts["train"].mnist)) == 10_000
    assert not {*parts["id-val"].cifar, *parts["ood-val"].cifar} & {*parts["id-test"].cifar, *parts["ood-test"].cifar}
    # a zero has a hole: its middle is dark, that of a one is bright
    middle = parts["id-test"].images[:, 0, 14:18, 14:18].mean((1, 2)) > 64
    assert (middle == parts["id-test"].digit).mean() > 0.95
