"""Pre-activation ResNets and AlterNets against forward passes written out, and their sizes."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from timm.models.resnetv2 import ResNetV2
from torch import Tensor, nn

from clearhead import tap
from clearhead.zoo import AlterNet, build_up
from clearhead.zoo.alternet import AttentionBlock, WindowAttention
from tests.zoo.test_transformers import noise, on_paper, operations, parameters

SMALL = {"layers": (1, 2), "channels": (16, 32), "stem_chs": 8, "num_heads": (1, 2), "head_dim": 8, "num_classes": 5}


def moved(model: nn.Module) -> nn.Module:
    """In float64 and eval mode, with parameters and running statistics that matter."""
    torch.manual_seed(0)
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            if tensor.is_floating_point():
                tensor.add_(0.1 * torch.randn_like(tensor).abs())
    return model.double().eval()


def norm(x: Tensor, layer: nn.BatchNorm2d) -> Tensor:
    def shaped(v: Tensor) -> Tensor:
        return v[:, None, None]

    standard = (x - shaped(layer.running_mean)) / shaped(layer.running_var + layer.eps).sqrt()
    return standard * shaped(layer.weight) + shaped(layer.bias)


def window_attention(x: Tensor, layer: WindowAttention) -> Tensor:
    """B x C x H x W to B x C' x H x W, window by window, the bias looked up pair by pair."""
    side = layer.window
    places = [(y, x) for y in range(side) for x in range(side)]
    bias = torch.stack(
        [
            torch.stack(
                [layer.position_bias[(a - c + side - 1) * (2 * side - 1) + b - d + side - 1] for c, d in places]
            )
            for a, b in places
        ]
    )
    out = x.new_zeros(len(x), layer.proj.out_features, *x.shape[2:])
    for top in range(0, x.shape[2], side):
        for left in range(0, x.shape[3], side):
            tokens = x[:, :, top : top + side, left : left + side].flatten(2).transpose(1, 2)
            q, k, v = (tokens @ w.T for w in layer.qkv.weight.chunk(3))
            heads = []
            for one, two, three in zip(*(t.chunk(layer.num_heads, -1) for t in (q, k, v)), strict=True):
                scores = one @ two.transpose(1, 2) / math.sqrt(one.shape[-1]) + bias
                heads.append(scores.softmax(-1) @ three)
            done = torch.cat(heads, -1) @ layer.proj.weight.T + layer.proj.bias
            out[:, :, top : top + side, left : left + side] = done.transpose(1, 2).unflatten(2, (side, side))
    return out


def by_hand(model: AlterNet, x: Tensor) -> Tensor:
    """A network with the 3 x 3 stem, written out."""
    x = F.conv2d(x, model.stem.conv.weight, padding=1)
    for number, stage in enumerate(model.stages):
        for index, block in enumerate(stage.blocks):
            if isinstance(block, AttentionBlock):
                y = F.conv2d(F.gelu(norm(x, block.norm1)), block.conv.weight)
                x = x + window_attention(norm(y, block.norm2), block.attn)
                continue
            stride = 2 if number and not index else 1
            start = norm(x, block.norm1).relu()
            y = norm(F.conv2d(start, block.conv1.weight), block.norm2).relu()
            y = norm(F.conv2d(y, block.conv2.weight, stride=stride, padding=1), block.norm3).relu()
            short = x if index else F.conv2d(start, block.downsample.conv.weight, stride=stride)
            x = short + F.conv2d(y, block.conv3.weight)
    return F.linear(norm(x, model.norm).relu().mean((2, 3)), model.head.fc.weight, model.head.fc.bias)


@pytest.mark.parametrize("attn_blocks", [0, 1])
def test_the_network_is_the_one_written_out(attn_blocks):
    model, images = moved(AlterNet(**SMALL, attn_blocks=attn_blocks)), noise(2, 16).requires_grad_()
    mine, theirs = model(images), by_hand(model, images)
    torch.testing.assert_close(mine, theirs)
    of = [images, *model.parameters()]
    for a, b in zip(*(torch.autograd.grad(y.square().sum(), of) for y in (mine, theirs)), strict=True):
        torch.testing.assert_close(a, b)


def test_attention_blocks_alternate_from_the_end_of_a_stage():
    model = on_paper("alternet50_224")
    categories = [
        "".join("A" if isinstance(b, AttentionBlock) else "C" for b in stage.blocks) for stage in model.stages
    ]
    assert categories == ["CCC", "CCCA", "CACACA", "CACA"]
    heads = {a.attn.num_heads: a.attn.window for a in model.modules() if isinstance(a, AttentionBlock)}
    assert heads == {6: 7, 12: 7, 24: 7}


def test_without_attention_and_with_the_large_stem_it_is_timms():
    arguments = {"layers": (1, 2), "channels": (16, 32), "stem_chs": 8, "num_classes": 5}
    model = moved(AlterNet(**arguments, num_heads=(1, 1), small_images=False))
    layers = {"conv_layer": timm_conv, "norm_layer": model.norm.__class__}
    timms = ResNetV2(**arguments, **layers).double().eval()
    state = model.state_dict()
    timms.load_state_dict(state | {"head.fc.weight": state["head.fc.weight"][..., None, None]})
    torch.testing.assert_close(model(noise(2, 64)), timms(noise(2, 64)))


def timm_conv(*args, **kwargs) -> nn.Conv2d:
    return nn.Conv2d(*args, **kwargs, padding=(kwargs.get("kernel_size") or args[2]) // 2, bias=False)


@pytest.mark.slow
def test_sizes_against_known_ones():
    imagenet = 25_549_352  # ResNet-50 v2, 1000 classes
    assert parameters(on_paper("preact_resnet50_224")) == imagenet
    assert operations(on_paper("preact_resnet50_224"), 1, 3, 224, 224) == pytest.approx(2 * 4.09e9, rel=0.01)
    small = imagenet - 3 * 64 * (7**2 - 3**2) - 900 * 2049
    assert parameters(on_paper("preact_resnet50_32")) == small

    one_more = 17 * 512**2 + 12 * 512
    plain = on_paper("alternet50_32", attn_blocks=0)
    assert parameters(plain) == small + one_more
    gained = 0
    for width, heads in ((128, 6), (256, 12), (512, 24), (512, 24)):  # the attention blocks of (0, 1, 1, 2)
        attention = 3 * width * heads * 64 + heads * 64 * 4 * width + 4 * width + 7**2
        gained += 4 * width**2 + 10 * width + attention - (17 * width**2 + 12 * width)
    assert parameters(on_paper("alternet50_32")) == small + one_more + gained

    difference = 0
    for side, width, heads in ((16, 128, 6), (8, 256, 12), (4, 512, 24), (4, 512, 24)):
        attention = 3 * width * heads * 64 + heads * 64 * 4 * width + 2 * 4**2 * heads * 64
        difference += 2 * side**2 * (4 * width**2 + attention - 17 * width**2)
    actual = operations(on_paper("alternet50_32"), 1, 3, 32, 32) - operations(plain, 1, 3, 32, 32)
    assert actual == difference


def test_the_build_up_goes_through_the_papers_models():
    order = [build_up(n) for n in range(9)]
    assert order[:6] == [(0, 0, 0, 0), (0, 0, 0, 1), (0, 0, 0, 2), (0, 0, 1, 2), (0, 1, 1, 2), (1, 1, 1, 2)]
    assert order[6:] == [(1, 1, 2, 2), (1, 2, 2, 2), (1, 2, 3, 2)]


@given(st.lists(st.integers(1, 9), min_size=1, max_size=5), st.data())
def test_the_build_up_adds_one_block_at_a_time_where_there_is_room(layers, data):
    room = [depth // 2 for depth in layers]
    blocks = data.draw(st.integers(0, sum(room)))
    counts = build_up(blocks, layers)
    assert sum(counts) == blocks
    assert all(n <= most for n, most in zip(counts, room, strict=True))
    if blocks:
        before = build_up(blocks - 1, layers)
        assert all(n >= m for n, m in zip(counts, before, strict=True))
    with pytest.raises(ValueError, match=rf"attn_blocks: {sum(room) + 1}; from 0 to {sum(room)}"):
        build_up(sum(room) + 1, layers)


def test_stochastic_depth_grows_through_attention_blocks_too():
    model = on_paper("alternet_mini_32", drop_path_rate=0.7)
    rates = [getattr(b.drop_path, "drop_prob", 0.0) for stage in model.stages for b in stage.blocks]
    assert rates == pytest.approx([0.1 * i for i in range(8)], abs=1e-6)


def test_its_attention_can_be_read_and_masked():
    model = moved(AlterNet(**SMALL, attn_blocks=1))
    with tap(model) as record, torch.no_grad():
        before = model(noise(2, 16))
    (layer,) = record
    assert (layer.name, layer.attn().shape) == ("stages.1.blocks.1.attn", (2 * 4, 2, 16, 16))
    with tap(model, heads={0: torch.zeros(2)}), torch.no_grad():
        assert not torch.allclose(model(noise(2, 16)), before)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"attn_blocks": 5}, r"attn_blocks: 5; from 0 to 4"),
        ({"attn_blocks": -1}, r"attn_blocks: -1; from 0"),
        ({"attn_blocks": (0, 0, 0, 2)}, r"attn_blocks: \(0, 0, 0, 2\); the 4 stages have room for at most 1, 1, 1, 1"),
        ({"attn_blocks": (1, 1)}, r"attn_blocks: \(1, 1\); the 4 stages"),
        ({"num_heads": (1, 2)}, r"num_heads: \(1, 2\); one number for each of the 4 stages"),
        ({"window": 0}, r"window: 0; at least 1"),
    ],
)
def test_what_cannot_be_built_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        on_paper("alternet_mini_32", **arguments)


def test_images_that_windows_do_not_tile_are_refused():
    model = on_paper("alternet_mini_32")
    with pytest.raises(ValueError, match=r"feature map of 6 x 6 cannot be cut into windows of 4 x 4"):
        model(torch.empty(1, 3, 48, 48, device="meta"))
