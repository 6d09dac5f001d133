"""Images in Parquet files, WebDataset shards and arrays, compared with the same files in class folders."""

import io
import json
import pickle
import re
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.dirfs import DirFileSystem
from fsspec.implementations.local import LocalFileSystem
from fsspec.registry import _registry
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from clearhead.data.folder import read_folder
from clearhead.data.image_io import DataError, load_image
from clearhead.data.images import absolute_source, as_image_index, read_images, source_name
from clearhead.data.loading import ImageDataset, loader
from clearhead.data.shards import splits_in
from clearhead.data.splits import splits_of, train_and_validation

NAMES = ("cat", "dog", "blue jay")


def encoded(seed: int, form: str = "PNG", size: tuple[int, int] = (20, 12)) -> bytes:
    values = np.random.default_rng(seed).integers(256, size=(*size[::-1], 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(values).save(stream, format=form)
    return stream.getvalue()


def parquet(
    path: Path,
    images: Sequence[Any],
    labels: Sequence[Any],
    names: Sequence[str] | None = NAMES,
    columns: tuple[str, str] = ("image", "label"),
    struct: bool = True,
    group: int = 2,
) -> Path:
    """Write a file like the Hub, with `group` rows per row group."""
    cells = [{"bytes": data, "path": None} if struct and not isinstance(data, dict) else data for data in images]
    table = pa.table(dict(zip(columns, (cells, labels), strict=True)))
    if names:
        features = {columns[0]: {"_type": "Image"}, columns[1]: {"names": list(names), "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=group)
    return path


def tar(path: Path, members: Mapping[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as file:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return path


def pixels(folder: Any) -> list[tuple[int, bytes]]:
    return [(sample.label, load_image(sample.path).tobytes()) for sample in folder.samples]


def categories(folder: Any) -> dict[str, str]:
    return {issue.file: issue.category for issue in folder.issues}


@pytest.fixture
def remote() -> Any:
    """A file system in memory, emptied afterwards."""
    fs = fsspec.filesystem("memory")
    fs.store.clear()
    yield fs
    fs.store.clear()


@given(
    labels=st.lists(st.integers(0, 2), min_size=1, max_size=9),
    group=st.integers(1, 4),
    form=st.sampled_from(["struct", "binary", "cls", "json"]),
)
@settings(max_examples=25, deadline=None)
def test_every_source_gives_the_samples_of_class_folders(
    tmp_path_factory: pytest.TempPathFactory, labels: list[int], group: int, form: str
) -> None:
    root = tmp_path_factory.mktemp("any")
    images = [encoded(i, "JPEG") for i in range(len(labels))]
    for i, (label, data) in enumerate(zip(labels, images, strict=True)):
        (root / "folder" / NAMES[label]).mkdir(parents=True, exist_ok=True)
        (root / "folder" / NAMES[label] / f"{i}.jpg").write_bytes(data)
    if form in ("struct", "binary"):
        source = parquet(root / "a.parquet", images, labels, struct=form == "struct", group=group)
    else:
        encoded_labels = [
            str(label).encode() if form == "cls" else json.dumps({"label": label}).encode() for label in labels
        ]
        parts = zip(images, encoded_labels, strict=True)
        members = {
            f"{i}.{e}": data for i, pair in enumerate(parts) for e, data in zip(("jpg", form), pair, strict=True)
        }
        source = tar(root / "a.tar", members)
        (root / "names.txt").write_text("\n".join(NAMES), encoding="utf-8")
    model = ("blue_jay", "Dog", "house", "cat")
    assert sorted(pixels(read_images(source, classes=model))) == sorted(
        pixels(read_folder(root / "folder", classes=model))
    )
    assert read_images(source, classes=model).classes == model
    assert read_images(source).classes == NAMES
    assert [label for label, _ in pixels(read_images(source))] == labels


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_come_from_shards_in_any_process(tmp_path: Path, workers: int) -> None:
    images = [encoded(i) for i in range(10)]
    folder = read_images(parquet(tmp_path / "a.parquet", images, [i % 3 for i in range(10)], group=3))
    tarred = tar(
        tmp_path / "t" / "a.tar", {f"{i}.{e}": d for i in range(10) for e, d in (("png", images[i]), ("cls", b"1"))}
    )
    in_tar = read_images(tarred)
    expected = np.stack([np.asarray(Image.open(io.BytesIO(data))) for data in images])

    class Pixels:
        def image(self, image: Image.Image) -> Any:
            import torch

            return torch.from_numpy(np.array(image)).permute(2, 0, 1)

        mask = image

    for source in (folder, in_tar):
        load_image(source.samples[0].path)  # files that the parent has open are not shared
        batches = list(loader(ImageDataset(source, Pixels()), 4, workers, shuffle=True))
        seen = {int(i): image for batch in batches for i, image in zip(batch["index"], batch["image"], strict=True)}
        assert all(np.array_equal(seen[i].permute(1, 2, 0), expected[i]) for i in range(10))


def test_names_of_samples_are_unique_and_stable(tmp_path: Path) -> None:
    for i in range(2):
        parquet(tmp_path / "data" / f"test-0000{i}-of-00002.parquet", [encoded(i)] * 2, [0, 1])
    whole = read_images(tmp_path)
    assert [sample.file for sample in whole.samples] == [
        f"data/test-0000{i}-of-00002.parquet/{row}" for i in range(2) for row in range(2)
    ]
    assert read_images(tmp_path, split="test") == whole
    one = read_images(tmp_path / "data" / "test-00001-of-00002.parquet")
    assert [sample.file for sample in one.samples] == [f"test-00001-of-00002.parquet/{row}" for row in range(2)]
    assert pickle.loads(pickle.dumps(whole)) == whole


def test_globs_and_numbers_in_braces_name_shards(tmp_path: Path) -> None:
    for i in range(12):
        tar(tmp_path / f"val-{i:03d}.tar", {"0.jpg": encoded(i, "JPEG"), "0.cls": str(i % 2).encode()})
    assert len(read_images(f"{tmp_path}/val-*.tar").samples) == 12
    some = read_images(f"{tmp_path}/val-{{008..010}}.tar")
    assert [sample.file for sample in some.samples] == ["val-008.tar/0", "val-009.tar/0", "val-010.tar/0"]
    with pytest.raises(DataError, match=r"no \.parquet, \.tar or \.npz file"):
        read_images(f"{tmp_path}/train-*.tar")
    with pytest.raises(DataError, match=r"val-012\.tar: no such file"):
        read_images(f"{tmp_path}/val-{{011..012}}.tar")


def test_splits_come_from_file_names(tmp_path: Path) -> None:
    for name, count in (("train-00000-of-00001", 4), ("validation-00000-of-00001", 3), ("test/0000", 2)):
        parquet(tmp_path / f"{name}.parquet", [encoded(i) for i in range(count)], [0, 1, 0, 1][:count])
    assert splits_of(tmp_path) == {"train", "val", "test"}
    assert [len(read_images(tmp_path, split=split).samples) for split in ("val", "validation", "test")] == [3, 3, 2]
    assert [len(folder.samples) for folder in train_and_validation(tmp_path)] == [4, 3]
    assert len(read_images(tmp_path).samples) == 9
    with pytest.raises(DataError, match=r"split: 'dev2' is not in .*; choose from test, train, val"):
        read_images(tmp_path, split="dev2")
    alone = tmp_path / "train-00000-of-00001.parquet"
    assert splits_of(alone) == set()  # 20% is held out
    assert [len(folder.samples) for folder in train_and_validation(alone)] == [2, 2]
    (tmp_path / "validation-00000-of-00001.parquet").unlink()  # like most data sets of the Hub
    train, validation = train_and_validation(tmp_path)
    assert {sample.file.split("/")[0] for sample in (*train.samples, *validation.samples)} == {alone.name}
    assert not {s.file for s in train.samples} & {s.file for s in validation.samples}
    for options in ({"validation": "dev"}, {"train": "val"}):
        with pytest.raises(DataError, match=r"split: '.*' is not in"):
            train_and_validation(tmp_path, **options)


def test_medmnist(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    train, test = (rng.integers(256, size=size, dtype=np.uint8) for size in ((5, 28, 28), (3, 28, 28)))
    arrays = {"train_images": train, "train_labels": [[0], [1], [1], [0], [1]], "test_images": test}
    np.savez(tmp_path / "a.npz", **arrays, test_labels=np.array([[1], [0], [1]], dtype=np.uint8))
    folder = read_images(tmp_path / "a.npz", split="test", classes=("no", "yes"))
    assert [sample.file for sample in folder.samples] == [f"a.npz/test/{i}" for i in range(3)]
    assert [sample.label for sample in folder.samples] == [1, 0, 1]
    assert all(
        np.array_equal(np.asarray(load_image(sample.path))[..., channel], test[i])
        for i, sample in enumerate(folder.samples)
        for channel in range(3)
    )
    assert splits_in(tmp_path / "a.npz") == {"train", "test"}
    assert len(read_images(tmp_path / "a.npz").samples) == 8
    np.savez(tmp_path / "b.npz", images=train)
    with pytest.raises(DataError, match=r"no array such as MedMNIST's train_images; its arrays are images"):
        read_images(tmp_path / "b.npz")
    np.savez(tmp_path / "c.npz", test_images=test, test_labels=np.zeros((3, 14), dtype=np.uint8))
    with pytest.raises(DataError, match=r"labels \(3, 14\) for 3 images"):
        read_images(tmp_path / "c.npz")


@pytest.mark.parametrize("check", [True, False])
def test_unusable_rows_become_issues(tmp_path: Path, check: bool) -> None:
    good, bad = encoded(0), b"no image"
    images = [good, bad, good, good, good, good[: len(good) // 2], None, {"bytes": None, "path": "/a.png"}]
    source = parquet(tmp_path / "a.parquet", images, [0, 1, None, -1, 7, 2, 1, 1])
    folder = read_images(source, check=check)
    labels = {"a.parquet/2": "no-label", "a.parquet/3": "no-label", "a.parquet/4": "label-range"}
    broken = {"a.parquet/1": "unreadable", "a.parquet/5": "truncated", "a.parquet/6": "unreadable"}
    assert categories(folder) == (labels | broken | {"a.parquet/7": "unreadable"} if check else labels)
    assert len(folder.samples) == (1 if check else 5)
    assert all(issue.action == "skipped" for issue in folder.issues)
    if check:
        assert any("not stored in this file but in /a.png" in issue.detail for issue in folder.issues)
    else:
        with pytest.raises(DataError, match=r"a\.parquet, row 1 of row group 0: not an image"):
            load_image(folder.samples[1].path)


def test_unusable_members_become_issues(tmp_path: Path) -> None:
    good = encoded(0)
    members = {"a.png": good, "a.cls": b"0", "b.png": b"none", "b.cls": b"1", "c.cls": b"1", "d.png": good}
    members |= {"e.webp": encoded(1, "WEBP"), "e.json": b'{"label": 1, "key": "e"}', "f.json": b"{", "f.jpg": good}
    members |= {"x/a.JPG": good, "x/a.cls": b"1", "a.seg.png": b"another part", ".hidden.png": b""}
    folder = read_images(tar(tmp_path / "0.tar", members))
    assert [sample.file for sample in folder.samples] == ["0.tar/a", "0.tar/e", "0.tar/x/a"]
    assert [sample.label for sample in folder.samples] == [0, 1, 1]
    expected = {"b": "unreadable", "c": "no-image", "d": "no-label", "f": "unreadable-json"}
    assert categories(folder) == {f"0.tar/{key}": category for key, category in expected.items()}


def test_labels_may_be_names(tmp_path: Path) -> None:
    images = [encoded(i) for i in range(3)]
    folder = read_images(parquet(tmp_path / "a.parquet", images, ["dog", "cat", "dog"], names=None))
    assert folder.classes == ("cat", "dog")
    assert [sample.label for sample in folder.samples] == [1, 0, 1]
    members = {
        f"{i}.{e}": d for i in range(3) for e, d in (("png", images[i]), ("cls", (b"n01440764", b"n02102040")[i % 2]))
    }
    thousand = tuple(f"class {i}" for i in range(1000))
    assert [s.label for s in read_images(tar(tmp_path / "a.tar", members), classes=thousand).samples] == [0, 217, 0]


@pytest.mark.parametrize("labels", [["ant", "bee", "cow"], [0, 1, 2]])
def test_validation_images_have_the_classes_of_training(tmp_path: Path, labels: list[Any]) -> None:
    images = [encoded(i) for i in range(6)]
    parquet(tmp_path / "train-0.parquet", images[:3], labels, names=None)
    parquet(tmp_path / "validation-0.parquet", images[3:], [labels[1], labels[2], labels[1]], names=None)
    for name in ("val", "validation"):
        train, validation = train_and_validation(tmp_path, validation=name)
        assert train.classes == validation.classes == tuple(map(str, labels))
        assert [sample.label for sample in validation.samples] == [1, 2, 1]
    parquet(tmp_path / "validation-0.parquet", images[3:], [labels[1], labels[0], labels[1]], names=None)
    assert [s.label for s in train_and_validation(tmp_path)[1].samples] == [1, 0, 1]  # without the last class


def test_columns_are_selected_by_name_and_type(tmp_path: Path) -> None:
    for i, columns in enumerate([("img", "fine_label"), ("jpg", "cls"), ("png", "labels")]):
        assert len(read_images(parquet(tmp_path / f"{i}.parquet", [encoded(0)], [1], columns=columns)).samples) == 1
    for i, (columns, images, labels, message) in enumerate(
        [
            (("image", "kind"), [b""], [1], "no column label, fine_label, labels or cls; its columns are image, kind"),
            (("pixels", "label"), [b""], [1], "no column image, img, jpg or png; its columns are pixels, label"),
            (("image", "label"), ["a.png"], [1], "column image holds string; the bytes of image files are needed"),
            (("image", "label"), [b""], [[1, 2]], "column label holds list, not one label per row"),
        ]
    ):
        source = parquet(tmp_path / f"bad{i}.parquet", images, labels, None, columns, struct=False)
        with pytest.raises(DataError, match=re.escape(message)):
            read_images(source)


def test_classes_are_matched_with_the_models(tmp_path: Path) -> None:
    images = [encoded(i) for i in range(4)]
    source = parquet(tmp_path / "a.parquet", images, [0, 1, 2, 3], ("tench, Tinca tinca", "crane", "Dog", "boat"))
    model = ("dog", "Tench", "crane (n02012849)", "crane (n03126707)", "boat", "x")
    folder = read_images(source, classes=model)
    assert [sample.label for sample in folder.samples] == [1, 0, 4]
    assert categories(folder) == {"crane": "ambiguous-class"}
    # as many classes, most in the same order: the others match by order
    same = ("tench", "crane (n02012849)", "dog", "ship")
    assert [sample.label for sample in read_images(source, classes=same).samples] == [0, 1, 2, 3]
    with pytest.raises(DataError, match=r"none of its classes \(tench, Tinca tinca, crane"):
        read_images(source, classes=("a", "b"))
    twice = parquet(tmp_path / "b.parquet", images, [0, 1, 0, 1], ("dog", "Dog"))
    with pytest.raises(DataError, match="its classes dog and Dog both match the model's dog"):
        read_images(twice, classes=model)


def test_unnamed_labels_are_the_models_classes_if_their_number_matches(tmp_path: Path) -> None:
    source = parquet(tmp_path / "s" / "a.parquet", [encoded(i) for i in range(3)], [2, 0, 1], names=None)
    assert read_images(source).classes == ("0", "1", "2")
    assert [sample.label for sample in read_images(source, classes=NAMES).samples] == [2, 0, 1]
    with pytest.raises(DataError, match=r"the numbers 0\.\.2, the model has 4 classes; put the class names"):
        read_images(source, classes=("a", "b", "c", "d"))
    (tmp_path / "classnames.txt").write_text("c\na\nb\n", encoding="utf-8")
    folder = read_images(source, classes=("a", "b", "c", "d"))
    assert [sample.label for sample in folder.samples] == [1, 2, 0]


def test_urls_are_read_without_copying(remote: Any, tmp_path: Path) -> None:
    images = [encoded(i) for i in range(4)]
    local = parquet(tmp_path / "a.parquet", images, [0, 1, 2, 0])
    shard = tar(tmp_path / "a.tar", {"k.png": images[0], "k.cls": b"1"})
    for path in ("set/train-0.parquet", "set/test-0.parquet"):
        remote.pipe_file(f"/bucket/{path}", local.read_bytes())
    remote.pipe_file("/bucket/wds/test/0.tar", shard.read_bytes())
    remote.pipe_file("/bucket/wds/classnames.txt", b"dog\ncat\n")
    folder = read_images("memory://bucket/set", split="test")
    assert pixels(folder) == pixels(read_images(local))
    assert folder.samples[0].file == "test-0.parquet/0"
    assert len(read_images("memory://bucket/set/*.parquet").samples) == 8
    assert splits_of("memory://bucket/set") == {"train", "test"}
    (sample,) = read_images("memory://bucket/wds", classes=NAMES).samples
    assert (sample.file, sample.label) == ("test/0.tar/k", 0)
    for missing in ("memory://bucket/none", "memory://bucket/none.parquet", "nowhere://bucket/none.parquet"):
        with pytest.raises(DataError, match=r"bucket/none"):
            read_images(missing)


def test_data_sets_of_the_hub_are_read_from_its_parquet_branch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The Hub's file system stands aside for a local one of the same layout."""
    branch = tmp_path / "datasets/o/n@refs/convert/parquet"
    for config in ("default", "other"):
        for split in ("train", "test"):
            parquet(branch / config / split / "0000.parquet", [encoded(0)] * (1 + len(config)), [1] * (1 + len(config)))
    parquet(tmp_path / "datasets/o/big@refs/convert/parquet/default/partial-train/0000.parquet", [encoded(0)], [1])
    parquet(tmp_path / "datasets/o/two@refs/convert/parquet/a/test/0000.parquet", [encoded(0)], [1])
    parquet(tmp_path / "datasets/o/two@refs/convert/parquet/b/test/0000.parquet", [encoded(0)], [1])

    class Hub(DirFileSystem):
        protocol = "hf"

        def __init__(self, **options: Any) -> None:
            super().__init__(str(tmp_path), LocalFileSystem())

        @classmethod
        def _strip_protocol(cls, path: str) -> str:
            return path.removeprefix("hf://")

    monkeypatch.setitem(_registry, "hf", Hub)
    assert len(read_images("hf-dataset:o/n", split="test").samples) == 8
    folder = read_images("hf-dataset:o/n/other")
    assert [sample.file for sample in folder.samples][5:8] == [
        "test/0000.parquet/5",
        "train/0000.parquet/0",
        "train/0000.parquet/1",
    ]
    assert load_image(folder.samples[0].path).size == (20, 12)
    assert splits_of(Path("hf-dataset:o/n")) == {"train", "test"}
    for source, message in [
        ("hf-dataset:o/n/none", "name a configuration, as in hf-dataset:o/n/CONFIG; choose from default, other"),
        ("hf-dataset:o/two", "choose from a, b"),
        ("hf-dataset:o/big", "name the data set's own files, as in hf://datasets/o/big/data/test-*.parquet"),
        ("hf-dataset:o", "hf-dataset:OWNER/NAME or hf-dataset:OWNER/NAME/CONFIG is needed"),
    ]:
        with pytest.raises(DataError, match=re.escape(message)):
            read_images(source)


def test_the_hubs_own_file_system_understands_the_branch(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import HfFileSystem

    branch = "datasets/o/n@refs/convert/parquet"
    assert HfFileSystem._strip_protocol(f"hf://{branch}") == branch
    monkeypatch.setattr(HfFileSystem, "_repo_and_revision_exist", lambda *_: (True, None))
    resolved = HfFileSystem().resolve_path(f"{branch}/default/test/0000.parquet")
    assert (resolved.revision, resolved.path_in_repo) == ("refs/convert/parquet", "default/test/0000.parquet")


def test_sources_without_shards_raise_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"text")
    (tmp_path / "a.tar").write_bytes(b"text" * 300)
    for name in ("a.parquet", "a.tar"):
        with pytest.raises(DataError, match=rf"{name} cannot be read"):
            read_images(tmp_path / name)
    with pytest.raises(DataError, match=r"1 \.parquet and 1 \.tar files; name those of one format"):
        read_images(tmp_path)
    with pytest.raises(DataError, match="no usable image is left"):
        read_images(parquet(tmp_path / "b.parquet", [b"none"], [0]))
    with pytest.raises(DataError, match="no such folder"):
        read_images(tmp_path / "none")


def test_paths_may_be_relative(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parquet(tmp_path / "a" / "test.parquet", [encoded(0)], [1], names=None)
    (tmp_path / "a" / "names.txt").write_text("cat\ndog\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path / "a")
    for source, file in ((".", "test.parquet/0"), ("test.parquet", "test.parquet/0"), ("../a", "test.parquet/0")):
        folder = read_images(source)
        assert [sample.file for sample in folder.samples] == [file]
        assert folder.classes == ("cat", "dog")


def test_an_empty_file_has_no_images(tmp_path: Path) -> None:
    nothing = pa.table({"image": pa.array([], pa.binary()), "label": pa.array([], pa.int64())})
    pq.write_table(nothing, tmp_path / "empty.parquet")
    with pytest.raises(DataError, match="its 1 files have no images"):
        read_images(tmp_path / "empty.parquet")


def test_class_folders_are_not_shards(tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "a.png").write_bytes(encoded(0))
    pq.write_table(pa.table({"x": [1]}), tmp_path / "notes.parquet")
    assert read_images(tmp_path) == read_folder(tmp_path)


def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    for seed in range(2):
        folder = read_images(parquet(tmp_path / "a.parquet", [encoded(seed)], [0]))
        assert load_image(folder.samples[0].path).tobytes() == Image.open(io.BytesIO(encoded(seed))).tobytes()


def test_row_groups_are_read_once_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = read_images(parquet(tmp_path / "a.parquet", [encoded(i) for i in range(8)], [0] * 8), check=False)
    read = []
    whole = pq.ParquetFile.read_row_group
    monkeypatch.setattr(pq.ParquetFile, "read_row_group", lambda f, g, **o: read.append(g) or whole(f, g, **o))
    pixels(folder)
    assert read == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("source", "name", "absolute"),
    [
        ("s3://bucket/set/val-{000..003}.tar", "val-{000..003}.tar", "s3://bucket/set/val-{000..003}.tar"),
        ("hf-dataset:o/n", "o/n", "hf-dataset:o/n"),
        ("a/b.parquet", "b.parquet", "/root/a/b.parquet"),
        ("/root/../a/b.parquet", "b.parquet", "/a/b.parquet"),
    ],
)
def test_sources_have_names(source: str, name: str, absolute: str) -> None:
    assert source_name(source) == name
    assert absolute_source(source, Path("/root")) == absolute


def test_relative_absolute_and_linked_paths_are_the_same_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "link").symlink_to("data")
    monkeypatch.chdir(tmp_path / "data")
    sources = [tmp_path / "data", f"{tmp_path}/data/", tmp_path / "link", ".", "../data", "../link/"]
    sources.append(f"file://{tmp_path}/link")
    assert {absolute_source(source) for source in sources} == {str(tmp_path / "data")}
    assert absolute_source("../link/*.tar") == str(tmp_path / "data" / "*.tar")


def test_as_image_index_returns_an_index_and_reads_a_source(tmp_path: Path) -> None:
    source = parquet(tmp_path / "train-00000-of-00001.parquet", [encoded(i) for i in range(3)], [0, 1, 2])
    index = read_images(source)
    assert as_image_index(index) is index
    assert as_image_index(index, classes=NAMES) is index
    assert as_image_index(str(source), split="train", classes=NAMES, check=False) == index
    with pytest.raises(DataError, match=r"split: 'train' needs a path or URL"):
        as_image_index(index, split="train")
    with pytest.raises(DataError, match="classes"):
        as_image_index(index, classes=["cat", "dog"])
