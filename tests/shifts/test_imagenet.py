"""Readers of the published ImageNet data sets: layouts, labels, class mappings, groups, issues."""

import io
import json
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import timm.data
from PIL import Image

from clearhead.data.dataset import DataIssue, ImageIndex
from clearhead.data.image_io import DataError
from clearhead.shifts.imagenet import IMAGENET, read_imagenet, read_shards, subset
from clearhead.shifts.sets import ClassMapping, ShiftedDataset, identity_mapping

INFO = timm.data.ImageNetInfo("imagenet-1k")
SYNSETS = INFO.label_names()
BACKGROUNDS = ("original", "mixed_same", "mixed_rand", "mixed_next", "only_fg", "no_fg", "only_bg_b", "only_bg_t")
IN9 = ["00_dog", "01_bird", "02_wheeled vehicle", "03_reptile", "04_carnivore", "05_insect"]
IN9 += ["06_musical instrument", "07_primate", "08_fish"]


def put(root: Path, *files: str) -> Path:
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8, 3), 100, np.uint8)).save(root / file, format="PNG")
    return root


def one(name: str, folder: Path) -> ShiftedDataset:
    (dataset,) = IMAGENET[name](folder)
    return dataset


def labels(folder: ImageIndex) -> dict[str, int]:
    return {sample.file: sample.label for sample in folder.samples}


def issue(folder: ImageIndex, category: str) -> DataIssue:
    (match,) = [issue for issue in folder.issues if issue.category == category]
    return match


def words(index: int) -> str:
    return INFO.index_to_description(index)


# --- sets by WordNet ids


def test_imagenet_labels_are_the_outputs(tmp_path: Path) -> None:
    put(tmp_path, "n01440764/a.JPEG", "n15075141/b.PNG", "n02007558/c.jpeg")
    dataset = one("imagenet", tmp_path)
    assert labels(dataset.folder) == {"n01440764/a.JPEG": 0, "n15075141/b.PNG": 999, "n02007558/c.jpeg": 130}
    assert dataset.folder.classes == tuple(SYNSETS)
    assert (dataset.name, dataset.class_mappings, dataset.border) == (
        "imagenet",
        {"1000 classes": identity_mapping(1000)},
        0,
    )
    assert issue(dataset.folder, "missing-class") == DataIssue(
        ".",
        "missing-class",
        "997 of 1000 classes have no images: n01443537, n01484850, n01491361, n01494475, n01496331 and 992 more",
        "counted",
    )


def test_images_are_not_decoded(tmp_path: Path) -> None:
    put(tmp_path, "n01440764/a.png")
    (tmp_path / "n01440764/broken.jpg").write_bytes(b"no image")
    assert len(one("imagenet", tmp_path).folder.samples) == 2


def test_an_unknown_wordnet_id_is_skipped_and_reported(tmp_path: Path) -> None:
    put(tmp_path, "n01440764/a.png", "n00000001/b.png", "n00000001/c.png")
    dataset = one("imagenet", tmp_path).folder
    assert labels(dataset) == {"n01440764/a.png": 0}
    detail = "not among the data set's 1000 classes; 2 images"
    assert issue(dataset, "unknown-class") == DataIssue("n00000001", "unknown-class", detail, "skipped")


def test_the_flat_validation_layout_raises_an_error_with_a_solution(tmp_path: Path) -> None:
    put(tmp_path, "ILSVRC2012_val_00000001.JPEG", "ILSVRC2012_val_00000002.JPEG")
    with pytest.raises(DataError, match=r"not in class folders.*WordNet id.*devkit's order"):
        one("imagenet", tmp_path)


def test_sketch_in_its_inner_folder(tmp_path: Path) -> None:
    put(tmp_path, "sketch/n01440764/sketch_0.JPEG")
    dataset = one("imagenet-sketch", tmp_path)
    assert (dataset.name, labels(dataset.folder)) == ("imagenet-sketch", {"n01440764/sketch_0.JPEG": 0})
    assert labels(one("imagenet-sketch", tmp_path / "sketch").folder) == labels(dataset.folder)


@pytest.mark.parametrize("name", ["imagenet-a", "imagenet-r"])
def test_two_hundred_classes_have_an_own_and_a_1000_class_mapping(tmp_path: Path, name: str) -> None:
    inside = {"imagenet-a": "n01498041", "imagenet-r": "n01443537"}[name]  # stingray 6, goldfish 1
    put(tmp_path, f"{inside}/a.jpg", "n15075141/b.jpg")
    dataset = one(name, tmp_path)
    assert list(dataset.class_mappings) == ["200 classes", "1000 classes"]
    own, everything = dataset.class_mappings.values()
    assert (own.among, everything.among) == ("own", "all")
    assert len(own.outputs) == 200 == len(set(own.outputs))
    assert own.outputs == everything.outputs == tuple((SYNSETS.index(synset),) for synset in dataset.folder.classes)
    assert labels(dataset.folder) == {f"{inside}/a.jpg": 0}
    assert issue(dataset.folder, "unknown-class").file == "n15075141"  # toilet tissue is in neither
    # the index lists of the same release, an independent form
    indices = Path(timm.data.__file__).parent / "_info" / f"{name.replace('-', '_')}_indices.txt"
    assert [i for (i,) in own.outputs] == sorted(map(int, indices.read_text().split()))


# --- ImageNet-V2


def test_v2_folders_are_class_indices_not_sorted_strings(tmp_path: Path) -> None:
    top = put(tmp_path / "imagenetv2-matched-frequency-format-val", "0/a.jpeg", "2/b.jpeg", "10/c.jpeg", "999/d.jpeg")
    dataset = one("imagenet-v2", top)
    assert dataset.name == "imagenet-v2 (matched-frequency)"
    assert labels(dataset.folder) == {"0/a.jpeg": 0, "10/c.jpeg": 10, "2/b.jpeg": 2, "999/d.jpeg": 999}
    assert dataset.folder.classes == tuple(SYNSETS)
    assert "996 of 1000" in issue(dataset.folder, "missing-class").detail


def test_v2_variants_in_one_folder(tmp_path: Path) -> None:
    variants = ("matched-frequency", "threshold0.7", "top-images")
    for variant in variants:
        put(tmp_path / "imagenet-v2" / f"imagenetv2-{variant}-format-val", "5/a.jpeg")
    names = [dataset.name for dataset in IMAGENET["imagenet-v2"](tmp_path / "imagenet-v2")]
    wanted = ["imagenet-v2 (matched-frequency)", "imagenet-v2 (threshold-0.7)", "imagenet-v2 (top-images)"]
    assert names == wanted
    assert [dataset.name for dataset in read_imagenet(tmp_path)[0]] == wanted
    assert one("imagenet-v2", put(tmp_path / "plain", "7/a.jpeg")).name == "imagenet-v2"


# --- ObjectNet


def test_objectnet_has_the_overlap_and_one_issue_for_the_rest(tmp_path: Path) -> None:
    put(tmp_path / "images", "alarm_clock/a.png", "t-shirt/b.png", "air_freshener/c.png", "squeegee/d.png")
    put(tmp_path / "images", "squeegee/e.png")
    dataset = one("objectnet", tmp_path)
    assert dataset.border == 2
    own, everything = dataset.class_mappings["113 classes"], dataset.class_mappings["1000 classes"]
    assert list(dataset.class_mappings) == ["113 classes", "1000 classes"]
    assert (own.among, own.pool, everything.among) == ("own", "max", "all")
    by_class = dict(zip(dataset.folder.classes, own.outputs, strict=True))
    assert {dataset.folder.classes[label] for label in labels(dataset.folder).values()} == {"alarm_clock", "t-shirt"}
    assert by_class["alarm_clock"] == (409, 530)
    detail = "3 images of 2 classes that are not in ImageNet: air_freshener, squeegee"
    assert issue(dataset.folder, "no-overlap") == DataIssue(".", "no-overlap", detail, "skipped")
    assert not [p for p in dataset.folder.issues if p.category == "unknown-class"]
    assert labels(one("objectnet", tmp_path / "images").folder) == labels(dataset.folder)


def test_objectnet_mapping(tmp_path: Path) -> None:
    dataset = one("objectnet", put(tmp_path, "banana/a.png"))
    outputs = dataset.class_mappings["113 classes"].outputs
    flat = [index for indices in outputs for index in indices]
    assert (len(outputs), len(flat), len(set(flat))) == (113, 125, 125)
    assert Counter(map(len, outputs)) == {1: 104, 2: 6, 3: 3}
    by_class = dict(zip(dataset.folder.classes, outputs, strict=True))
    named = {  # of objectnet_to_imagenet_1k.json, by the words of the ImageNet classes
        "chair": ["barber chair", "folding chair", "rocking chair, rocker"],
        "wheel": ["car wheel", "paddlewheel, paddle wheel"],
        "coffee_french_press": ["espresso maker"],
        "full_sized_towel": ["bath towel"],
        "pop_can": ["pop bottle, soda bottle"],
        "winter_glove": ["mitten"],
    }
    assert {name: [words(index) for index in by_class[name]] for name in named} == named


# --- SI-Score


HEADER = "image_id,x_coord,y_coord,area,rotation,foreground_class,foreground_instance,background\n"


def test_si_score_reads_the_parameters_of_each_factor(tmp_path: Path) -> None:
    for factor in ("area", "rotation", "location20_area02_min0pc"):
        put(tmp_path / factor, "saxophone/2.jpg", "ambulance/17.jpg")
        table = HEADER + "2,0.15000000000000002,0.5,0.2,41,3,0,7\n17,1.0,0.05,0.5,1,0,0,9\n"
        (tmp_path / factor / "metadata.csv").write_text(table)
    location, rotation, size = IMAGENET["si-score"](tmp_path)
    assert [location.name, rotation.name, size.name] == [f"si-score ({f})" for f in ("location", "rotation", "size")]

    def groups(dataset: ShiftedDataset) -> dict[str, dict[str, str]]:
        return {sample.file: dict(sample.groups) for sample in dataset.folder.samples}

    assert groups(rotation) == {"ambulance/17.jpg": {"rotation": "1"}, "saxophone/2.jpg": {"rotation": "41"}}
    assert groups(size) == {"ambulance/17.jpg": {"area": "0.5"}, "saxophone/2.jpg": {"area": "0.2"}}
    assert groups(location)["saxophone/2.jpg"] == {"x_coord": "0.15", "y_coord": "0.5"}
    assert list(rotation.class_mappings) == ["1000 classes", "61 classes"]  # published accuracies are 1000-way
    assert [p.category for p in rotation.folder.issues] == ["missing-class"]


def test_si_score_mapping(tmp_path: Path) -> None:
    dataset = one("si-score", put(tmp_path / "object_size", "pig/0.jpg"))
    outputs = dataset.class_mappings["61 classes"].outputs
    assert len(outputs) == 61 == len(set(outputs))
    assert all(len(indices) == 1 for indices in outputs)
    assert words(outputs[labels(dataset.folder)["pig/0.jpg"]][0]).startswith("hog, pig")
    other = {"ipod": "iPod", "taxi": "cab, hack, taxi, taxicab", "jeans": "jean, blue jean, denim"}
    for name, (index,) in zip(dataset.folder.classes, outputs, strict=True):
        assert words(index) == other[name] if name in other else name in words(index)


def test_si_score_without_a_row_or_a_table(tmp_path: Path) -> None:
    top = put(tmp_path / "object_rotation", "pig/0.jpg", "pig/1.jpg")
    dataset = one("si-score", top).folder
    assert issue(dataset, "no-metadata").detail == "2 images, metadata.csv does not exist: pig/0.jpg, pig/1.jpg"
    (top / "metadata.csv").write_text(HEADER + "0,0.5,0.5,0.2,41,3,0,7\n")
    dataset = one("si-score", top).folder
    assert [dict(sample.groups) for sample in dataset.samples] == [{"rotation": "41"}, {}]
    assert issue(dataset, "no-metadata").detail == "1 images, no row in metadata.csv: pig/1.jpg"


@pytest.mark.parametrize("text", ["a,b\n1,2\n", "image_id,rotation\n0,steep\n", "image_id,rotation\n0\n", "\xff"])
def test_si_score_with_a_table_of_another_kind(tmp_path: Path, text: str) -> None:
    top = put(tmp_path / "object_rotation", "pig/0.jpg")
    (top / "metadata.csv").write_text(text, encoding="latin-1")
    with pytest.raises(DataError, match="must have the columns image_id, rotation"):
        one("si-score", top)


def test_si_score_without_a_factor(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="none of the folders object_location"):
        one("si-score", put(tmp_path / "si-score", "pig/0.jpg"))


# --- cue conflict


def test_cue_conflict_shape_is_the_label_and_texture_a_group(tmp_path: Path) -> None:
    put(tmp_path, "airplane/airplane1-bicycle2.png", "cat/cat3-cat1.png", "cat/other.png", "cat/cat1-unicorn2.png")
    dataset = one("cue-conflict", tmp_path)
    by_file = {sample.file: sample for sample in dataset.folder.samples}
    assert by_file["airplane/airplane1-bicycle2.png"].groups == {"texture": "bicycle"}
    assert dataset.folder.classes[by_file["airplane/airplane1-bicycle2.png"].label] == "airplane"
    assert by_file["cat/cat3-cat1.png"].groups == {"texture": "cat"}
    wrong = [p.file for p in dataset.folder.issues if p.category == "no-texture"]
    assert wrong == ["cat/cat1-unicorn2.png", "cat/other.png"]
    assert all(by_file[file].groups == {} for file in wrong)
    (mapping,) = dataset.class_mappings.values()
    assert (list(dataset.class_mappings), mapping.among, mapping.pool) == (["16 classes"], "own", "mean")


def test_cue_conflict_mapping(tmp_path: Path) -> None:
    dataset = one("cue-conflict", put(tmp_path, "oven/oven1-dog2.png"))
    outputs = dict(zip(dataset.folder.classes, dataset.class_mappings["16 classes"].outputs, strict=True))
    assert list(outputs) == sorted(outputs)
    sizes = {"airplane": 1, "bear": 4, "bicycle": 2, "bird": 49, "boat": 5, "bottle": 7, "car": 3, "cat": 6, "chair": 4}
    sizes |= {"clock": 3, "dog": 109, "elephant": 2, "keyboard": 2, "knife": 1, "oven": 1, "truck": 8}
    assert {name: len(indices) for name, indices in outputs.items()} == sizes
    flat = [index for indices in outputs.values() for index in indices]
    assert len(flat) == len(set(flat)) == 207
    # the same file's WordNet ids, of which some are no ImageNet-1k classes: an independent form
    ids = {
        "bear": "n02132136 n02133161 n02134084 n02134418",
        "boat": "n02951358 n03344393 n03662601 n04273569 n04612373 n04612504",
        "bottle": "n02823428 n03937543 n03983396 n04557648 n04560804 n04579145 n04591713",
        "chair": "n02791124 n03376595 n04099969 n00605023 n04429376",
        "keyboard": "n03085013 n04505470",
    }
    for name, synsets in ids.items():
        assert [SYNSETS[index] for index in outputs[name]] == [s for s in synsets.split() if s in SYNSETS]


# --- Backgrounds Challenge


def test_backgrounds_are_scored_among_all_thousand(tmp_path: Path) -> None:
    for variant in BACKGROUNDS:
        put(tmp_path / variant / "val", *(f"{name}/fg_n02085620_1.JPEG" for name in IN9))
    sets = IMAGENET["imagenet-9"](tmp_path)
    assert [dataset.name for dataset in sets] == [f"imagenet-9 ({variant})" for variant in BACKGROUNDS]
    for dataset in sets:
        assert list(dataset.folder.classes) == IN9
        assert sorted(labels(dataset.folder).values()) == list(range(9))
        assert (list(dataset.class_mappings), dataset.class_mappings["9 classes"].among) == (["9 classes"], "all")
        assert issue(dataset.folder, "derived-mapping").action == "counted"


def test_imagenet9_mapping_has_the_published_sizes(tmp_path: Path) -> None:
    dataset = one("imagenet-9", put(tmp_path, "original/val/00_dog/a.JPEG"))
    outputs = dataset.class_mappings["9 classes"].outputs
    assert [len(indices) for indices in outputs] == [116, 52, 44, 36, 35, 27, 26, 20, 16]  # vehicles: 42 published
    flat = [index for indices in outputs for index in indices]
    assert len(flat) == len(set(flat))
    assert set(outputs[0]) == set(range(151, 269)) - {171, 172}
    assert set(outputs[7]) == set(range(365, 385))
    assert {words(index) for index in outputs[2]} >= {"ambulance", "freight car", "tricycle, trike, velocipede"}


def test_the_official_table_of_imagenet9_is_used_if_it_exists(tmp_path: Path) -> None:
    put(tmp_path / "bg_challenge/mixed_rand/val", "00_dog/a.JPEG")
    table = {str(index): index % 10 - 1 for index in range(1000)}
    (tmp_path / "in_to_in9.json").write_text(json.dumps(table))
    dataset = one("imagenet-9", tmp_path / "bg_challenge")
    assert dataset.class_mappings["9 classes"].outputs[3] == tuple(range(4, 1000, 10))
    assert "derived-mapping" not in [p.category for p in dataset.folder.issues]
    (tmp_path / "in_to_in9.json").write_text(json.dumps(dict(list(table.items())[1:])))
    with pytest.raises(DataError, match=r"must map each of 0\.\.999 to one of -1\.\.8; it has 999"):
        one("imagenet-9", tmp_path / "bg_challenge")
    (tmp_path / "in_to_in9.json").write_text("[]")
    with pytest.raises(DataError, match="cannot be read"):
        one("imagenet-9", tmp_path / "bg_challenge")


def test_backgrounds_one_level_off(tmp_path: Path) -> None:
    put(tmp_path, "original/val/00_dog/a.JPEG")
    with pytest.raises(DataError, match="has none of original/val, mixed_same/val"):
        one("imagenet-9", tmp_path / "original")


# --- finding the sets under a root


@pytest.fixture
def root(tmp_path: Path) -> Path:
    put(tmp_path / "ImageNet/val", "n01440764/a.JPEG")
    put(tmp_path / "imagenetv2-matched-frequency-format-val", "3/a.jpeg")
    put(tmp_path / "imagenet-a", "n01498041/a.jpg")
    put(tmp_path / "ImageNet-R", "n01443537/a.jpg")
    put(tmp_path / "sketch", "n01440764/a.JPEG")
    put(tmp_path / "objectnet-1.0/images", "banana/a.png")
    put(tmp_path / "SI-Score/rotation", "pig/0.jpg")
    put(tmp_path / "texture-vs-shape/stimuli/style-transfer-preprocessed-512", "cat/cat1-dog2.png")
    put(tmp_path / "bg_challenge", "original/val/00_dog/a.JPEG", "mixed_rand/val/00_dog/a.JPEG")
    return tmp_path


def test_every_data_set_is_detected_by_its_published_folder(root: Path) -> None:
    sets, missing = read_imagenet(root)
    names = ["imagenet", "imagenet-v2 (matched-frequency)", "imagenet-a", "imagenet-r", "imagenet-sketch", "objectnet"]
    names += ["si-score (rotation)", "cue-conflict", "imagenet-9 (original)", "imagenet-9 (mixed_rand)"]
    assert [dataset.name for dataset in sets] == names
    assert missing == []
    for dataset in sets:
        for mapping in dataset.class_mappings.values():
            assert isinstance(mapping, ClassMapping)
            assert len(mapping.outputs) == len(dataset.folder.classes)
            assert {index for indices in mapping.outputs for index in indices} <= set(range(1000))


def test_missing_data_sets_are_listed_and_requested_ones_raise_an_error(tmp_path: Path) -> None:
    put(tmp_path / "val", "n01440764/a.JPEG")
    sets, missing = read_imagenet(tmp_path)
    assert [dataset.name for dataset in sets] == ["imagenet"]
    assert missing == [name for name in IMAGENET if name != "imagenet"]
    assert read_imagenet(tmp_path, ["imagenet"])[1] == []
    with pytest.raises(
        DataError, match=r"not found: imagenet-a, objectnet .*imagenet-a as imagenet-a; objectnet as obj"
    ):
        read_imagenet(tmp_path, ["imagenet", "imagenet-a", "objectnet"])
    with pytest.raises(DataError, match="names: imagenet-b is unknown; choose from imagenet, imagenet-v2"):
        read_imagenet(tmp_path, ["imagenet-b"])
    with pytest.raises(DataError, match="no such folder"):
        read_imagenet(tmp_path / "nowhere")


# --- bad input


def test_a_level_too_high_or_too_low(tmp_path: Path) -> None:
    put(tmp_path, "train/n01440764/a.JPEG", "val/n01440764/a.JPEG")
    with pytest.raises(DataError, match=r"imagenet: .*they hold folders themselves, such as train/n01440764"):
        one("imagenet", tmp_path)
    with pytest.raises(DataError, match=r"no class folders \(1 images lie directly in it\)"):
        one("imagenet", tmp_path / "val/n01440764")


@pytest.mark.parametrize(
    "name", ["imagenet", "imagenet-v2", "imagenet-a", "imagenet-sketch", "objectnet", "cue-conflict"]
)
def test_folders_of_another_data_set_and_empty_folders(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match=f"{name}: no class folder is a class of the data set"):
        one(name, put(tmp_path / "other", "unicorn/a.png"))
    (tmp_path / "empty/n01440764").mkdir(parents=True)
    with pytest.raises(DataError, match=f"{name}: .*are empty"):
        one(name, tmp_path / "empty")


@pytest.mark.skipif("CLEARHEAD_DATA" not in os.environ, reason="CLEARHEAD_DATA (nips17/) is not set")
def test_real_photographs_in_the_layout_of_the_validation_set() -> None:
    root = Path(os.environ["CLEARHEAD_DATA"]) / "nips17"
    dataset = one("imagenet", root).folder
    assert sorted(sample.file for sample in dataset.samples) == sorted(
        f"{path.parent.name}/{path.name}" for path in root.glob("n*/*.jpg")
    )
    assert all(SYNSETS[sample.label] == sample.file.split("/")[0] for sample in dataset.samples)
    assert {p.category for p in dataset.issues} <= {"missing-class"}


# --- shards


def parquet(path: Path, names: list[str], labels: list[int]) -> Path:
    """Write a Parquet file like the Hub: encoded images, and the names of the labels in the metadata."""
    buffer = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), 100, np.uint8)).save(buffer, "PNG")
    table = pa.table({"image": [{"bytes": buffer.getvalue(), "path": None}] * len(labels), "label": labels})
    features = {"info": {"features": {"label": {"names": names, "_type": "ClassLabel"}}}}
    pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps(features)}), path)
    return path


@pytest.mark.parametrize("by", ["WordNet id", "name"])
def test_a_data_set_of_the_hub_has_the_mappings_of_the_published_folder(tmp_path: Path, by: str) -> None:
    ids = subset("imagenet-r")
    classes = INFO.label_descriptions()
    names = list(ids) if by == "WordNet id" else [classes[SYNSETS.index(i)] for i in ids]
    dataset = read_shards("imagenet-r", parquet(tmp_path / "test.parquet", names, [3, 199]), classes)
    assert [sample.label for sample in dataset.folder.samples] == [3, 199]
    assert dataset.folder.classes == ids
    assert dataset.class_mappings["200 classes"].outputs[3] == (SYNSETS.index(ids[3]),)
    assert dataset.class_mappings["1000 classes"].among == "all"


def test_a_data_set_that_needs_its_files_is_not_read_from_shards(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="objectnet is read from its published folder"):
        read_shards("objectnet", tmp_path / "x.parquet", SYNSETS)
