"""The seam: what a tap records on real architectures, against explicit-softmax attention differentiated by autograd."""

import re
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from clearhead import NoAttentionError, tap
from tests.cases import CLASSES, MODELS, images, logits

EVERY_MODEL = pytest.mark.parametrize("name", MODELS)
KERNEL = F.scaled_dot_product_attention
NAMES = {
    "timm-vit": ["blocks.0.attn", "blocks.1.attn"],
    "timm-deit-distilled": ["blocks.0.attn", "blocks.1.attn"],
    "timm-dinov2-reg4": ["blocks.0.attn", "blocks.1.attn"],
    "timm-dinov3": ["blocks.0.attn", "blocks.1.attn"],
    "timm-eva02": ["blocks.0.attn", "blocks.1.attn"],
    "timm-beit": ["blocks.0.attn", "blocks.1.attn"],
    "timm-swin": [f"layers.{stage}.blocks.{block}.attn" for stage in (0, 1) for block in (0, 1)],
    "torchvision-vit": [f"encoder.layers.encoder_layer_{layer}.self_attention" for layer in (0, 1)],
}
HF_NAME = r".*layers?\.(\d+)\.(\w*attn|attention).*"
"""Hugging Face renames its modules from release to release; the layer's number and 'attention' stay."""


class Direct(nn.Module):
    """A module that does nothing but call the kernel."""

    def forward(self, *args: Tensor, **options: object) -> Tensor:
        return F.scaled_dot_product_attention(*args, **options)


class Chain(nn.Module):
    """Two layers of attention and whatever stands between them; as small as a model can be."""

    def __init__(self, between: nn.Module | None = None) -> None:
        super().__init__()
        self.first, self.between, self.last = Direct(), between or nn.Identity(), Direct()

    def forward(self, x: Tensor) -> Tensor:
        x = self.between(self.first(x, x, x))
        return self.last(x, x, x)


class Fails(nn.Module):
    """Raises in its forward pass as long as `broken`."""

    broken = True

    def forward(self, x: Tensor) -> Tensor:
        if self.broken:
            raise ArithmeticError("broken layer")
        return x


def tokens(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


@pytest.fixture(autouse=True)
def _nothing_left_behind() -> Iterator[None]:
    fastpath = torch.backends.mha.get_fastpath_enabled()
    yield
    assert F.scaled_dot_product_attention is KERNEL
    assert torch.backends.mha.get_fastpath_enabled() == fastpath


# What is seen


@EVERY_MODEL
def test_every_layer_is_seen_in_call_order_and_the_model_computes_what_it_did(name: str) -> None:
    model = MODELS[name]()
    with torch.no_grad():
        alone = logits(model, images())
    with tap(model) as record:
        tapped = logits(model, images())
    assert tapped.shape == (2, CLASSES)
    torch.testing.assert_close(tapped, alone)
    seen = [layer.name for layer in record]
    if name in NAMES:
        assert seen == NAMES[name]
    else:
        assert [int(actual[1]) for n in seen if (actual := re.fullmatch(HF_NAME, n))] == [0, 1], seen
    assert len(record) == len(record.outputs) == len(seen)
    for layer in record:
        assert layer.module is model.get_submodule(layer.name)
        assert layer.q.shape[-3] == layer.num_heads
        assert layer.input is not None
        assert layer.input.shape[:-1].numel() == layer.q.shape[0] * layer.q.shape[-2]
        assert layer.output.requires_grad
    assert hooks(model) == 0


MODES: dict[str, tuple[Callable[[], AbstractContextManager[object]], bool, float]] = {
    "gradients": (nullcontext, False, 1e-5),
    "no_grad": (torch.no_grad, False, 1e-5),
    "inference_mode": (torch.inference_mode, False, 1e-5),
    "autocast": (lambda: torch.autocast("cpu", torch.bfloat16), False, 3e-2),
    "autocast-no_grad": (lambda: stacked(torch.autocast("cpu", torch.bfloat16), torch.no_grad()), False, 3e-2),
    "train": (nullcontext, True, 1e-5),
    "train-no_grad": (torch.no_grad, True, 1e-5),
}


@contextmanager
def stacked(*managers: AbstractContextManager[object]) -> Iterator[None]:
    outer, inner = managers
    with outer, inner:
        yield


@pytest.mark.parametrize("mode", MODES)
@EVERY_MODEL
def test_recorded_attention_times_values_is_the_output(name: str, mode: str) -> None:
    context, train, tolerance = MODES[mode]
    model = MODELS[name]().train(train)
    with context(), tap(model) as record:
        logits(model, images())
    assert len(record) == (4 if name == "timm-swin" else 2)
    for layer in record:
        attention = layer.attn().float()
        assert (attention >= 0).all()
        torch.testing.assert_close(
            attention.sum(-1), torch.ones(attention.shape[:-1]), atol=max(tolerance, 1e-5), rtol=0
        )
        torch.testing.assert_close(
            attention @ layer.v.float(), layer.output.float(), atol=tolerance, rtol=tolerance, msg=layer.name
        )


def test_several_calls_of_one_module_and_several_forward_passes_are_all_recorded_in_order() -> None:
    model = Chain()
    model.last = model.first  # one module, shared by both layers
    with tap(model) as record:
        model(tokens(1, 2, 3, 4))
        model(tokens(5, 2, 3, 4))
    assert [(layer.name, len(layer.q)) for layer in record] == [("first", 1), ("first", 1), ("first", 5), ("first", 5)]


def test_attention_of_some_rows_is_those_rows_of_the_whole() -> None:
    model, x = Direct(), tokens(2, 3, 7, 4)
    for mask in (None, tokens(7, 7), tokens(2, 1, 1, 7) > 0, tokens(2, 3, 7, 7)):
        with tap(model) as record:
            model(x, x, x, attn_mask=mask)
        (layer,) = record
        for rows in (slice(0, 1), slice(2, 5), slice(6, None)):
            torch.testing.assert_close(layer.attn(rows), layer.attn()[..., rows, :])
            torch.testing.assert_close(layer.attn_grad(x, rows), layer.attn_grad(x)[..., rows, :])


def test_dropout_of_attention_is_not_in_the_record() -> None:
    model, x = Direct(), tokens(1, 2, 5, 4)
    with tap(model) as record:
        model(x, x, x, dropout_p=0.5)
        model(x, x, x)
    torch.testing.assert_close(record[0].attn(), record[1].attn())
    assert not torch.equal(record[0].output, record[1].output)


# Against an explicit softmax


def explicit_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, scale: float | None
) -> tuple[Tensor, Tensor]:
    """Output and attention by the formula, one query head at a time, in the tensors' own precision."""
    if causal:
        mask = torch.tensor([[m <= n for m in range(k.shape[-2])] for n in range(q.shape[-2])])
    bias = torch.zeros(*q.shape[:-1], k.shape[-2], dtype=q.dtype)
    if mask is not None:
        bias = bias + (
            torch.zeros_like(mask, dtype=q.dtype).masked_fill(~mask, -1e300) if mask.dtype == torch.bool else mask
        )
    factor = q.shape[-1] ** -0.5 if scale is None else scale
    shared = q.shape[1] // k.shape[1]  # query heads to a key head
    weights = torch.stack(
        [torch.einsum("bnd,bmd->bnm", q[:, h], k[:, h // shared]) * factor + bias[:, h] for h in range(q.shape[1])], 1
    ).exp()
    attention = weights / weights.sum(-1, keepdim=True)
    values = torch.stack([v[:, h // shared] for h in range(q.shape[1])], 1)
    return torch.einsum("bhnm,bhmd->bhnd", attention, values), attention


@st.composite
def calls(draw: st.DrawFn) -> tuple[tuple[Tensor, Tensor, Tensor], dict[str, object]]:
    """q, k, v in float64 and options of the kernel: masks of every kind, own scale, grouped heads, N unlike M."""
    size = st.integers(1, 5)
    batch, key_heads, group, n, m, d, dv = (draw(size) for _ in range(7))
    heads = key_heads * group
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    options: dict[str, object] = {
        "enable_gqa": group > 1,
        "scale": draw(st.sampled_from([None, 0.0]) | st.floats(0, 3)),
    }
    category = draw(st.sampled_from(["none", "causal", "float", "bool"]))
    shape = draw(st.sampled_from([(n, m), (1, m), (batch, 1, 1, m), (1, heads, n, m), (batch, heads, n, m)]))
    if category == "causal":
        options["is_causal"] = True
        options["scale"] = options["scale"] or None  # torch's causal CPU kernel gives NaN for a scale of 0
    if category == "float":
        options["attn_mask"] = 2 * normal(*shape)
    if category == "bool":
        keep = normal(*shape) > 0
        keep[..., 0] = True  # a row that attends to nothing has no softmax
        options["attn_mask"] = keep
    q, k, v = normal(batch, heads, n, d), normal(batch, key_heads, m, d), normal(batch, key_heads, m, dv)
    return (q, k, v), options


@given(calls())
def test_attention_and_its_gradient_equal_autograd_on_the_formula(
    call: tuple[tuple[Tensor, Tensor, Tensor], dict[str, object]],
) -> None:
    (q, k, v), options = call
    model = Direct()
    with tap(model, needs_grad=True) as record:
        output = model(q, k, v, **options)
    (layer,) = record
    weight = torch.cos(torch.arange(output.numel(), dtype=output.dtype)).view_as(output)
    (grad_output,) = torch.autograd.grad((weight * output.tanh()).sum(), layer.output)

    q = q.requires_grad_()
    expected_output, expected = explicit_attention(
        q, k, v, options.get("attn_mask"), bool(options.get("is_causal")), options["scale"]
    )
    (expected_grad,) = torch.autograd.grad((weight * expected_output.tanh()).sum(), expected)
    torch.testing.assert_close(output, expected_output, check_layout=False)
    torch.testing.assert_close(layer.attn(), expected)
    torch.testing.assert_close(layer.attn_grad(grad_output), expected_grad)


@contextmanager
def its_own_softmax(name: str, model: nn.Module, attention: list[Tensor]) -> Iterator[None]:
    """Run the model on attention written out by its own library, whose softmax goes into `attention`.

    torchvision has none that gradients go through: there the formula above takes the place of the kernel.
    """
    handles = []
    if name.startswith("timm"):
        for module in model.modules():
            if hasattr(module, "fused_attn"):
                module.fused_attn = False
                handles.append(module.attn_drop.register_forward_hook(lambda _m, _i, out: attention.append(out)))
    elif name.startswith("hf"):
        model.set_attn_implementation("eager")
        handles.append(model.register_forward_hook(lambda _m, _i, out: attention.extend(out.attentions)))
        handles.append(
            model.register_forward_pre_hook(
                lambda _m, args, kwargs: (args, {**kwargs, "output_attentions": True}), with_kwargs=True
            )
        )
    else:

        def explicit(q: Tensor, k: Tensor, v: Tensor, mask: None, dropout: float, causal: bool) -> Tensor:
            output, softmax = explicit_attention(q, k, v, mask, causal, None)
            attention.append(softmax)
            return output

        F.scaled_dot_product_attention = explicit
    try:
        yield
    finally:
        F.scaled_dot_product_attention = KERNEL
        for handle in handles:
            handle.remove()


@EVERY_MODEL
def test_attention_and_its_gradient_equal_those_of_the_models_own_softmax(name: str) -> None:
    model, batch = MODELS[name]().double(), images(dtype=torch.float64)
    with tap(model) as record:
        loss = logits(model, batch)[:, 1].sum()
        grads = torch.autograd.grad(loss, record.outputs)

    expected: list[Tensor] = []
    with its_own_softmax(name, model, expected):
        expected_loss = logits(model, batch)[:, 1].sum()
    expected_grads = torch.autograd.grad(expected_loss, expected)
    torch.testing.assert_close(loss, expected_loss, rtol=1e-6, atol=1e-6)
    assert len(expected) == len(record)
    for layer, grad, a, da in zip(record, grads, expected, expected_grads, strict=True):
        # Hugging Face computes its softmax in float32 whatever the model's precision
        tolerance = {"rtol": 1e-5, "atol": 1e-6} if name.startswith("hf") else {}
        torch.testing.assert_close(layer.attn(), a.view_as(layer.attn()), **tolerance)
        torch.testing.assert_close(layer.attn_grad(grad), da.view_as(layer.attn()), **tolerance)
        assert da.abs().max() > 1e-4, "the comparison means nothing if the gradient is nil"


# Scaling heads


HEAD_COLUMNS = {
    "timm-vit": "blocks.{}.attn.proj",
    "timm-dinov2-reg4": "blocks.{}.attn.proj",
    "torchvision-vit": "encoder.layers.encoder_layer_{}.self_attention.out_proj",
    "hf-clip": "vision_model.encoder.layers.{}.self_attn.out_proj",
}


@pytest.mark.parametrize("name", HEAD_COLUMNS)
@pytest.mark.parametrize("by", ["name", "position"])
def test_scaling_heads_equals_scaling_their_columns_of_the_output_projection(name: str, by: str) -> None:
    model, batch = MODELS[name](), images()
    scales = [torch.tensor([1.0, 0.0, 0.5, 1.0]), torch.tensor([0.0, 1.0, 1.0, -2.0])]
    with tap(model) as record, torch.no_grad():
        unscaled = logits(model, batch)
    with tap(model, heads={record[i].name if by == "name" else i: scales[i] for i in (0, 1)}) as record:
        scaled = logits(model, batch)
    assert not torch.allclose(unscaled, scaled, atol=1e-2)
    for layer in record:  # what is recorded is the attention's own
        torch.testing.assert_close(layer.output, layer.attn() @ layer.v)
    with torch.no_grad():
        for i, scale in enumerate(scales):
            model.get_submodule(HEAD_COLUMNS[name].format(i)).weight *= scale.repeat_interleave(8)
        torch.testing.assert_close(scaled, logits(model, batch))


@pytest.mark.parametrize("name", ["timm-vit", "timm-beit", "torchvision-vit", "hf-vit"])
def test_one_scale_an_image_equals_running_the_images_one_by_one(name: str) -> None:
    model, batch = MODELS[name](), images(3)
    scale = torch.tensor([[1.0, 1, 1, 1], [0, 1, 0, 1], [1, 0.5, 0, 0]])
    with torch.no_grad():
        with tap(model, heads={1: scale}):
            together = logits(model, batch)
        for image, own, expected in zip(batch, scale, together, strict=True):
            with tap(model, heads={1: own}):
                torch.testing.assert_close(logits(model, image[None])[0], expected)


def test_gradients_reach_the_scales_and_pass_through_them() -> None:
    model, x = Chain(), tokens(2, 3, 5, 4, dtype=torch.float64)
    scale = torch.tensor([0.7, -0.2, 1.3], dtype=torch.float64, requires_grad=True)

    def run(scale: Tensor) -> Tensor:
        with tap(model, heads={"first": scale}):
            return model(x)

    assert torch.autograd.gradcheck(run, scale)


def test_scales_take_the_precision_and_device_of_the_output() -> None:
    model = MODELS["timm-vit"]().to(torch.bfloat16)
    with tap(model, heads={0: torch.ones(4, dtype=torch.float64)}) as record:
        assert model(images(dtype=torch.bfloat16)).dtype == torch.bfloat16
    assert record[0].output.dtype == torch.bfloat16


@pytest.mark.parametrize("shape", [(3,), (1,), (), (4, 2), (5, 4), (2, 4, 1, 1)])
def test_a_scale_of_the_wrong_shape_is_refused_with_the_right_ones(shape: tuple[int, ...]) -> None:
    model = MODELS["timm-vit"]()
    message = rf"'blocks\.1\.attn' have shape {re.escape(str(shape))}; expected \(4,\) .* or \(2, 4\)"
    with pytest.raises(ValueError, match=message), tap(model, heads={"blocks.1.attn": torch.ones(shape)}):
        model(images())
    assert hooks(model) == 0


@pytest.mark.parametrize("key", ["blocks.2.attn", "blocks.0", 2, -1])
def test_a_scale_that_belongs_to_no_call_is_refused(key: str | int) -> None:
    model = MODELS["timm-vit"]()
    message = (
        rf"no attention call belongs to {key!r}; pass positions from 0 to 1, or .* blocks\.0\.attn, blocks\.1\.attn"
    )
    with pytest.raises(ValueError, match=message), tap(model, heads={0: torch.ones(4), key: torch.ones(4)}):
        model(images())


# Where to differentiate


@EVERY_MODEL
def test_a_frozen_model_is_differentiated_as_if_it_were_not(name: str) -> None:
    model, batch = MODELS[name](), images()
    with tap(model) as record:
        expected = torch.autograd.grad(logits(model, batch)[:, 0].sum(), record.outputs)
    model.requires_grad_(False)
    with tap(model) as record:
        assert not logits(model, batch).requires_grad
    with tap(model, needs_grad=True) as record:
        gradients = torch.autograd.grad(logits(model, batch)[:, 0].sum(), record.outputs)
    for gradient, same in zip(gradients, expected, strict=True):
        torch.testing.assert_close(gradient, same)


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_needs_grad_asks_for_nothing_where_gradients_are_off(
    context: Callable[[], AbstractContextManager[object]],
) -> None:
    model = MODELS["timm-vit"]()
    with context(), tap(model, needs_grad=True) as record:
        model(images())
    assert not any(output.requires_grad for output in record.outputs)


def test_checkpointed_layers_give_the_same_gradients() -> None:
    model, batch = MODELS["timm-vit"]().train(), images()
    gradients = []
    for checkpointing in (False, True):
        model.set_grad_checkpointing(checkpointing)
        with tap(model) as record:
            loss = model(batch)[:, 0].sum()
        gradients.append(torch.autograd.grad(loss, record.outputs))
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(checkpointed, plain)


@pytest.mark.parametrize("key", ["blocks.0.attn", 0])
def test_layers_that_run_anew_in_the_backward_pass_are_edited_again_and_seen_once(key: str | int) -> None:
    scale, gradients = torch.tensor([0.0, 2.0, 1.0, 1.0]), []
    for checkpointing in (False, True):
        model = MODELS["timm-vit"]()
        model.set_grad_checkpointing(checkpointing)
        with tap(model, heads={key: scale}) as record:
            model(images())[:, 0].sum().backward()
        assert [layer.name for layer in record] == NAMES["timm-vit"]
        gradients.append([p.grad for p in model.parameters()])
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(checkpointed, plain)


def test_attention_is_made_in_float32_where_all_is_half_precision() -> None:
    model, batch = MODELS["timm-vit"](), images()
    with torch.no_grad():
        for layer in model.blocks:
            layer.attn.qkv.weight *= 0.1  # nearly uniform attention
    with tap(model.to(torch.bfloat16)) as record, torch.no_grad():
        model(batch.to(torch.bfloat16))
    for layer in record:
        q, k = layer.q.double(), layer.k.double()
        for context in (nullcontext(), torch.autocast("cpu", torch.bfloat16)):
            with context:
                actual = layer.attn()
            assert actual.dtype == torch.float32
            expected = (q @ k.transpose(-2, -1) * layer.scale).softmax(-1)
            torch.testing.assert_close(actual.double(), expected, rtol=1e-5, atol=0)


# Taps within taps, models within models


def test_two_taps_on_one_model_see_the_same_calls() -> None:
    model = MODELS["timm-vit"]()
    with tap(model) as outer, tap(model) as inner:
        model(images())
    assert [layer.name for layer in outer] == [layer.name for layer in inner] == NAMES["timm-vit"]
    assert all(a.output is b.output for a, b in zip(outer, inner, strict=True))


def test_a_tap_inside_a_tap_sees_what_runs_while_it_is_open_and_the_outer_one_goes_on() -> None:
    model = MODELS["timm-vit"]()
    with torch.no_grad(), tap(model) as outer:
        first = model(images())
        with tap(model, heads={0: torch.zeros(4)}) as inner:
            second = model(images())
        third = model(images())
    assert (len(outer), len(inner)) == (6, 2)
    torch.testing.assert_close(first, third)
    assert not torch.allclose(first, second, atol=1e-2)


def test_a_tap_that_closes_unused_does_not_take_the_outer_one_with_it() -> None:
    model = MODELS["timm-vit"]()
    with tap(model) as outer:
        with tap(model) as inner:
            pass
        model(images())
    assert (len(outer), len(inner)) == (2, 0)


def test_head_scales_of_nested_taps_multiply() -> None:
    model, x = Chain(), tokens(1, 2, 3, 4)
    with (
        tap(model, heads={0: torch.tensor([2.0, 3.0])}) as outer,
        tap(model, heads={0: torch.tensor([5.0, 7.0])}) as inner,
    ):
        model(x)
    assert outer[0].output is inner[0].output
    torch.testing.assert_close(inner[1].q, inner[0].output * torch.tensor([10.0, 21.0])[:, None, None])


def test_gradients_at_the_attention_hold_what_is_done_to_its_heads() -> None:
    model, x, scale = Chain(), tokens(1, 2, 3, 4), torch.tensor([2.0, 0.0])
    with tap(model, heads={"last": scale}), tap(model, needs_grad=True) as record:
        loss = model(x).square().sum()
    (actual,) = torch.autograd.grad(loss, record[1].output)
    torch.testing.assert_close(actual, 2 * record[1].output * (scale**2)[:, None, None])


def test_a_tap_ignores_models_that_are_not_its_own() -> None:
    mine, other = MODELS["timm-vit"](), MODELS["hf-vit"]()
    with tap(mine) as record:
        logits(other, images())
        assert len(record) == 0
        mine(images())
        logits(other, images())
    assert [layer.name for layer in record] == NAMES["timm-vit"]


def test_two_taps_on_two_models_keep_them_apart_whatever_the_order() -> None:
    a, b = MODELS["timm-vit"](), MODELS["torchvision-vit"]()
    with tap(a) as record_a, tap(b) as record_b:
        b(images(1))
        a(images(2))
        b(images(3))
    assert [(layer.name, len(layer.q)) for layer in record_a] == [(n, 2) for n in NAMES["timm-vit"]]
    assert [(layer.name, len(layer.q)) for layer in record_b] == [
        (n, i) for i in (1, 3) for n in NAMES["torchvision-vit"]
    ]


def test_a_model_within_a_model_is_named_from_where_the_tap_stands() -> None:
    inside = MODELS["timm-vit"]()
    around = nn.Sequential(nn.Identity(), inside)
    with tap(around) as whole, tap(inside) as part, tap(inside.blocks[1].attn) as layer:
        around(images())
    assert [a.name for a in whole] == [f"1.{name}" for name in NAMES["timm-vit"]]
    assert [a.name for a in part] == NAMES["timm-vit"]
    assert [a.name for a in layer] == [""]


def test_threads_record_their_own_calls_only() -> None:
    shared = MODELS["timm-vit"]()
    models = [shared, shared, MODELS["timm-beit"]()]
    open_everywhere, records, errors = threading.Barrier(4), {}, []

    def work(i: int) -> None:
        try:
            with torch.no_grad(), tap(models[i]) as record:
                open_everywhere.wait(30)
                for _ in range(5):
                    models[i](images(i + 1))
                open_everywhere.wait(30)
            records[i] = [(layer.name, len(layer.q)) for layer in record]
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    open_everywhere.wait(30)
    assert F.scaled_dot_product_attention is not KERNEL
    shared(images(7))  # this thread has no tap
    open_everywhere.wait(30)
    for thread in threads:
        thread.join(30)
    assert not errors
    assert records == {i: [(name, i + 1) for name in NAMES["timm-vit"]] * 5 for i in range(3)}
    assert hooks(shared) == 0


def test_another_thread_in_the_middle_of_the_model_is_not_taken_for_this_one() -> None:
    arrived, go_on = threading.Event(), threading.Event()

    class Waits(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if threading.current_thread() is other:
                arrived.set()
                assert go_on.wait(30)
            return x

    model, x = Chain(Waits()), tokens(1, 2, 3, 4)
    other = threading.Thread(target=model, args=(x,))
    with tap(model) as record:
        other.start()
        assert arrived.wait(30)
        F.scaled_dot_product_attention(x, x, x)  # not the model's: here it does not run
        model(x)
        go_on.set()
        other.join(30)
        F.scaled_dot_product_attention(x, x, x)
    assert [layer.name for layer in record] == ["first", "last"]


# Nothing is left behind


@pytest.mark.parametrize("fastpath", [True, False])
@pytest.mark.parametrize("where", ["forward", "block"])
def test_after_an_exception_all_is_as_before(where: str, fastpath: bool) -> None:
    model = Chain(Fails())
    model.between.broken = where == "forward"
    model.register_forward_hook(lambda _m, _i, _o: None)  # somebody else's, must stay

    def run_and_fail() -> None:
        assert not torch.backends.mha.get_fastpath_enabled()
        assert F.scaled_dot_product_attention is not KERNEL
        model(tokens(1, 2, 3, 4))
        raise ArithmeticError("broken block")

    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(fastpath)
    try:
        with pytest.raises(ArithmeticError), tap(model):
            run_and_fail()
        assert torch.backends.mha.get_fastpath_enabled() == fastpath
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
    assert hooks(model) == 1
    assert F.scaled_dot_product_attention is KERNEL


def test_a_forward_pass_that_failed_does_not_confuse_the_next() -> None:
    model = nn.Sequential(Chain(Fails()))
    with tap(model) as record:
        with pytest.raises(ArithmeticError):
            model(tokens(1, 2, 3, 4))
        F.scaled_dot_product_attention(*[tokens(1, 2, 3, 4)] * 3)  # no module of the model is running
        model[0].between.broken = False
        model(tokens(1, 2, 3, 4))
    assert [layer.name for layer in record] == ["0.first", "0.first", "0.last"]


def test_another_hook_that_fails_first_does_not_misname_what_follows() -> None:
    class Recovers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Direct()

        def forward(self, x: Tensor) -> Tensor:
            with pytest.raises(ArithmeticError):
                self.inner(x, x, x)
            return F.scaled_dot_product_attention(x, x, x)

    def fail(_module: nn.Module, _args: object) -> None:
        raise ArithmeticError

    model = Recovers()
    model.inner.register_forward_pre_hook(fail)
    with tap(model) as record:
        model(tokens(1, 2, 3, 4))
    assert [layer.name for layer in record] == [""]


def test_an_inner_tap_that_fails_leaves_the_outer_one_at_work() -> None:
    model = MODELS["timm-vit"]()
    with tap(model) as outer:
        with pytest.raises(ValueError, match="heads"), tap(model, heads={0: torch.ones(3)}):
            model(images())
        model(images())
    assert [layer.name for layer in outer][-2:] == NAMES["timm-vit"]


# Attention that cannot be seen


def unfused(model: nn.Module) -> nn.Module:
    """timm attention that multiplies q, k and v by itself."""
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = False
    return model


def test_a_model_with_its_own_softmax_is_named_and_told_what_to_do() -> None:
    model = unfused(MODELS["timm-vit"]())
    advice = (
        r"in VisionTransformer\. .*blocks\.0\.attn \(Attention\), blocks\.1\.attn.*set_fused_attn\(True.*sdpa.*by hand"
    )
    with pytest.raises(NoAttentionError, match=advice), tap(model):
        model(images())

    model = MODELS["hf-vit"]()
    model.set_attn_implementation("eager")
    with pytest.raises(NoAttentionError, match="attn_implementation='sdpa'"), tap(model):
        model(images())


def test_attention_written_by_hand_is_found_by_the_name_of_its_module() -> None:
    class Mixer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attn = nn.Identity()

        def forward(self, x: Tensor) -> Tensor:
            return self.attn(x)

    with pytest.raises(NoAttentionError, match=r"look like attention: attn \(Identity\)"), tap(model := Mixer()):
        model(images())


def test_a_cnn_is_told_from_a_transformer() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten())
    with (
        pytest.raises(NoAttentionError, match="in Sequential, and no module looks like attention: is it a CNN"),
        tap(model),
    ):
        model(images())


def test_layers_hidden_among_layers_that_are_seen_are_an_error() -> None:
    model = MODELS["timm-vit"]()
    unfused(model.blocks[0])
    message = r"only those of blocks\.1\.attn\. .* attention: blocks\.0\.attn \(Attention\)\. They"
    with pytest.raises(NoAttentionError, match=message), tap(model):
        model(images())


def test_what_surrounds_or_serves_a_layer_that_is_seen_is_not_hidden() -> None:
    class AttentionBias(nn.Identity):
        """Part of the module that calls."""

    class SelfAttention(Direct):
        def __init__(self) -> None:
            super().__init__()
            self.bias = AttentionBias()

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(self.bias(x), x, x)

    class AttentionLayer(nn.Sequential):
        """Around the module that calls."""

    model = nn.Sequential(AttentionLayer(SelfAttention()), AttentionLayer(SelfAttention()))
    with tap(model) as record:
        model(tokens(1, 2, 3, 4))
    assert [layer.name for layer in record] == ["0.0", "1.0"]


def test_attention_that_pools_the_tokens_after_the_last_layer_may_be_hidden() -> None:
    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = Direct()
            self.pool = nn.MultiheadAttention(4, 1, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            x = self.layer(x, x, x)[:, 0]
            return self.pool(x[:, :1], x, x)[0]  # returns its weights too, so it does not call the kernel

    model = Pooled()
    with tap(model) as record:
        model(tokens(1, 2, 3, 4))
        model(tokens(1, 2, 3, 4))
    assert [layer.name for layer in record] == ["layer", "layer"]


def test_a_block_in_which_the_model_did_not_run_is_no_error() -> None:
    with tap(unfused(MODELS["timm-vit"]()), heads={0: torch.ones(4)}) as record:
        pass
    assert len(record) == 0


def test_compiled_models_are_refused() -> None:
    compiled_in_place = MODELS["timm-vit"]()
    compiled_in_place.compile()
    compiled_block = MODELS["timm-vit"]()
    compiled_block.blocks[1] = torch.compile(compiled_block.blocks[1])
    traced = torch.jit.trace(Chain(), tokens(1, 2, 3, 4))
    for model in (torch.compile(MODELS["timm-vit"]()), compiled_in_place, compiled_block, traced):
        with pytest.raises(RuntimeError, match=r"compiled by torch\.compile or torch\.jit.*_orig_mod"), tap(model):
            pass
        assert isinstance(model, torch.jit.ScriptModule) or hooks(model) == 0
    with tap(torch.compile(model := MODELS["timm-vit"]())._orig_mod) as record:
        model(images())
    assert len(record) == 2
