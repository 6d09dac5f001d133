"""Many masks at once against one full pass per mask; folding against the masked model."""

from dataclasses import replace

import pytest
import torch

from clearhead.attention_tap import tap
from clearhead.attribution import explain
from clearhead.heads import head_gradients
from clearhead.heads.fold import fold_heads
from clearhead.heads.head_masking import HeadMask, HeadMaskRunner, attention_layers, head_mask_runner
from clearhead.models import Classifier, load_model, save_model
from tests import cases

SLOW = {"timm-swin"}
READS_CLS = {"timm-vit", "timm-deit-distilled", "timm-dinov3", "torchvision-vit", "hf-vit", "hf-deit"}


def masked(model: Classifier, images: torch.Tensor, scales: dict[str, torch.Tensor]) -> torch.Tensor:
    with torch.no_grad(), tap(model.module, heads=scales):
        return model(images)


@pytest.mark.parametrize("name", cases.MODELS)
@pytest.mark.parametrize("position", [0, -1])
def test_logits_equal_one_full_pass_per_mask(name: str, position: int) -> None:
    model, images = cases.classifier(name), cases.pixels(3)
    layer = attention_layers(model, images)[position]
    ready = head_mask_runner(model, layer, images)
    assert (ready.block is None) == (name in SLOW)
    scales = torch.rand(5, layer.num_heads, generator=torch.Generator().manual_seed(2)).round(decimals=1)
    expected = torch.stack([masked(model, images, {layer.name: s}) for s in scales])
    torch.testing.assert_close(ready.logits(images, HeadMask(scales)), expected, rtol=1e-4, atol=1e-5)
    assert not model.module._forward_pre_hooks


@pytest.mark.parametrize("name", sorted(READS_CLS))
def test_only_prefix_tokens_continue_after_the_last_layer(name: str) -> None:
    model, images = cases.classifier(name), cases.pixels(2)
    ready = head_mask_runner(model, attention_layers(model, images)[-1], images)
    if name == "timm-dinov3":  # its rotary embedding wants all patches
        assert ready.block is not None
    else:
        assert ready.tokens == model.grid.prefix  # type: ignore[union-attr]


def test_chunks_give_the_same_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    model, images = cases.classifier("timm-vit"), cases.pixels(5)
    layer = attention_layers(model, images)[-1]
    ready, scales = head_mask_runner(model, layer, images), torch.rand(7, 4)
    whole = ready.logits(images, HeadMask(scales))
    for rows in (1, 5, 20):
        monkeypatch.setattr("clearhead.heads.head_masking._ROWS", rows)
        torch.testing.assert_close(ready.logits(images, HeadMask(scales)), whole, rtol=1e-4, atol=1e-5)


def test_masks_of_other_layers_apply() -> None:
    model, images = cases.classifier("hf-vit"), cases.pixels(2)
    first, last = attention_layers(model, images)
    fixed, scales = torch.tensor([0.0, 2.0, 1.0, 0.5]), torch.rand(3, 4)
    ready = replace(head_mask_runner(model, last, images), others={first.name: HeadMask(fixed[None])})
    expected = torch.stack([masked(model, images, {first.name: fixed, last.name: s}) for s in scales])
    torch.testing.assert_close(ready.logits(images, HeadMask(scales)), expected, rtol=1e-4, atol=1e-5)
    assert isinstance(ready, HeadMaskRunner)


def test_fill_replaces_a_removed_head() -> None:
    model, images = cases.classifier("timm-vit"), cases.pixels(2)
    layer = attention_layers(model, images)[-1]
    scales, fill = torch.tensor([[1.0, 0.0, 1.0, 0.0]]), torch.randn(4, layer.head_dim)

    def edit(output: torch.Tensor) -> torch.Tensor:
        keep = scales[0][:, None, None]
        return output * keep + (1 - keep) * fill[:, None, :]

    with torch.no_grad(), tap(model.module, heads={layer.name: edit}):
        expected = model(images)
    result = head_mask_runner(model, layer, images).logits(images, HeadMask(scales, fill))[0]
    torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-5)
    folded = fold_heads(model, {layer.name: HeadMask(scales, fill)}, images)
    torch.testing.assert_close(folded(images).detach(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", cases.MODELS)
def test_folding_is_exact(name: str) -> None:
    model, images = cases.classifier(name), cases.pixels(3)
    layers = attention_layers(model, images)
    scales = {
        layer.name: torch.where(torch.arange(layer.num_heads) % 2 == 0, 2.0, 0.0) for layer in (layers[0], layers[-1])
    }
    before = model(images).detach()
    wanted = {name: HeadMask(s[None]) for name, s in scales.items()}
    folded = fold_heads(model, wanted, images)
    expected = masked(model, images, scales)
    assert (expected - before).abs().max() > 1e-2
    torch.testing.assert_close(folded(images).detach(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(model(images).detach(), before)


def test_folding_a_plain_module() -> None:
    model, images = cases.classifier("hf-vit"), cases.pixels(3)
    layer, scales = attention_layers(model, images)[0].name, torch.tensor([0.0, 2.0, 1.0, 1.0])
    folded = fold_heads(model.module, {layer: scales}, images)
    with torch.no_grad(), tap(model.module, heads={layer: scales}):
        torch.testing.assert_close(folded(images).logits, model.module(images).logits, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(folded(model.normalize(images)).logits, model(images), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["timm-vit", "torchvision-vit", "hf-vit"])
def test_maps_and_gradients_of_masked_and_folded_model_agree(name: str) -> None:
    model, images = cases.classifier(name), cases.pixels(3)
    layer, scales = attention_layers(model, images)[0].name, torch.tensor([0.0, 2.0, 1.0, 1.0])
    folded = fold_heads(model, {layer: HeadMask(scales[None])}, images)
    for method in ("gae", "legrad", "attnlrp", "libragrad"):
        with tap(model.module, heads={layer: scales}):
            result = explain(model, images, 1, method)
        torch.testing.assert_close(result, explain(folded, images, 1, method), rtol=1e-4, atol=1e-5, msg=method)
        assert not torch.allclose(result, explain(model, images, 1, method), atol=1e-3)
    expected, _ = head_gradients(folded, images, [0], 1)
    for differentiable in (False, True):
        with tap(model.module, heads={layer: scales}):
            (result,), _ = head_gradients(model, images, [0], 1, differentiable=differentiable)
        torch.testing.assert_close(result.detach(), expected[0], rtol=1e-4, atol=1e-6)
        assert not result[:, 0].any()


def test_norm_after_the_heads_raises() -> None:
    model, images = cases.classifier("timm-vit"), cases.pixels(1)
    attn = model.module.blocks[-1].attn
    attn.norm = torch.nn.LayerNorm(attn.attn_dim)
    with pytest.raises(ValueError, match=r"no Linear takes the heads of 'blocks\.1\.attn'"):
        fold_heads(model, {"blocks.1.attn": HeadMask(torch.ones(1, 4))}, images)


def test_removing_all_heads_of_a_layer_raises() -> None:
    model, images = cases.classifier("timm-vit"), cases.pixels(1)
    with pytest.raises(ValueError, match=r"nothing is left of 'blocks\.0\.attn'"):
        fold_heads(model, {"blocks.0.attn": HeadMask(torch.zeros(1, 4))}, images)


def test_folded_model_is_an_ordinary_checkpoint(tmp_path) -> None:
    import timm

    model = load_model("timm:vit_tiny_patch16_224", pretrained=False, num_classes=3, image_size=32)
    images = cases.pixels(2)
    layer = attention_layers(model, images)[-1]
    keep = torch.tensor([0.0, 1.5, 1.5])
    save_model(fold_heads(model, {layer.name: HeadMask(keep[None])}, images), tmp_path / "folded")
    plain = timm.create_model(f"local-dir:{tmp_path / 'folded'}", pretrained=True).eval()
    expected = masked(model, images, {layer.name: keep})
    torch.testing.assert_close(plain(model.normalize(images)).detach(), expected, rtol=1e-5, atol=1e-5)
