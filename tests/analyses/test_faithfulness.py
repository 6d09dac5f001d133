"""Faithfulness against a loop over single images, and on models whose faithful map is known."""

import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.ndimage import gaussian_filter
from scipy.stats import spearmanr
from torch import Tensor, nn

from clearhead.analyses.faithfulness import BLUR, Faithfulness, MapFaithfulness, faithfulness, measure, randomised
from clearhead.attribution import METHODS, explain
from clearhead.data.dataset import ImageIndex
from clearhead.data.folder import read_folder
from clearhead.data.loading import ImageDataset
from clearhead.models import Classifier, Preprocessing, from_module
from clearhead.storage import from_plain, read_json, to_plain, write_json
from tests import cases
from tests.command import clearhead, error
from tests.command import result as saved_result

SIDE = 10
AREAS = ("mif_auc", "lif_auc", "mif_auc_from_0", "lif_auc_from_0", "deletion", "insertion")


def make_folder(root: Path, side: int, counts: dict[str, int]) -> ImageIndex:
    rng = np.random.default_rng(0)
    for name, count in counts.items():
        (root / name).mkdir()
        for i in range(count):
            Image.fromarray(rng.integers(20, 256, (side, side, 3), dtype=np.uint8)).save(root / name / f"{i}.png")
    return read_folder(root, classes=tuple(counts))


@pytest.fixture(scope="module")
def noise(tmp_path_factory: pytest.TempPathFactory) -> ImageIndex:
    """Seven images of five classes, as large as the models of ``cases`` take."""
    return make_folder(tmp_path_factory.mktemp("noise"), cases.SIZE, {"a": 1, "b": 2, "c": 1, "d": 1, "e": 2})


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> ImageIndex:
    """Forty images, nearly all of the class a, for models of SIDE pixels."""
    return make_folder(tmp_path_factory.mktemp("small"), SIDE, {"a": 39, "b": 1})


def linear(weight: Tensor) -> Classifier:
    """The logit of class a is the sum of an image's values in 0..1, each by its weight (H x W); that of b is 0."""
    side, zero, one = (SIDE, SIDE), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    layer = nn.Linear(3 * SIDE**2, 2, bias=False)
    layer.weight.data = torch.stack([weight.expand(3, -1, -1).flatten(), torch.zeros(3 * SIDE**2)])
    return from_module(
        nn.Sequential(nn.Flatten(), layer), preprocess=Preprocessing(side, side, zero, one), classes=("a", "b")
    )


def signed() -> Classifier:
    """In favour of a: the upper half, from the top left on ever less. Against it: the lower half."""
    return linear(torch.linspace(1, -0.8, SIDE**2).reshape(SIDE, SIDE) / 10)


def always(values: Tensor) -> Callable[..., tuple[Tensor, Tensor]]:
    """A method whose map is the same for every image."""
    return lambda model, images, target: (values.expand(len(images), -1, -1), model(images).detach())


def falling(side: int) -> Tensor:
    """A map that is highest at the top left and has no two equal values."""
    return torch.arange(side**2, 0, -1.0).reshape(side, side)


def one_by_one(model: Classifier, folder: ImageIndex, method: str, fill: str, target: str) -> dict[str, np.ndarray]:
    """Top-1 and probability of every perturbed image, each filled by itself."""
    rows, correlation = [], []
    other = randomised(model, 3)
    for item in ImageDataset(folder, model.preprocess):
        image, label = item["image"], item["label"]
        with torch.no_grad():
            chosen = label if target == "truth" else int(model(image[None]).argmax())
        ranking = explain(model, image[None], chosen, method)[0].flatten().numpy()
        correlation.append(spearmanr(ranking, explain(other, image[None], chosen, method)[0].flatten()).statistic)
        pixels = image.double().numpy()
        background = np.zeros_like(pixels)
        if fill == "mean":
            background += pixels.mean((1, 2), keepdims=True)
        if fill == "blur":
            sigma = BLUR * min(pixels.shape[1:])
            wide = [gaussian_filter(p, sigma, mode="constant", truncate=99) for p in [*pixels, np.ones_like(pixels[0])]]
            background = np.stack(wide[:3]) / wide[3]
        for direction, order in enumerate([np.argsort(-ranking), np.argsort(ranking)]):
            for tenth in range(11):
                changed = pixels.reshape(3, -1).copy()
                gone = order[: len(order) * tenth // 10]
                changed[:, gone] = background.reshape(3, -1)[:, gone]
                with torch.no_grad():
                    logits = model(torch.from_numpy(changed.reshape(pixels.shape)).float()[None])[0]
                rows.append((direction, tenth, float(logits.softmax(-1)[chosen]), int(logits.argmax()) == label))
    table = np.array(rows).reshape(-1, 2, 11, 4)
    return {"probability": table[..., 2], "correct": table[..., 3], "correlation": np.array(correlation)}


def area(curve: np.ndarray) -> float:
    return float(sum((a + b) / 20 for a, b in pairwise(curve)))


@pytest.mark.parametrize(("fill", "target"), [("black", "predicted"), ("mean", "truth"), ("blur", "predicted")])
def test_all_numbers_are_those_of_a_loop_over_images(
    fill: str, target: str, noise: ImageIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(METHODS, "fixed", always(falling(cases.SIZE)))
    model = cases.classifier("timm-vit")
    result = faithfulness(model, noise, ["input-gradient", "fixed"], fill=fill, target=target, batch_size=3, seed=3)
    assert result.removed == [0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]
    gaps = {}
    for method, numbers in result.methods.items():
        expected = one_by_one(model, noise, method, fill, target)
        correct, probability = expected["correct"].mean(0), expected["probability"].mean(0)
        assert numbers.mif_curve == pytest.approx(correct[0, :10])
        assert numbers.lif_curve == pytest.approx(correct[1, :10])
        assert numbers.mif_auc.value == pytest.approx(area(correct[0, 1:10]))
        assert numbers.lif_auc.value == pytest.approx(area(correct[1, 1:10]))
        assert numbers.mif_auc_from_0.value == pytest.approx(area(correct[0, :10]))
        assert numbers.lif_auc_from_0.value == pytest.approx(area(correct[1, :10]))
        assert numbers.deletion.value == pytest.approx(area(probability[0]), abs=1e-5)
        restored = probability[1, ::-1]  # the most relevant tenths put back, from none to all
        assert numbers.insertion.value == pytest.approx(area(restored), abs=1e-5)
        raised = expected["probability"][:, 0, 1] > expected["probability"][:, 0, 0]
        assert numbers.violations.value == raised.mean()
        assert numbers.randomised.value == pytest.approx(expected["correlation"].mean(), abs=1e-5)
        assert {getattr(numbers, name).count for name in (*AREAS, "violations", "randomised")} == {7}
        gaps[method] = area(correct[1, 1:10]) - area(correct[0, 1:10])
        assert numbers.gap.value == pytest.approx(gaps[method])
    assert result.best == max(gaps, key=gaps.__getitem__)
    for method, numbers in result.methods.items():
        if method == result.best:
            assert numbers.gap_to_best is None
        else:
            assert numbers.gap_to_best.value == pytest.approx(gaps[method] - gaps[result.best])


def test_the_true_map_beats_its_inverse(small: ImageIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METHODS, "true", always(falling(SIDE)))
    monkeypatch.setitem(METHODS, "inverse", always(-falling(SIDE)))
    result = faithfulness(signed(), small, ["inverse", "true"])
    true, inverse = result.methods["true"], result.methods["inverse"]
    assert (true.mif_curve, true.lif_curve) == (inverse.lif_curve, inverse.mif_curve)
    assert result.best == "true"
    assert true.gap.low > 0.2
    assert inverse.gap.value == pytest.approx(-true.gap.value)
    assert inverse.gap_to_best.value == pytest.approx(-2 * true.gap.value)
    assert inverse.gap_to_best.high < 0
    assert true.insertion.value > 0.6 > true.deletion.value
    assert (true.violations.value, inverse.violations.value) == (0, 1)
    assert true.randomised.value == 1  # one that does not look at the model


def test_a_map_of_the_model_does_not_survive_its_randomisation(small: ImageIndex) -> None:
    numbers = faithfulness(signed(), small, ["input-gradient"], target="truth").methods["input-gradient"]
    assert abs(numbers.randomised.value) < 0.3
    assert numbers.randomised.count == 39  # the logit of b has no gradient


def test_constant_maps_favour_no_direction(small: ImageIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METHODS, "constant", always(torch.zeros(SIDE, SIDE)))
    gaps = []
    for seed in range(5):
        numbers = faithfulness(signed(), small, ["constant"], seed=seed, target="truth").methods["constant"]
        assert all(math.isfinite(getattr(numbers, name).value) for name in AREAS)
        assert numbers.deletion.value == pytest.approx(numbers.insertion.value, abs=0.03)
        assert 0.2 < numbers.violations.value < 0.8
        assert (numbers.randomised.count, math.isnan(numbers.randomised.value)) == (0, True)
        gaps.append(numbers.gap.value)
    assert min(gaps) < 0 < max(gaps)
    assert abs(np.mean(gaps)) < 0.01


def test_ties_are_broken_anew_for_each_image_and_alike_for_the_same_seed(
    small: ImageIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A map of two values: the tenths removed within one are random, but no pixel goes before its time."""
    half = torch.zeros(SIDE, SIDE)
    half[: SIDE // 2] = 1
    monkeypatch.setitem(METHODS, "half", always(half))
    step = linear(half * 1e-9)  # equal logits: the hook sees the inputs
    seen: list[Tensor] = []
    step.module.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    faithfulness(step, small, ["half"], batch_size=18)
    faithfulness(step, small, ["half"], batch_size=18)
    perturbed = torch.cat([batch for batch in seen if len(batch) == 18]).amax(1)  # of the maps' and the queue's batches
    gone = [pixels == 0 for pixels in perturbed]
    upper = [g[: SIDE // 2].float().mean().item() for g in gone]
    lower = [g[SIDE // 2 :].float().mean().item() for g in gone]
    assert all(u in (0, 1) or v in (0, 1) for u, v in zip(upper, lower, strict=True))
    tenths = [tuple(g.flatten().tolist()) for g in gone if g.float().mean().item() == pytest.approx(0.1)]
    assert len(set(tenths)) == 80  # 40 images, from above and from below
    assert len(tenths) == 160  # and twice the same


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), levels=st.integers(1, SIDE**2))
def test_only_the_order_of_the_pixels_counts(small: ImageIndex, seed: int, levels: int) -> None:
    rng = np.random.default_rng(seed)
    values = torch.from_numpy(rng.integers(levels, size=(SIDE, SIDE))).float() / levels
    distinct = torch.from_numpy(rng.permutation(SIDE**2)).float().reshape(SIDE, SIDE)
    model = linear(torch.from_numpy(rng.normal(size=(SIDE, SIDE))).float())
    two = ImageIndex(small.root, small.classes, small.samples[-2:], ())
    maps = {"values": values, "risen": values.exp(), "distinct": distinct, "turned": -distinct}
    with pytest.MonkeyPatch.context() as patch:
        for name, values in maps.items():
            patch.setitem(METHODS, name, always(values))
        numbers = faithfulness(model, two, list(maps), target="truth").methods
    assert without_to_best(numbers["values"]) == without_to_best(numbers["risen"])
    assert numbers["distinct"].mif_curve == numbers["turned"].lif_curve
    assert numbers["distinct"].gap.value == pytest.approx(-numbers["turned"].gap.value)
    assert numbers["distinct"].deletion.value == pytest.approx(numbers["turned"].insertion.value)
    for method in numbers.values():
        assert method.mif_curve[0] == method.lif_curve[0]
        assert all(0 <= share <= 1 for share in (*method.mif_curve, *method.lif_curve))


def without_to_best(numbers: MapFaithfulness) -> dict[str, object]:
    return {name: value for name, value in vars(numbers).items() if name not in ("gap_to_best", "randomised")}


def test_batches_change_nothing_and_bound_what_the_model_gets(noise: ImageIndex) -> None:
    model, methods = cases.classifier("timm-vit"), ["rollout", "gae", "input-x-gradient"]
    sizes: list[int] = []
    model.module.register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0])))
    whole = faithfulness(model, noise, methods)
    assert max(sizes) == 32  # 7 images have 126 perturbed ones per method
    sizes.clear()
    parts = faithfulness(model, noise, methods, batch_size=2)
    assert max(sizes) == 2
    assert parts.best == whole.best
    for method in methods:
        a, b = whole.methods[method], parts.methods[method]
        assert (a.mif_curve, a.lif_curve, a.violations) == (b.mif_curve, b.lif_curve, b.violations)
        # an upsampled map repeats its values at the border, where rounding, which batches change, decides the ranks
        for name in (*AREAS, "randomised"):
            assert getattr(a, name).value == pytest.approx(getattr(b, name).value, abs=1e-3)


def test_one_image_and_the_way_to_a_file_and_back(noise: ImageIndex, tmp_path: Path) -> None:
    one = ImageIndex(noise.root, noise.classes, noise.samples[:1], ())
    result = faithfulness(cases.classifier("hf-vit"), one, ["gae", "attention", "gae"])
    assert list(result.methods) == ["gae", "attention"]
    for numbers in result.methods.values():
        assert {*numbers.mif_curve, *numbers.lif_curve} <= {0, 1}
        assert (numbers.gap.count, math.isnan(numbers.gap.low)) == (1, True)
        assert numbers.violations.low < numbers.violations.high
    write_json(tmp_path / "results.json", to_plain(result, tmp_path))
    again = from_plain(read_json(tmp_path / "results.json"), Faithfulness, tmp_path)
    assert repr(again) == repr(result)  # NaN is not equal to itself


@pytest.mark.parametrize("name", ["timm-eva02", "timm-swin"])
def test_under_autocast_and_leaving_no_trace(name: str, noise: ImageIndex) -> None:
    model = cases.classifier(name)
    model.module.train()
    before = {key: value.clone() for key, value in model.module.state_dict().items()}
    methods = ["rollout", "gae", "input-gradient"] if model.grid else ["input-gradient"]
    tracked: list[int] = []

    def progress(batches, count, description):
        tracked.append(count)
        return batches

    with torch.autocast("cpu", torch.bfloat16):
        result = faithfulness(model, noise, methods, batch_size=4, fill="blur", progress=progress)
    assert tracked == [2]
    assert all(math.isfinite(numbers.randomised.value) for numbers in result.methods.values())
    assert model.module.training
    assert all(parameter.grad is None for parameter in model.module.parameters())
    assert all(torch.equal(value, before[key]) for key, value in model.module.state_dict().items())


def test_randomised_keeps_each_parameters_entries() -> None:
    model = cases.classifier("torchvision-vit")
    first, again, other = (dict(randomised(model, seed).module.named_parameters()) for seed in (0, 0, 1))
    for name, parameter in model.module.named_parameters():
        assert torch.equal(first[name].sort_values(), parameter.sort_values()) if False else True
        torch.testing.assert_close(first[name].flatten().sort().values, parameter.flatten().sort().values)
        assert torch.equal(first[name], again[name])
        if parameter.numel() > 4:
            assert not torch.equal(first[name], parameter)
            assert not torch.equal(first[name], other[name])


def test_a_method_the_model_cannot_do_is_told_before_the_work(noise: ImageIndex) -> None:
    cnn = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5))
    side, half = (cases.SIZE, cases.SIZE), (0.5, 0.5, 0.5)
    model = from_module(cnn, preprocess=Preprocessing(side, side, half, half), classes=tuple("abcde"), name="cnn")
    seen: list[int] = []
    cnn.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
    for method, message in (
        ("gae", "cnn .* has none: use input-gradient"),
        ("guess", "'guess' is unknown; choose from"),
    ):
        seen.clear()
        with pytest.raises(ValueError, match=message):
            faithfulness(model, noise, ["input-gradient", method], batch_size=2)
        assert sum(seen) <= 2
    assert faithfulness(model, noise, ["input-gradient"]).best == "input-gradient"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"methods": []}, r"methods: got \[\]; give a list of one or more names"),
        ({"methods": "gae"}, "methods: got 'gae'; give a list"),
        ({"fill": "white"}, "fill: 'white' is unknown; choose from black, mean, blur"),
        ({"target": "label"}, "target: 'label' is unknown; choose from predicted, truth"),
    ],
)
def test_bad_arguments(changes: dict[str, object], message: str, noise: ImageIndex) -> None:
    with pytest.raises(ValueError, match=message):
        faithfulness(cases.classifier("timm-vit"), noise, **({"methods": ["gae"]} | changes))


def test_models_are_compared_with_the_first(workspace: Path, other: Path) -> None:
    models, options = [str(workspace / "model"), str(other)], {"split": "test", "methods": ["gae", "input-gradient"]}
    result = measure(models, workspace / "data", **options)
    assert list(result.models) == ["model", "other"]
    assert result.subject.models == ["model", "other"]
    assert list(result.gap_change) == ["other"]
    for method, change in result.gap_change["other"].items():
        before, after = (np.array(one.methods[method].gaps) for one in result.models.values())
        assert change.value == pytest.approx((after - before).mean())
        assert change.count == 12
    alone = measure(models[1:], workspace / "data", **options)
    assert repr(alone.models["other"]) == repr(result.models["other"])
    assert measure(models[:1], workspace / "data", limit=4, methods=["gae"]).subject.images == 4


def test_the_command_compares_models_and_methods(workspace: Path, other: Path) -> None:
    arguments = ("faithfulness", "model", "other", "data", "--methods", "all", "--split", "test", "--out", "faithful")
    run = clearhead(*arguments, cwd=workspace)
    assert run.returncode == 0, run.stderr
    assert "LIF AUC" in run.stdout
    assert "other, gae" in run.stdout
    results = saved_result(workspace / "faithful")
    assert results["subject"]["models"] == ["model", "other"]
    assert results["models"]["model"]["methods"].keys() >= {"gae", "rollout", "attnlrp", "input-gradient"}
    gap = results["gap_change"]["other"]["gae"]
    gaps = [results["models"][name]["methods"]["gae"]["gap"]["value"] for name in ("model", "other")]
    assert gap["value"] == pytest.approx(gaps[1] - gaps[0])
    assert "Least relevant pixels removed first: other" in (workspace / "faithful" / "report.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("model", "nowhere"), "data: nowhere: no such folder or file"),
        (("modle", "data"), "model: modle is not a folder"),
        (("model", "data", "--methods", "lime"), "method: 'lime' is unknown"),
        (("model", "data", "--fill", "white"), "black"),
        (
            ("model", "hub", "two", "data"),
            "models: the classes differ: model has 3 (bird, cat, fish), two has 2 (a, b)",
        ),
        (("model", "data", "--out", "data"), "out: data holds other files"),
    ],
)
def test_bad_input_of_the_command(workspace: Path, two: Path, arguments: tuple[str, ...], message: str) -> None:
    assert message in error(clearhead("faithfulness", *arguments, cwd=workspace))
    assert not list((workspace / "runs").glob("faithfulness-*"))
