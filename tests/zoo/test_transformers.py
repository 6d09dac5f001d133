"""The ViTs, PiT, Swin and Mixer: sizes counted by hand, windows against an explicit unfolding."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from clearhead import tap
from clearhead.zoo import MODELS, window_mask

import timm  # isort: skip  (after clearhead, which lets torchvision import)


def on_paper(name: str, **arguments) -> torch.nn.Module:
    """The model without memory: shapes, parameters and operations can be counted all the same."""
    with torch.device("meta"):
        return timm.create_model(name, **arguments)


def parameters(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def operations(model: torch.nn.Module, *shape: int) -> int:
    """Floating-point operations of a forward pass, a multiply-add being two."""
    images = torch.empty(shape, device="meta", requires_grad=True)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:  # fused kernels are not counted
        model(images)
    return counter.get_total_flops()


def moved(name: str, **arguments) -> torch.nn.Module:
    """The model in float64, its parameters moved at random so that no attention is uniform."""
    torch.manual_seed(0)
    model = timm.create_model(name, **arguments).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def noise(batch: int = 2, side: int = 32) -> torch.Tensor:
    return torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize(
    "name", [name if "mini" in name else pytest.param(name, marks=pytest.mark.slow) for name in MODELS]
)
def test_every_model_takes_its_size_and_gives_its_classes(name):
    model = on_paper(name, num_classes=7)
    size = model.pretrained_cfg["input_size"]
    assert size == (3, *2 * (int(name.rsplit("_", 1)[1]),))
    images = torch.empty(2, *size, device="meta")
    features = model.forward_features(images)
    assert model.forward_head(features).shape == (2, 7) == model(images).shape
    assert model.forward_head(features, pre_logits=True).shape == (2, model.num_features)
    assert model.get_submodule(model.pretrained_cfg["classifier"]).out_features == 7
    assert model.get_submodule(model.pretrained_cfg["first_conv"]).in_channels == 3
    model.reset_classifier(4)
    assert model.to_empty(device="meta")(images).shape == (2, 4)


def vit_counts(patch: int, dim: int, depth: int, hidden: int, cls: bool) -> tuple[int, int]:
    """Parameters and operations of a ViT on 32 x 32 pixels with 100 classes."""
    patches = (32 // patch) ** 2
    tokens, embed = patches + cls, 3 * patch**2 * dim
    block = 4 * dim**2 + dim + 2 * dim * hidden + hidden + dim + 4 * dim
    weights = embed + dim + (tokens + cls) * dim + depth * block + 2 * dim + 100 * (dim + 1)
    layer = tokens * (4 * dim**2 + 2 * dim * hidden) + 2 * tokens**2 * dim
    return weights, 2 * (patches * embed + depth * layer + 100 * dim)


@pytest.mark.parametrize("pooling", ["", "gap_", "window_"])
@pytest.mark.parametrize(("size", "counts"), [("tiny_patch2", (2, 192, 12, 768)), ("mini_patch4", (4, 96, 6, 192))])
def test_a_vit_is_as_large_as_its_closed_form(size, counts, pooling):
    model = on_paper(f"vit_{size}_{pooling}32")
    assert (parameters(model), operations(model, 1, 3, 32, 32)) == vit_counts(*counts, cls=not pooling)


def test_pit_swin_and_mixer_are_as_large_as_counted_by_hand():
    dims, depths = (96, 192, 384), (2, 6, 4)
    blocks = sum(n * (12 * d**2 + 13 * d) for d, n in zip(dims, depths, strict=True))
    pools = sum(9 * b + b + a * b + b for a, b in itertools.pairwise(dims))
    pit = 3 * 4 * 96 + 96 + 31**2 * 96 + 96 + blocks + pools + 2 * 384 + 100 * 385
    assert parameters(on_paper("pit_tiny_patch2_32")) == pit

    heads = 2 * 3 + 2 * 6 + 6 * 12 + 2 * 24  # of all layers
    known = 28_288_354  # Swin-T, patch 4, window 7, 1000 classes
    swin = known - 3 * 15 * 96 - (13**2 - 7**2) * heads - 900 * 769
    assert parameters(on_paper("swin_tiny_patch1_window4_32")) == swin

    tokens, channels = 2 * 256 * 128 + 128 + 256, 2 * 256 * 1024 + 1024 + 256
    mixer = 3 * 4 * 256 + 256 + 8 * (tokens + channels + 4 * 256) + 2 * 256 + 100 * 257
    assert parameters(on_paper("mixer_tiny_patch2_32")) == mixer


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("vit_mini_patch4_window_32", 6),
        ("pit_tiny_patch2_32", 12),
        ("swin_mini_patch2_window4_32", 6),
        ("alternet50_224", 6),
        ("alternet_mini_32", 2),
    ],
)
def test_the_tap_sees_every_attention_layer(name, layers):
    model = on_paper(name)
    with tap(model) as record:
        model(torch.empty(1, *model.pretrained_cfg["input_size"], device="meta"))
    assert len({a.name for a in record}) == len(record) == layers


@pytest.mark.parametrize("name", [name for name in MODELS if "mini" in name])
def test_every_parameter_is_trained(name):
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=5, drop_path_rate=0.1).train()
    F.cross_entropy(model(noise(4).float()), torch.arange(4)).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in model.parameters())


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 6))
def test_the_mask_holds_the_window_cut_at_the_border(height, width, reach):
    mask = window_mask((height, width), 2 * reach + 1).view(height, width, height, width)
    for y in range(height):
        for x in range(width):
            expected = torch.zeros(height, width, dtype=torch.bool)
            expected[max(y - reach, 0) : y + reach + 1, max(x - reach, 0) : x + reach + 1] = True
            assert torch.equal(mask[y, x], expected)


def unfolded(x: torch.Tensor, window: int) -> torch.Tensor:
    """What of 8 x 8 tokens, B x H x 64 x d, lies in each one's window, zeros beyond the border: B x H x d x kk x 64."""
    grids = x.flatten(0, 1).transpose(1, 2).unflatten(-1, (8, 8))
    actual = F.unfold(grids, window, padding=window // 2)
    return actual.view(*x.shape[:2], x.shape[-1], window**2, 64)


@pytest.mark.parametrize("window", [1, 3, 9])
def test_window_attention_is_attention_on_the_unfolded_keys_and_values(window):
    model = moved("vit_mini_patch4_window_32", window=window, depth=2)
    with tap(model) as record, torch.no_grad():
        model(noise())
    reached = F.unfold(torch.ones(1, 1, 8, 8, dtype=torch.float64), window, padding=window // 2).bool()  # 1 x kk x N
    for layer in record:
        scores = torch.einsum("bhnd,bhdkn->bhkn", layer.q, unfolded(layer.k, window)) / math.sqrt(layer.q.shape[-1])
        attention = scores.masked_fill(~reached, -math.inf).softmax(2)
        expected = torch.einsum("bhkn,bhdkn->bhnd", attention, unfolded(layer.v, window))
        torch.testing.assert_close(layer.output, expected)
        assert not layer.attn()[..., ~window_mask((8, 8), window)].any()
        assert (layer.attn()[..., window_mask((8, 8), window)] > 0).all()


def test_a_window_as_large_as_the_grid_is_global_attention():
    whole = moved("vit_mini_patch4_gap_32")
    for window, same in ((15, True), (17, True), (13, False)):
        model = timm.create_model("vit_mini_patch4_window_32", window=window).double().eval()
        model.load_state_dict(whole.state_dict())
        with torch.no_grad():
            assert torch.allclose(model(noise()), whole(noise()), rtol=1e-9, atol=1e-9) == same


def test_windows_follow_another_input_size():
    model = timm.create_model("vit_mini_patch4_window_32", img_size=(48, 64)).eval()
    assert torch.equal(model.blocks[0].attn.mask, window_mask((12, 16), 3))
    model.set_input_size((32, 48))
    assert model(torch.zeros(1, 3, 32, 48)).shape == (1, 100)
    assert torch.equal(model.blocks[-1].attn.mask, window_mask((8, 12), 3))


@pytest.mark.parametrize("window", [0, 4, -3, 2.5])
def test_a_window_without_a_middle_is_refused(window):
    with pytest.raises(ValueError, match=rf"window: {window}; an odd number"):
        timm.create_model("vit_mini_patch4_window_32", window=window)


def test_timm_says_that_there_are_no_weights():
    with pytest.raises(RuntimeError, match="No pretrained weights exist for vit_mini_patch4_32"):
        timm.create_model("vit_mini_patch4_32", pretrained=True)
    assert not set(timm.list_pretrained()) & set(MODELS)
    assert set(MODELS) <= set(timm.list_models())


@pytest.mark.parametrize("name", ["vit_mini_patch4_32", "swin_mini_patch2_window4_32", "alternet_mini_32"])
def test_features_come_at_the_resolutions_timm_says(name):
    model = timm.create_model(name, features_only=True)
    for actual, channels, reduction in zip(
        model(torch.zeros(2, 3, 32, 32)), model.feature_info.channels(), model.feature_info.reduction(), strict=True
    ):
        assert actual.shape == (2, channels, 32 // reduction, 32 // reduction)
