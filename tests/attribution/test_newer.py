"""LeGrad, AttnLRP and LibraGrad against the same mathematics written out, in float64."""

import importlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clearhead.attribution import METHODS, explain
from clearhead.attribution.lrp import libragrad
from clearhead.models import Classifier, Preprocessing, TokenGrid, from_module
from tests import reference
from tests.cases import CLASSES, MODELS, SIZE, classifier, logits
from tests.cases import pixels as images

GLOBAL = [name for name in MODELS if name != "timm-swin"]
LRP = ["attnlrp", "libragrad"]
NEWER = ["legrad", *LRP]


def double(name: str) -> Classifier:
    actual = classifier(name)
    actual.module.double()
    return actual


class WrittenRMSNorm(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)


class WrittenLayerNorm(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return (x - x.mean(-1, keepdim=True)) / torch.sqrt(x.var(-1, keepdim=True) + 1e-6)


class Gated(nn.Module):
    """SwiGLU."""

    def __init__(self, width: int, bias: bool):
        super().__init__()
        self.one, self.other = nn.Linear(width, width, bias), nn.Linear(width, width, bias)

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(self.one(x), inplace=True) * self.other(x)


class QuickGELU(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


class Attention(nn.Module):
    def __init__(self, bias: bool):
        super().__init__()
        self.qkv, self.proj = nn.Linear(8, 24, bias), nn.Linear(8, 8, bias)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(2, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class TokensFirst(nn.Module):
    """Attention that is given N x B x D."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.MultiheadAttention(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = x.transpose(0, 1)
        return self.inner(x, x, x, need_weights=False)[0].transpose(0, 1)


class TinyViT(nn.Module):
    """One layer, two heads, 4 x 4 tokens of 8 channels, averaged: all that a rule is needed for, and no more."""

    def __init__(self, norm: nn.Module | None = None, activation: nn.Module | None = None, bias: bool = True):
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 8, 8, bias=bias)
        self.norm1 = nn.LayerNorm(8, bias=bias)
        self.norm2, self.norm3 = (norm or nn.LayerNorm(8, bias=bias) for _ in range(2))
        self.attn = Attention(bias)
        self.up, self.down = nn.Linear(8, 16, bias), nn.Linear(16, 8, bias)
        self.activation, self.head = activation or nn.GELU(), nn.Linear(8, CLASSES, bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = x + self.attn(self.norm1(x))
        x = x + self.down(self.activation(self.up(self.norm2(x))))
        return self.head(self.norm3(x).mean(1))


def tiny(**changes: Any) -> TinyViT:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = TinyViT(**changes).double().eval()
        for parameter in module.parameters():
            parameter.data.add_(0.3 * torch.randn_like(parameter))
    return module


def with_grid(module: nn.Module, grid: TokenGrid | None, classes: int = CLASSES) -> Classifier:
    side, half = (SIZE, SIZE), (0.5, 0.5, 0.5)
    model = from_module(module, preprocess=Preprocessing(side, side, half, half), classes=[*map(str, range(classes))])
    return replace(model, grid=grid)


def through_linear(x: Tensor, weight: Tensor, bias: Tensor, relevance: Tensor) -> Tensor:
    """The epsilon rule with epsilon = 0: each input gets its share of the sum, and the bias keeps its own."""
    parts = x[..., None, :] * weight
    return (parts / (parts.sum(-1) + bias)[..., None] * relevance[..., None]).sum(-2)


def through_norm(norm: nn.LayerNorm, x: Tensor, relevance: Tensor) -> Tensor:
    scale = norm.weight / (x.var(-1, correction=0, keepdim=True) + norm.eps).sqrt()
    centring = torch.eye(8, dtype=x.dtype) - 1 / 8
    return through_linear(x, scale[..., None] * centring, norm.bias, relevance)


def hand_written(model: TinyViT, image: Tensor, target: int, constant_attention: bool) -> Tensor:
    """Relevance of the tokens (4 x 4) of one image, from the logit down, in relevance and not in gradients."""
    x0 = model.patches(image[None])[0].flatten(1).T
    normed = model.norm1(x0)
    q, k, v = model.attn.qkv(normed).unflatten(1, (3, 2, 4)).permute(1, 2, 0, 3)
    scores = q @ k.transpose(1, 2) / 2
    attn = scores.softmax(-1)
    o = attn @ v
    heads = o.transpose(0, 1).flatten(1)
    x1 = x0 + model.attn.proj(heads)
    hidden = model.up(model.norm2(x1))
    x2 = x1 + model.down(F.gelu(hidden))
    x3 = model.norm3(x2)

    score = F.one_hot(torch.tensor(target), CLASSES) * model.head(x3.mean(0))
    r = x3 / x3.sum(0) * through_linear(x3.mean(0), model.head.weight, model.head.bias, score)
    r = through_norm(model.norm3, x2, r)
    mlp = through_linear(F.gelu(hidden), model.down.weight, model.down.bias, (x2 - x1) / x2 * r)
    r = x1 / x2 * r + through_norm(
        model.norm2, x1, through_linear(model.norm2(x1), model.up.weight, model.up.bias, mlp)
    )
    r_o = through_linear(heads, model.attn.proj.weight, model.attn.proj.bias, (x1 - x0) / x1 * r)
    parts = attn[..., None] * v[:, None] / o[:, :, None] * r_o.unflatten(1, (2, 4)).transpose(0, 1)[:, :, None]
    r_v = parts.sum(1)
    r_q, r_k = torch.zeros_like(q), torch.zeros_like(k)
    if not constant_attention:
        r_v, r_attn = r_v / 2, parts.sum(-1) / 2
        r_scores = scores * (r_attn - attn * r_attn.sum(-1, keepdim=True))
        pairs = q[:, :, None] * k[:, None] / 2 / scores[..., None] * r_scores[..., None] / 2
        r_q, r_k = pairs.sum(2), pairs.sum(1)
    r_qkv = torch.stack([r_q, r_k, r_v]).permute(2, 0, 1, 3).flatten(1)
    r_normed = through_linear(normed, model.attn.qkv.weight, model.attn.qkv.bias, r_qkv)
    r = x0 / x1 * r + through_norm(model.norm1, x0, r_normed)
    return r.sum(1).unflatten(0, (4, 4))


@pytest.mark.parametrize("method", LRP)
def test_lrp_is_the_relevance_handed_back_by_hand(method):
    module, batch = tiny(), images(2, dtype=torch.float64)
    model = with_grid(module, TokenGrid(4, 4, 0, "mean"))
    maps, _ = METHODS[method](model, batch, torch.tensor([3, 1]))
    with torch.no_grad():
        expected = [
            hand_written(module, image, target, method == "libragrad")
            for image, target in zip(model.normalize(batch), [3, 1], strict=True)
        ]
    torch.testing.assert_close(maps, torch.stack(expected).clamp(min=0))


class BothSigns(nn.Module):
    """The logits and their negatives: relevance against a class is relevance for its negative."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        actual = logits(self.module, x)
        return torch.cat([actual, -actual], 1)


def total(module: nn.Module, tokens: int, batch: Tensor) -> tuple[Tensor, Tensor]:
    """LibraGrad's relevance of all tokens (B), prefix included and of either sign, and the logit it is of."""
    model = with_grid(BothSigns(module), TokenGrid(1, tokens, 0, "mean"), 2 * CLASSES)
    (for_it, actual), (against, _) = libragrad(model, batch, 3), libragrad(model, batch, 3 + CLASSES)
    return (for_it - against).sum((1, 2)), actual[:, 3]


@pytest.mark.parametrize("name", GLOBAL)
def test_libragrad_shares_out_the_logit_of_a_model_without_biases(name):
    """Norms, gates, layer scales, residuals, read-outs of every library: no rule loses or makes relevance."""
    model = double(name)
    with torch.no_grad():
        for category, parameter in model.module.named_parameters():
            if "bias" in category:
                parameter.zero_()
    tokens = model.grid.prefix + model.grid.height * model.grid.width
    torch.testing.assert_close(*total(model.module, tokens, images(dtype=torch.float64)))


@pytest.mark.parametrize("norm", [nn.RMSNorm(8), WrittenRMSNorm(), WrittenLayerNorm(), nn.Identity()], ids=repr)
@pytest.mark.parametrize("activation", [nn.SiLU(inplace=True), nn.Tanh(), QuickGELU(), Gated(16, bias=False)], ids=repr)
def test_libragrad_shares_out_the_logit_whatever_the_layers(norm, activation):
    torch.testing.assert_close(*total(tiny(norm=norm, activation=activation, bias=False), 16, images().double()))


@pytest.mark.parametrize("name", GLOBAL)
def test_legrad_is_the_gradient_of_an_explicit_attention(name, monkeypatch):
    gae_module = importlib.import_module("clearhead.attribution.gae")  # the package has a function of this name
    monkeypatch.setattr(gae_module, "_BLOCK_ELEMENTS", 2 * 4 * 17 * 3)  # several blocks of rows, the last one smaller
    model, batch, target = double(name), images(dtype=torch.float64), torch.tensor([3, 1])
    maps, actual = METHODS["legrad"](model, batch, target)
    with reference.explicit_attention() as attention:
        expected = model(batch)
    gradients = torch.autograd.grad(expected.gather(1, target[:, None]).sum(), attention)
    row = sum(gradient.clamp(min=0).mean((1, 2)) for gradient in gradients)[:, model.grid.prefix :]
    torch.testing.assert_close(maps, row.unflatten(1, (model.grid.height, model.grid.width)))
    torch.testing.assert_close(actual, expected.detach())


@pytest.mark.parametrize("method", NEWER)
@pytest.mark.parametrize("name", ["timm-deit-distilled", "timm-beit", "torchvision-vit", "hf-dinov2"])
def test_an_image_is_explained_alike_in_any_batch(method, name):
    model, batch = double(name), images(3, dtype=torch.float64)
    maps, actual = METHODS[method](model, batch, torch.tensor([0, 1, 4]))
    assert (maps >= 0).all()
    assert (maps.amax((1, 2)) > 0).all()
    alone, _ = METHODS[method](model, batch[1:2], 1)
    torch.testing.assert_close(maps[1:2], alone)
    with torch.no_grad():
        torch.testing.assert_close(actual, model(batch))


class SecondLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attn = Attention(bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.attn(x)


@pytest.mark.parametrize("norm", [nn.LayerNorm(8), nn.RMSNorm(8), nn.Identity()], ids=repr)
def test_attnlrp_reads_the_first_layer_and_libragrad_the_mean_before_their_norms(norm):
    """Where attention writes nothing and the MLP a constant, tokens reach the head with that constant added."""
    module, batch = tiny(), images(dtype=torch.float64)
    model = with_grid(module, TokenGrid(4, 4, 0, "mean"))
    module.norm1, module.norm3 = norm.double(), SecondLayer().double()
    with torch.no_grad():
        for layer in (module.attn.proj, module.norm3.attn.proj, module.down):
            layer.weight.zero_()
        module.attn.proj.bias.zero_()
        first = module.patches(model.normalize(batch)).flatten(2).transpose(1, 2)
        relevance = [((first + added) * module.head.weight[2] / 16).sum(-1) for added in (0, module.down.bias)]
    for method, expected in (("attnlrp", relevance[0]), ("libragrad", sum(relevance) / 2)):
        maps, _ = METHODS[method](model, batch, 2)
        torch.testing.assert_close(maps, expected.clamp(min=0).unflatten(1, (4, 4)))


@pytest.mark.parametrize("method", LRP)
def test_tokens_in_another_order_are_refused(method):
    module = tiny()
    module.attn = TokensFirst().double()
    for count in (2, 16):  # 16 x 16 x 8 can be read either way
        with pytest.raises(ValueError, match=r"attn\.inner.*is no tensor.*gae"):
            explain(with_grid(module, TokenGrid(4, 4, 0, "mean")), images(count).double(), method=method)


@pytest.mark.parametrize("method", NEWER)
def test_windowed_attention_is_refused_with_a_way_out(method):
    with pytest.raises(ValueError, match="input-gradient"):
        explain(classifier("timm-swin"), images(), method=method)


@pytest.mark.parametrize("method", LRP)
def test_a_model_with_a_module_used_twice_and_in_three_threads_keeps_its_parameters(method):
    model, batch = classifier("timm-vit"), images()
    model.module.blocks[1] = model.module.blocks[0]
    parameters = list(model.module.parameters())
    expected = explain(model, batch, 1, method)
    with ThreadPoolExecutor(3) as pool:
        for actual in pool.map(lambda _: explain(model, batch, 1, method), range(12)):
            torch.testing.assert_close(actual, expected)
    assert all(a is b for a, b in zip(model.module.parameters(), parameters, strict=True))
    assert all(parameter.requires_grad for parameter in parameters)


@pytest.mark.parametrize("method", LRP)
def test_a_dead_neuron_in_half_precision_is_no_nan(method):
    model = classifier("timm-vit")
    with torch.no_grad():
        model.module.blocks[0].mlp.fc1.weight[0] = 0
        model.module.blocks[0].mlp.fc1.bias[0] = 0
    expected = explain(model, images(), 1, method)
    model.module.half()
    torch.testing.assert_close(explain(model, images().half(), 1, method).float(), expected, rtol=0, atol=0.05)


@pytest.mark.parametrize("method", NEWER)
def test_nothing_is_left_behind_by_an_exception(method):
    model, batch = classifier("timm-vit"), images()
    expected = explain(model, batch, 1, method)
    kernel, parameters = F.scaled_dot_product_attention, list(model.module.parameters())

    def stumble(*_: object) -> None:
        raise KeyError("stumbled")

    handle = model.module.blocks[1].norm2.register_forward_hook(stumble)
    with pytest.raises(KeyError, match="stumbled"):
        explain(model, batch, 1, method)
    handle.remove()
    assert F.scaled_dot_product_attention is kernel
    assert not torch.overrides._get_current_function_mode_stack()
    assert all(one is other for one, other in zip(parameters, model.module.parameters(), strict=True))
    assert all(parameter.requires_grad and parameter.grad is None for parameter in parameters)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.module.modules())
    torch.testing.assert_close(explain(model, batch, 1, method), expected)


@pytest.mark.parametrize("method", NEWER)
@pytest.mark.parametrize("name", ["timm-eva02", "torchvision-vit", "hf-clip"])
def test_half_precision_gives_nearly_the_same_maps(method, name):
    model, batch = classifier(name), images(4)
    exact = METHODS[method](model, batch, 2)[0].flatten(1)
    with torch.autocast("cpu", torch.bfloat16):
        rough = METHODS[method](model, batch, 2)[0].flatten(1)
    assert torch.cosine_similarity(rough.float(), exact).min() > 0.95
