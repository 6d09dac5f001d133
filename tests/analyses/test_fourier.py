"""Amplitudes and variance against NumPy's transform and torch.var of feature maps taken by hooks."""

import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from clearhead.analyses import fourier
from clearhead.analyses.fourier import (
    FeatureMap,
    FeatureMaps,
    Fourier,
    feature_maps,
    frequencies,
    log_amplitudes,
    page,
    variances,
)
from clearhead.analyses.subject import Subject
from clearhead.errors import ClearheadError
from clearhead.layers import LayersError
from clearhead.metrics.statistics import Estimate
from tests.command import clearhead, error, result
from tests.layers.conftest import build, images_of, small
from tests.layers.test_branches import Handmade

import timm  # isort: skip  (after clearhead, which lets torchvision import)


def numpy_amplitudes(grid: np.ndarray) -> np.ndarray:
    """B x H x W x C to B x bins: the whole transform, centred, from its middle to its corner along the diagonal."""
    spectrum = np.fft.fftshift(np.fft.fft2(grid, axes=(1, 2)), axes=(1, 2))
    height, width = spectrum.shape[1:3]
    shorter = min(height, width)
    bins = [k for k in range(shorter) if k < shorter / 2]
    rows, columns = ([side // 2 + round(k * side / shorter) for k in bins] for side in (height, width))
    return np.log(np.abs(spectrum[:, rows, columns]) + 1e-6).mean(-1)


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 15), st.integers(1, 15), st.integers(0, 10**6))
def test_amplitudes_are_the_diagonal_of_the_transform(height, width, seed):
    x = np.random.default_rng(seed).normal(size=(2, height, width, 3))
    assume(np.abs(np.fft.fft2(x, axes=(1, 2))).min() > 1e-2)  # the logarithm of what rounds to nothing is not told
    measured = log_amplitudes(torch.from_numpy(x).flatten(1, 2), height, width)
    np.testing.assert_allclose(measured, numpy_amplitudes(x), atol=1e-3)
    assert measured.shape[1] == len(frequencies(height, width))


def test_frequencies_are_told_truly():
    assert frequencies(14, 14) == pytest.approx([2 * k / 14 for k in range(7)])  # the last is 6/7 π, not π
    assert frequencies(7, 9)[-1] == pytest.approx(6 / 7)
    assert frequencies(2, 2) == [0]


@settings(deadline=None, max_examples=30)
@given(st.floats(-100, 100), st.integers(2, 20), st.integers(0, 10**6))
def test_variance_is_that_of_torch_wherever_the_mean_is(offset, count, seed):
    x = torch.randn(2, count, 3, generator=torch.Generator().manual_seed(seed)) + offset
    torch.testing.assert_close(variances(x), x.double().var(1).mean(-1).float(), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", ["vit", "vit-not-square", "resnet", "resnet-preact", "torchvision-swin"])
def test_maps_are_those_that_hooks_see(name, folder):
    model, grids = small(name), []
    measured = feature_maps(model, folder, batch_size=5)
    assert measured.images == 12
    assert not measured.left_out
    blocks = sorted({branch.branch.rpartition(" ")[0] for branch in measured.branches[1:]})
    for block in map(model.module.get_submodule, blocks):
        if name == "resnet":  # its block ends in a ReLU after the sum
            block.act3.register_forward_pre_hook(lambda _m, args: grids.append(args[0].movedim(1, -1).clone()))
        elif name == "resnet-preact":
            block.register_forward_hook(lambda _m, _i, output: grids.append(output.movedim(1, -1).clone()))
        else:
            block.register_forward_hook(lambda _m, _i, output: grids.append(output))
    with torch.inference_mode():
        model(images_of(model, folder)[0])
    last = {
        block: max(i for i, u in enumerate(measured.branches) if u.branch.startswith(f"{block} ")) for block in blocks
    }
    for block, grid in zip(blocks, grids, strict=True):
        branch = measured.branches[last[block]]
        if grid.ndim == 3:
            grid = grid[:, model.grid.prefix :].unflatten(1, (branch.height, branch.width))
        assert grid.shape[1:3] == (branch.height, branch.width)
        amplitude = numpy_amplitudes(grid.double().numpy()).mean(0)
        np.testing.assert_allclose(branch.amplitude, amplitude - amplitude[0], atol=1e-3)
        if len(amplitude) > 1:
            assert branch.high.value == pytest.approx(branch.amplitude[-1], abs=1e-9)
        if grid[0, ..., 0].numel() == 1:
            continue
        assert branch.variance.value == pytest.approx(grid.flatten(1, 2).var(1).mean().item(), rel=1e-3)
        assert branch.variance.low <= branch.variance.value <= branch.variance.high


def test_changes_are_differences_between_branches_and_means_of_their_type(folder):
    measured = feature_maps(small("vit"), folder)
    for before, after in zip(measured.branches, measured.branches[1:], strict=False):
        assert after.high_change.value == pytest.approx(after.high.value - before.high.value)
        assert after.variance_change.value == pytest.approx(after.variance.value - before.variance.value)
    assert measured.branches[0].high_change is None
    for type_name in ("attention", "mlp"):
        changes = [branch.high_change.value for branch in measured.branches if branch.type == type_name]
        assert measured.high_change[type_name].value == pytest.approx(np.mean(changes))
        assert measured.high_change[type_name].count == 12


def test_no_change_is_told_where_the_grid_changes_or_has_one_frequency(folder):
    measured = feature_maps(small("torchvision-resnet"), folder)
    assert [(u.height, u.high_change) for u in measured.branches[2:]] == [(4, None), (2, None), (1, None)]
    assert math.isnan(measured.branches[-1].high.value)
    assert measured.branches[1].high_change is not None
    assert math.isnan(measured.branches[-1].variance.value)


def test_a_grid_of_one_frequency_has_changes_of_variance_alone(folder):
    vit = timm.models.VisionTransformer(img_size=32, patch_size=16, embed_dim=16, depth=1, num_heads=2, num_classes=3)
    model = build(vit)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        measured = feature_maps(model, folder)
    assert [branch.high_change for branch in measured.branches] == [None] * 3
    assert measured.high_change == {}
    assert list(measured.variance_change) == ["attention", "mlp"]


def test_no_change_is_told_across_a_unit_that_was_left_out(folder):
    def there_and_back(m, x):
        x = x + m.one(x)
        odd = torch.cat([x, x[:, :14]], 1).repeat(1, 4, 1)
        odd = odd + m.two(odd)
        x = odd[:, :16]
        return x + m.one(x)

    measured = feature_maps(build(Handmade(there_and_back)), folder)
    assert len(measured.left_out) == 1
    assert [branch.high_change is None for branch in measured.branches] == [True, False, True]


def test_maps_without_a_grid_are_refused(folder):
    def odd(m, x):
        x = torch.cat([x, x[:, :14]], 1).repeat(1, 4, 1)
        return x + m.one(x)

    with pytest.raises(LayersError, match="120 x 16 per image"):
        feature_maps(build(Handmade(odd)), folder)


def test_branches_are_counted_whose_change_is_known():
    def branch(change: float | None) -> FeatureMap:
        high = None if change is None else Estimate(change, change, change, 8)
        one = Estimate(1.0, 1.0, 1.0, 8)
        return FeatureMap("a", "conv", 0.5, 4, 4, [0, 0.5], [0, -1], one, one, high, one)

    mean = Estimate(-0.5, -1, 0, 8)
    maps = FeatureMaps([branch(c) for c in (None, -2.0, 1.0)], {"conv": mean}, {"conv": mean, "mlp": mean}, [], 8)
    changes = page(Fourier(Subject(["model"]), {"model": maps})).sections[0]
    assert [(row.name, row.cells, row.note) for row in changes.rows] == [
        ("model, convolution", [mean, mean], "2 branches, 1 lower it"),
        ("model, MLP", ["", mean], ""),
    ]


def test_the_command_leaves_a_whole_run(workspace):
    run = clearhead("layers", "fourier", "model", "data", "--limit", 8, "--out", "fourier", cwd=workspace)
    assert run.returncode == 0, run.stderr
    assert "attention" in run.stdout
    measured = result(workspace / "fourier")["maps"]["model"]
    assert measured["images"] == 8
    assert [branch["type"] for branch in measured["branches"]] == ["embed", *["attention", "mlp"] * 2]
    text = (workspace / "fourier" / "report.html").read_text()
    assert "Fourier spectrum" in text
    assert "Variance of feature maps" in text


def test_bad_input_is_reported(workspace):
    for arguments, message in (
        (("nowhere", "data"), "model: nowhere is not a folder"),
        (("model", "nothing"), "data: nothing: no such folder or file"),
        (("model", "data", "--split", "nowhere"), "nowhere"),
        (("model", "data", "--out", "data"), "holds other files"),
    ):
        assert message in error(clearhead("layers", "fourier", *arguments, cwd=workspace))


def test_no_model_is_an_error(workspace):
    with pytest.raises(ClearheadError, match="models: got none"):
        fourier.measure([], workspace / "data")
