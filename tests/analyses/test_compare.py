"""Two models on the same images: what is reported of the classes."""

import numpy as np
import pyarrow.parquet
import pytest
import timm
from PIL import Image

from clearhead.analyses.compare import compare_predictions as compare
from clearhead.data.interventions import INTERVENTIONS
from clearhead.prediction.predict import Predictions
from tests.command import clearhead, error, result
from tests.conftest import CLASSES as MODEL_CLASSES

CLASSES = ("ant", "bee", "cow")


def predictions(predicted: list[int], label: list[int]) -> Predictions:
    count = len(label)
    return Predictions(
        file=np.array([f"{i:02d}.png" for i in range(count)]),
        label=np.array(label),
        predicted=np.array(predicted),
        group=np.array([f"class={CLASSES[i]}" for i in label]),
        confidence=np.full(count, 0.9),
        loss=np.linspace(0, 1, count),
        brier=np.linspace(0, 2, count),
        relevance_mass=np.full(count, np.nan),
        area=np.full(count, np.nan),
        interventions={name: np.full(count, -1) for name in INTERVENTIONS},
        method="gae",
    )


def test_an_intervention_that_one_model_was_not_shown_is_left_out() -> None:
    before, after = predictions([0, 1, 2], [0, 1, 2]), predictions([0, 1, 2], [0, 1, 2])
    before.interventions["background swapped"][:] = [0, 1, 2]
    after.interventions["background swapped"][:2] = [0, 1]  # the last image of its batch had no partner
    for pair in ((before, after), (after, before)):
        measured = compare(*pair, CLASSES).differences["accuracy, background swapped"]
        assert (measured.value, measured.count) == (0, 2)


def test_other_labels_for_the_same_images_are_refused() -> None:
    with pytest.raises(ValueError, match="different labels"):
        compare(predictions([0, 1], [0, 1]), predictions([0, 1], [1, 0]), CLASSES)


def test_each_class_has_its_difference_and_the_worst_their_first_flips() -> None:
    label = [0] * 6 + [1] * 6
    before = predictions([0] * 6 + [1, 1, 1, 0, 0, 0], label)
    after = predictions([1, 1, 1, 1, 0, 0] + [1] * 6, label)
    measured = compare(before, after, CLASSES)
    assert {name: round(e.value, 3) for name, e in measured.classes.items()} == {"ant": -0.667, "bee": 0.5}
    assert all(e.count == 6 and e.low < e.value < e.high for e in measured.classes.values())
    assert measured.first_negative_flips == {
        "ant": ["00.png", "01.png", "02.png"]
    }  # four were lost; cow has no image, bee gained
    assert compare(after, after, CLASSES).first_negative_flips == {}


def test_a_model_compared_with_itself_is_inconclusive(workspace):
    run = clearhead("compare", "model", "model", "data", "--out", "itself", cwd=workspace)
    assert "inconclusive" in run.stdout
    assert result(workspace / "itself")["comparison"]["mcnemar"] == {
        "positive_flips": 0,
        "negative_flips": 0,
        "p_value": 1.0,
    }


def test_each_model_of_a_comparison_is_shown_the_images_as_it_sees_them(workspace, tmp_path):
    size = {"img_size": 48, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
    module = timm.create_model("vit_tiny_patch16_224", num_classes=3, **size)
    cfg = {"mean": (0.2, 0.3, 0.4), "std": (0.3, 0.2, 0.1)}
    config = {"model_args": size, "label_names": MODEL_CLASSES, "pretrained_cfg": cfg}
    timm.models.save_for_hf(module, tmp_path / "larger", model_config=config)
    run = clearhead("compare", workspace / "model", "larger", workspace / "data", "--out", "compare", cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    examples = result(tmp_path / "compare")["sample"]
    sizes = {caption: Image.open(tmp_path / "compare" / file).size for e in examples for caption, file in e["images"]}
    assert sizes == {"image": (32, 32), "before": (32, 32), "after": (48, 48)}
    for caption in ("before", "after"):
        assert pyarrow.parquet.read_table(tmp_path / "compare" / f"predictions-{caption}.parquet").num_rows == 36


def test_models_of_different_classes_are_an_error(workspace, tmp_path):
    module = timm.create_model("vit_tiny_patch16_224", num_classes=2, img_size=32)
    config = {"model_args": {"img_size": 32}, "label_names": ["bird", "cat"]}
    timm.models.save_for_hf(module, tmp_path / "two", model_config=config)
    message = error(clearhead("compare", workspace / "model", "two", workspace / "data", cwd=tmp_path))
    assert "classes differ" in message
    assert not list(tmp_path.glob("runs/*"))
