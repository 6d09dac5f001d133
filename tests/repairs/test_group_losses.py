"""The group losses compared with explicit sums, and in the training loop."""

import math
import socket
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.multiprocessing
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from clearhead.data.dataset import ImageIndex, Sample, group_labels
from clearhead.data.folder import read_folder
from clearhead.data.image_io import DataError
from clearhead.models import Classifier, Preprocessing, from_module
from clearhead.repairs.group_losses import GroupDRO, Reweight
from clearhead.training.loop import TrainConfig, cross_entropy, fit
from tests.training.interrupt import interrupted_after

NAMES = tuple(f"class={c}, ground={g}" for c in "ab" for g in ("land", "water"))


def samples(counts: dict[tuple[int, str], int]) -> ImageIndex:
    """An index without files; `counts` images of each (class, ground)."""
    listed = [
        Sample(f"{label}/{ground}{i}.png", Path(), label, None, {"ground": ground} if ground else {})
        for (label, ground), count in counts.items()
        for i in range(count)
    ]
    return ImageIndex(Path("nowhere"), ("a", "b"), tuple(listed), ())


UNEVEN = samples({(0, "land"): 6, (0, "water"): 2, (1, "land"): 1, (1, "water"): 3})


def model() -> Classifier:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Flatten(), nn.Linear(192, 8), nn.ReLU(), nn.Linear(8, 2))
    half = (0.5, 0.5, 0.5)
    return from_module(module, preprocess=Preprocessing((8, 8), (8, 8), half, half), classes=["a", "b"])


def batch(groups: list[int], seed: int = 0) -> dict:
    generator = torch.Generator().manual_seed(seed)
    return {
        "image": torch.randn(len(groups), 3, 8, 8, generator=generator),
        "label": torch.tensor(groups) // 2,
        "group": [NAMES[g] for g in groups],
    }


def losses(net: Classifier, data: dict) -> list[float]:
    """Compute -log p of each label, image by image."""
    with torch.no_grad():
        rows = [net(image[None])[0].double() for image in data["image"]]
    return [-math.log(row.softmax(0)[label].item()) for row, label in zip(rows, data["label"].tolist(), strict=True)]


def test_reweight_is_the_weighted_mean():
    loss = Reweight.from_images(UNEVEN, ["ground"])
    assert loss.weights == pytest.approx(dict(zip(NAMES, (12 / 24, 12 / 8, 12 / 4, 12 / 12), strict=True)))
    net, data = model(), batch([0, 0, 1, 2, 3])
    parts = loss(net, data)
    each = losses(net, data)
    expected = (0.5 * each[0] + 0.5 * each[1] + 1.5 * each[2] + 3 * each[3] + each[4]) / 5
    assert parts["loss"].item() == pytest.approx(expected, rel=1e-5)
    assert torch.equal(parts["logits"], net(data["image"]))


@given(st.lists(st.integers(1, 9), min_size=4, max_size=4))
def test_reweighted_groups_have_equal_totals_and_the_mean_weight_is_1(counts):
    folder = samples(dict(zip([(0, "land"), (0, "water"), (1, "land"), (1, "water")], counts, strict=True)))
    weights, groups = Reweight.from_images(folder, None).weights, group_labels(folder, None)
    assert np.mean([weights[name] for name in groups]) == pytest.approx(1)
    totals = [weights[name] * count for name, count in Counter(groups).items()]
    assert totals == pytest.approx([totals[0]] * 4)


def test_without_columns_the_groups_are_the_classes():
    folder = samples({(0, ""): 3, (1, ""): 1})
    assert Reweight.from_images(folder, None).weights == pytest.approx({"class=a": 2 / 3, "class=b": 2})
    assert GroupDRO.from_images(folder, None).groups == ("class=a", "class=b")


def test_group_dro_follows_the_papers_algorithm():
    net, loss = model(), GroupDRO.from_images(UNEVEN, ["ground"], step_size=0.5)
    net.module.train()
    q = [0.25] * 4
    for step, groups in enumerate([[0, 0, 0, 1, 3], [0, 2], [1, 1, 1], [0, 1, 2, 3]]):
        data = batch(groups, seed=step)
        each = losses(net, data)
        means = {g: np.mean([x for x, h in zip(each, groups, strict=True) if h == g]) for g in set(groups)}
        q = [q[g] * math.exp(0.5 * means.get(g, 0)) for g in range(4)]
        q = [value / sum(q) for value in q]
        value = loss(net, data)["loss"]
        assert loss.q.tolist() == pytest.approx(q, rel=1e-4)
        assert value.item() == pytest.approx(sum(q[g] * mean for g, mean in means.items()), rel=1e-4)
    value.backward()  # through the losses, not through q
    assert not loss.q.requires_grad


def test_group_dro_does_not_change_q_in_eval_mode():
    net, loss, data = model(), GroupDRO.from_images(UNEVEN, None, step_size=0.5), batch([0, 1, 1, 2])
    net.module.train()
    loss(net, data)
    q = loss.q.tolist()
    net.module.eval()
    value = loss(net, data)["loss"].item()
    assert loss.q.tolist() == q
    each = losses(net, data)
    assert value == pytest.approx(q[0] * each[0] + q[1] * (each[1] + each[2]) / 2 + q[2] * each[3], rel=1e-5)


def test_a_large_step_gives_all_weight_to_the_worst_group():
    net, loss, data = model(), GroupDRO.from_images(UNEVEN, None, step_size=1e6), batch([0, 1, 2, 3])
    net.module.train()
    value = loss(net, data)["loss"].item()
    assert value == pytest.approx(max(losses(net, data)), rel=1e-5)


@pytest.fixture
def grounds(tmp_path):
    """Two classes that differ in brightness, on two backgrounds of uneven frequency."""
    rng, rows = np.random.default_rng(0), ["file,ground"]
    for label, name in enumerate("ab"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for i in range(8):
            pixels = rng.integers(0, 150, (8, 8, 3)) + 60 * label
            Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "data" / name / f"{i}.png")
            rows.append(f"{name}/{i}.png,{'land' if (i < 6) ^ label else 'water'}")
    (tmp_path / "data" / "metadata.csv").write_text("\n".join(rows))
    return read_folder(tmp_path / "data")


SETTINGS = TrainConfig(epochs=3, lr=1e-2, batch_size=4, seed=3)


def weights(net: Classifier) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in net.module.parameters()])


def test_a_resumed_group_dro_ends_with_the_same_weights(grounds, tmp_path):
    options = {"group_columns": ["ground"], "monitor": "worst_group_loss"}

    def run(state=None):
        loss = GroupDRO.from_images(grounds, ["ground"], step_size=0.5)
        trained, history = fit(model(), loss, grounds, grounds, SETTINGS, state, device="cpu", **options)
        return trained, history, loss.q

    whole, history, q = run()
    assert q.max() > 0.3
    with interrupted_after(1):
        run(tmp_path / "state")
    resumed, again, q_again = run(tmp_path / "state")
    assert torch.equal(weights(resumed), weights(whole))
    assert torch.equal(q_again, q)
    assert again == history


def test_reweighting_equal_groups_is_plain_training(grounds):
    loss = Reweight.from_images(grounds, ["class"])
    reweighted, _ = fit(model(), loss, grounds, grounds, SETTINGS, device="cpu", group_columns=["class"])
    plain, _ = fit(model(), cross_entropy, grounds, grounds, SETTINGS, device="cpu")
    torch.testing.assert_close(weights(reweighted), weights(plain))


def _half(rank: int, port: int, folder: str) -> None:
    torch.distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    net, loss, data = model(), GroupDRO.from_images(UNEVEN, None, step_size=0.5), batch([0, 0, 1, 2, 0, 1])
    net.module.train()
    loss(net, {name: value[3 * rank : 3 * rank + 3] for name, value in data.items()})["loss"].backward()
    torch.save({"q": loss.q, "grad": [p.grad for p in net.module.parameters()]}, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_compute_the_same_as_one(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(_half, (port, str(tmp_path)), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    net, loss = model(), GroupDRO.from_images(UNEVEN, None, step_size=0.5)
    net.module.train()
    loss(net, batch([0, 0, 1, 2, 0, 1]))["loss"].backward()
    assert torch.equal(first["q"], second["q"])
    torch.testing.assert_close(first["q"], loss.q)
    for p, a, b in zip(net.module.parameters(), first["grad"], second["grad"], strict=True):
        torch.testing.assert_close((a + b) / 2, p.grad)  # as DistributedDataParallel averages them


@pytest.mark.parametrize("loss", [Reweight, GroupDRO])
def test_unknown_groups_and_columns_raise_an_error(loss):
    partial = loss.from_images(samples({(0, "land"): 2, (1, "land"): 2}), None)
    with pytest.raises(ValueError, match="ground=water' has no training image; groups with training images: class"):
        partial(model(), batch([0, 1]))
    with pytest.raises(DataError, match="group columns: sky is not in"):
        loss.from_images(UNEVEN, ["sky"])


def test_group_dro_checks_its_arguments():
    with pytest.raises(ValueError, match=r"two or more groups are needed, got 1 \(class=a\).*metadata.csv"):
        GroupDRO.from_images(samples({(0, ""): 4}), None)
    for step in (0, -1, math.nan, math.inf):
        with pytest.raises(ValueError, match="step_size: got"):
            GroupDRO.from_images(UNEVEN, None, step_size=step)
    with pytest.raises(ValueError, match="state: 2 groups, but this data has 4"):
        GroupDRO.from_images(UNEVEN, None).load_state_dict({"q": torch.ones(2) / 2})
