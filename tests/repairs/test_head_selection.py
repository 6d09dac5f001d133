"""Head selection against brute force, its estimates, and its errors."""

import itertools
import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from clearhead.attention_tap import tap
from clearhead.data.dataset import ImageIndex
from clearhead.data.image_io import DataError
from clearhead.data.loading import ImageDataset, loader
from clearhead.errors import ClearheadError
from clearhead.heads.fold import fold_heads
from clearhead.heads.head_masking import HeadMask, HeadMaskRunner, attention_layers
from clearhead.heads.prune import prune_heads
from clearhead.models import Classifier
from clearhead.repairs import head_search, head_selection
from clearhead.repairs.head_search import Candidates, HeadSearch, Objective, Search
from clearhead.repairs.head_selection import _draw_balanced, _optimism, select_heads
from tests import cases


def correct_images(model: Classifier, data: ImageIndex, scales: dict[str | int, torch.Tensor]) -> np.ndarray:
    batch = next(iter(loader(ImageDataset(data, model.preprocess), len(data.samples), 0)))
    with torch.no_grad(), tap(model.module, heads=scales):
        return (model(batch["image"]).argmax(-1) == batch["label"]).numpy()


def kept_scale(keep: tuple[int, ...]) -> torch.Tensor:
    mask = torch.tensor(keep, dtype=torch.float32)
    return mask * len(mask) / mask.sum()


@pytest.mark.parametrize("name", ["timm-vit", "hf-vit", "torchvision-vit", "timm-dinov2-reg4"])
def test_exhaustive_finds_the_best_of_all_subsets(name: str, folder: ImageIndex) -> None:
    model = cases.classifier(name)
    last = attention_layers(model, torch.randn(1, 3, 32, 32))[-1].name
    subsets = [s for s in itertools.product((0, 1), repeat=4) if any(s)]
    scores = {s: correct_images(model, folder, {last: kept_scale(s)}).mean() for s in subsets}
    chosen, selection = select_heads(model, folder, objective="accuracy", batch_size=6)
    assert (selection.tried, selection.images) == (15, 20)
    assert selection.before == pytest.approx(scores[1, 1, 1, 1])
    assert selection.after == pytest.approx(max(scores.values()))
    keep = tuple(map(int, selection.kept_heads[last]))
    assert scores[keep] == max(scores.values())
    assert sum(keep) == max(sum(s) for s, score in scores.items() if score == scores[keep])
    assert (correct_images(chosen, folder, {}) == correct_images(model, folder, {last: kept_scale(keep)})).all()
    assert selection.optimism is not None
    assert 0 <= selection.optimism < 0.5


def test_worst_group_is_the_objective_with_groups(folder: ImageIndex) -> None:
    model = cases.classifier("timm-vit")
    samples = [replace(s, groups={"side": "left" if i % 2 else "right"}) for i, s in enumerate(folder.samples)]
    data = replace(folder, samples=tuple(samples))
    _, selection = select_heads(model, data)
    assert selection.objective == "worst-group"
    group = np.array([f"{s.label}{s.groups['side']}" for s in data.samples])

    def worst(keep: tuple[int, ...]) -> float:
        correct = correct_images(model, data, {"blocks.1.attn": kept_scale(keep)})
        return min(correct[group == g].mean() for g in np.unique(group))

    best = max(worst(s) for s in itertools.product((0, 1), repeat=4) if any(s))
    assert selection.after == pytest.approx(best)
    with pytest.raises(DataError, match="worst-group needs groups"):
        select_heads(
            model, replace(folder, samples=tuple(replace(s, groups={}) for s in samples)), objective="worst-group"
        )


def test_greedy_removes_the_best_head_at_each_step(folder: ImageIndex) -> None:
    model = cases.classifier("hf-vit")
    names = [layer.name for layer in attention_layers(model, torch.randn(1, 3, 32, 32))]
    current = dict.fromkeys(names, (1, 1, 1, 1))
    value = correct_images(model, folder, {}).mean()
    while True:
        steps = [
            current | {name: tuple(k and i != h for i, k in enumerate(keep))}
            for name, keep in current.items()
            for h in range(4)
            if keep[h] and sum(keep) > 1
        ]
        scores = [correct_images(model, folder, {n: kept_scale(k) for n, k in step.items()}).mean() for step in steps]
        if max(scores) <= value:
            break
        value, current = max(scores), steps[int(np.argmax(scores))]
    _, selection = select_heads(model, folder, search="greedy", objective="accuracy")
    assert selection.after == pytest.approx(value)
    assert selection.kept_heads == {name: [bool(k) for k in keep] for name, keep in current.items()}


def test_importance_removes_the_least_important_first(folder: ImageIndex) -> None:
    model = cases.classifier("timm-vit")
    chosen, selection = select_heads(model, folder, search="importance", objective="accuracy")
    assert selection.tried == 7  # all heads, and six of the eight removed, one a layer stays
    assert selection.after >= selection.before
    assert correct_images(chosen, folder, {}).mean() == pytest.approx(selection.after)


def test_relevance_mass_is_the_objective_with_masks_only(folder: ImageIndex) -> None:
    from clearhead.prediction.predict import relevance_masses

    model = cases.classifier("timm-vit")
    data = replace(folder, samples=tuple(replace(s, groups={}) for s in folder.samples))
    chosen, selection = select_heads(model, data)
    assert selection.objective == "relevance-mass"
    assert selection.optimism is None
    assert selection.before == pytest.approx(np.nanmean(relevance_masses(model, data)), abs=1e-5)
    assert selection.after == pytest.approx(np.nanmean(relevance_masses(chosen, data)), abs=1e-5)
    assert selection.after > selection.before


def test_mean_ablation_replaces_a_head_by_its_mean(folder: ImageIndex) -> None:
    model = cases.classifier("timm-vit")
    chosen, selection = select_heads(model, folder, objective="accuracy", ablation="mean")
    batch = next(iter(loader(ImageDataset(folder, model.preprocess), 20, 0)))
    with torch.no_grad(), tap(model.module) as record:
        model(batch["image"])
    fill = record[-1].output.mean((0, 2))
    keep = torch.tensor(selection.kept_heads["blocks.1.attn"], dtype=torch.float32)[:, None, None]
    with torch.no_grad(), tap(model.module, heads={-1 % 2: lambda o: o * keep + (1 - keep) * fill[:, None]}):
        expected = model(batch["image"])
    torch.testing.assert_close(chosen(batch["image"]).detach(), expected, rtol=1e-4, atol=1e-4)


def test_pruning_removes_heads_from_the_weights(folder: ImageIndex, tmp_path) -> None:
    import transformers

    model = replace(cases.classifier("hf-vit"), library="hf")
    _, selection = select_heads(model, folder, search="importance", objective="accuracy", uniform=True)
    assert selection.tried == 4  # 0 to 3 heads fewer in each layer
    assert len({sum(keep) for keep in selection.kept_heads.values()}) == 1
    layers = {name: [True, False, True, False] for name in selection.kept_heads}
    heads = {name: HeadMask(kept_scale((1, 0, 1, 0))[None]) for name in layers}
    images = torch.randn(2, 3, 32, 32)
    folded = fold_heads(model, heads, images)
    small = prune_heads(folded, layers)
    torch.testing.assert_close(small(images), folded(images), rtol=1e-5, atol=1e-5)
    assert sum(p.numel() for p in small.module.parameters()) < sum(p.numel() for p in folded.module.parameters())
    small.module.save_pretrained(tmp_path)
    plain = transformers.AutoModelForImageClassification.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(plain(model.normalize(images)).logits, folded(images), rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="every layer must keep as many heads, got 1, 2"):
        prune_heads(folded, layers | {next(iter(layers)): [True, False, False, False]})
    some = prune_heads(folded, {name: [True] * 4 for name in list(layers)[:1]})  # the other layers keep theirs
    torch.testing.assert_close(some(images), folded(images), rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match=r"no attention layer is called blocks\.9; choose from "):
        prune_heads(folded, layers | {"blocks.9": [True] * 4})
    folded.module.requires_grad_(False)
    assert not any(parameter.requires_grad for parameter in prune_heads(folded, layers).module.parameters())
    with pytest.raises(ValueError, match="cannot express removed heads"):
        prune_heads(cases.classifier("timm-vit"), {})
    with pytest.raises(ValueError, match="only the search importance"):
        select_heads(model, folder, objective="accuracy", uniform=True)


def test_optimism_equals_the_loss_on_other_images() -> None:
    """31 candidates that are correct by chance: the excess of the best on the images that selected it is known."""
    rng, result, true = np.random.default_rng(0), [], []
    subsets = [{"layer": tuple(bool(i >> h & 1) for h in range(5))} for i in range(1, 32)]
    for trial in range(30):
        correct = rng.random((31, 100)) < 0.5
        candidates = Candidates(subsets, correct.mean(1), correct)
        result.append(_optimism(candidates, [np.arange(100)], trial))
        true.append(correct.mean(1).max() - 0.5)
    assert np.mean(result) == pytest.approx(np.mean(true), rel=0.2)


@pytest.mark.parametrize(
    ("search", "objective", "most"),
    [("exhaustive", "accuracy", 15), ("greedy", "accuracy", 34), ("importance", "relevance-mass", 7)],
)
def test_a_search_logs_an_estimate(
    search: Search, objective: Objective, most: int, folder: ImageIndex, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="clearhead")
    model = cases.classifier("timm-vit")
    _, selection = select_heads(model, folder, search=search, objective=objective, batch_size=8)
    (line,) = caplog.messages
    expected = f"head search: at most {most} candidates x 20 images, estimated at most [0-9]+ s; --limit N "
    assert re.match(expected, line)
    assert 1 < selection.tried <= most


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make each batch of more than two images of a search take one second, and all else no time."""
    clock, logits = SimpleNamespace(now=0.0), HeadMaskRunner.logits

    def slow_logits(self: HeadMaskRunner, images: torch.Tensor, masks: HeadMask) -> torch.Tensor:
        clock.now += len(images) > 2
        return logits(self, images, masks)

    monkeypatch.setattr(HeadMaskRunner, "logits", slow_logits)
    for module in (head_search, head_selection):
        monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: clock.now))


@pytest.mark.usefixtures("slow")
def test_a_search_over_budget_uses_fewer_images(folder: ImageIndex, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="clearhead")
    many = replace(folder, samples=tuple(replace(s, file=f"{i}-{s.file}") for i in range(3) for s in folder.samples))
    model = cases.classifier("timm-vit")
    _, selection = select_heads(model, many, objective="accuracy", batch_size=10, budget=5)
    # after the first of six batches 4 s are left: 80% of the 40 images that they are enough for
    assert (selection.images, selection.images_without_budget) == (32, 60)
    assert "head search: the budget allows 32 of 60 images" in caplog.messages


@pytest.mark.usefixtures("slow")
def test_a_search_whose_budget_is_too_small_raises(folder: ImageIndex) -> None:
    model = cases.classifier("timm-vit")
    with pytest.raises(ClearheadError, match=r"about 5 s on 20 images; 2 s .* enough for 6, and 10 are needed"):
        select_heads(model, folder, objective="accuracy", batch_size=4, budget=3)
    with pytest.raises(ClearheadError, match="budget: got 0; a number of seconds above 0"):
        select_heads(model, folder, budget=0)


def test_a_greedy_search_over_budget_ends_with_the_best_so_far(
    folder: ImageIndex, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="clearhead")
    require_time, calls = HeadSearch._require_time, []

    def second_step_is_late(search: HeadSearch, seconds: float, passed: float) -> None:
        calls.append(1)
        require_time(search, 1e9 if len(calls) == 3 else 0.0, passed)

    monkeypatch.setattr(HeadSearch, "_require_time", second_step_is_late)
    options = {"search": "greedy", "objective": "accuracy", "batch_size": 20}
    model = cases.classifier("timm-vit")
    _, selection = select_heads(model, folder, budget=1e6, **options)  # type: ignore[arg-type]
    assert selection.tried == 1 + 8
    assert sum(map(sum, selection.kept_heads.values())) in (7, 8)
    assert "head search: the budget ends the search at 7 of 8 heads" in caplog.messages


def test_limit_draws_as_many_images_per_class_or_group(folder: ImageIndex) -> None:
    model = cases.classifier("timm-vit")
    _, selection = select_heads(model, folder, objective="accuracy", limit=10)
    assert (selection.images, selection.smallest) == (10, 10)
    _, all_images = select_heads(model, folder, objective="accuracy", limit=100)
    assert all_images == select_heads(model, folder, objective="accuracy")[1]
    _, masked = select_heads(model, folder, objective="relevance-mass", limit=17)
    assert masked.images == 15  # those with a mask
    samples = [replace(s, groups={"side": "left" if i % 4 else "right"}) for i, s in enumerate(folder.samples)]
    _, grouped = select_heads(model, replace(folder, samples=tuple(samples)), limit=18)
    assert (grouped.objective, grouped.images, grouped.smallest) == ("worst-group", 18, 1)
    strata = np.array(list("aaaaaaaabbbc"))
    drawn = _draw_balanced(strata, 7, seed=0)
    assert strata[drawn].tolist() == list("aaabbbc")
    assert drawn.tolist() == sorted(set(drawn.tolist()))
    assert (_draw_balanced(strata, 7, seed=0) == drawn).all()
    with pytest.raises(ValueError, match="limit: at least 1 image is needed, got 0"):
        select_heads(model, folder, limit=0)


def test_invalid_arguments_raise(folder: ImageIndex) -> None:
    model = cases.classifier("timm-vit")
    with pytest.raises(ValueError, match="one layer at a time, got 2"):
        select_heads(model, folder, layers="all")
    with pytest.raises(ValueError, match="layers: 5 does not exist"):
        select_heads(model, folder, layers=[5])
    bare = replace(folder, samples=tuple(replace(s, mask=None) for s in folder.samples))
    with pytest.raises(DataError, match="relevance-mass needs images with masks"):
        select_heads(model, bare, objective="relevance-mass")
