"""Two models on the same images: what is told of the classes."""

import numpy as np
import pytest

from clearhead.analyses.compare import compare_predictions as compare
from clearhead.data.interventions import INTERVENTIONS
from clearhead.prediction.predict import Predictions

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
        found = compare(*pair, CLASSES).differences["accuracy, background swapped"]
        assert (found.value, found.count) == (0, 2)


def test_other_labels_for_the_same_images_are_refused() -> None:
    with pytest.raises(ValueError, match="different labels"):
        compare(predictions([0, 1], [0, 1]), predictions([0, 1], [1, 0]), CLASSES)


def test_each_class_has_its_difference_and_the_worst_their_first_flips() -> None:
    label = [0] * 6 + [1] * 6
    before = predictions([0] * 6 + [1, 1, 1, 0, 0, 0], label)
    after = predictions([1, 1, 1, 1, 0, 0] + [1] * 6, label)
    found = compare(before, after, CLASSES)
    assert {name: round(e.value, 3) for name, e in found.classes.items()} == {"ant": -0.667, "bee": 0.5}
    assert all(e.count == 6 and e.low < e.value < e.high for e in found.classes.values())
    assert found.first_negative_flips == {
        "ant": ["00.png", "01.png", "02.png"]
    }  # four were lost; cow has no image, bee gained
    assert compare(after, after, CLASSES).first_negative_flips == {}
