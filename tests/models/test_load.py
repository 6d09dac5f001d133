"""Models by name: weights, heads, class names, and errors."""

import argparse
import os
import socket
import sys
import threading
import time
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from clearhead.data.folder import read_folder
from clearhead.data.loading import ImageDataset
from clearhead.models import ModelError, Preprocessing, TokenGrid, load_model, save_model
from clearhead.models.checkpoint_io import read_state
from tests.models.build import (
    CROPPED,
    LETTERS,
    NORM,
    PLAIN,
    batch,
    hf_folder,
    hf_model,
    network_input,
    picture,
    same_logits,
    timm_folder,
)

import timm  # isort: skip  (after clearhead, which lets torchvision import)
import torchvision  # isort: skip
import transformers  # isort: skip


def test_torchvision_resnet_from_a_file(tmp_path):
    source = torchvision.models.resnet18(num_classes=7).eval()
    torch.save(source.state_dict(), tmp_path / "r.pth")
    model = load_model(f"torchvision:resnet18@{tmp_path / 'r.pth'}")
    assert model.grid is None
    assert model.classes == tuple(f"class {i}" for i in range(7))
    assert same_logits(model, source)
    fresh = load_model(f"torchvision:resnet18@{tmp_path / 'r.pth'}", num_classes=3)
    assert fresh.module.fc.weight.shape == (3, 512)
    assert torch.equal(fresh.module.conv1.weight, source.conv1.weight)


def test_fused_attention_is_put_back():
    timm.layers.set_fused_attn(False)
    try:
        load_model("timm:deit_tiny_patch16_224", pretrained=False)
        assert not timm.layers.use_fused_attn()
    finally:
        timm.layers.set_fused_attn(True)
    load_model("timm:resnet18", pretrained=False)
    assert timm.layers.use_fused_attn()
    assert not timm.layers.use_fused_attn(experimental=True)


@pytest.fixture(scope="module")
def deit() -> nn.Module:
    return timm.create_model("deit_tiny_patch16_224").eval()


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_timm_checkpoint_file(suffix, tmp_path, deit):
    file = tmp_path / f"deit{suffix}"
    if suffix == ".pth":
        torch.save({"model": {f"module.{k}": v for k, v in deit.state_dict().items()}}, file)
    else:
        save_file(deit.state_dict(), file)
    model = load_model(f"timm:deit_tiny_patch16_224@{file}")
    assert same_logits(model, deit)
    assert model.grid == TokenGrid(14, 14, 1, "cls")
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(deit), is_training=False)
    assert torch.equal(network_input(model.preprocess, picture(640, 427)), transform(picture(640, 427)))


def test_a_fresh_head_on_strictly_loaded_weights(tmp_path, deit):
    file = tmp_path / "deit.safetensors"
    save_file(deit.state_dict(), file)
    model = load_model(f"timm:deit_tiny_patch16_224@{file}", num_classes=3, classes=["x", "y", "z"], image_size=64)
    assert model.classes == ("x", "y", "z")
    assert model.grid == TokenGrid(4, 4, 1, "cls")
    assert model(batch(model)).shape == (2, 3)
    ours, theirs = model.module.state_dict(), deit.state_dict()
    differing = {name for name in theirs if not torch.equal(ours[name], theirs[name])}
    assert differing == {"head.weight", "head.bias", "pos_embed"}  # the last resized
    save_model(model, tmp_path / "saved")
    assert same_logits(model, load_model(str(tmp_path / "saved")))
    assert same_logits(model, timm.create_model(f"local-dir:{tmp_path / 'saved'}", pretrained=True).eval())
    fresh = load_model(str(tmp_path / "saved"), num_classes=5)
    assert fresh.classes == tuple(f"class {i}" for i in range(5))

    state = deit.state_dict()
    del state["blocks.3.mlp.fc1.weight"]
    save_file(state, file)
    with pytest.raises(ModelError, match=r"blocks\.3\.mlp\.fc1\.weight"):
        load_model(f"timm:deit_tiny_patch16_224@{file}", num_classes=3)


def test_a_file_without_a_head_needs_num_classes(tmp_path, deit):
    file = tmp_path / "backbone.safetensors"
    save_file({k: v for k, v in deit.state_dict().items() if not k.startswith("head.")}, file)
    with pytest.raises(ModelError, match="no classification head; pass num_classes"):
        load_model(f"timm:deit_tiny_patch16_224@{file}")
    model = load_model(f"timm:deit_tiny_patch16_224@{file}", num_classes=2)
    assert torch.equal(model.module.blocks[0].attn.qkv.weight, deit.blocks[0].attn.qkv.weight)


def test_the_files_own_number_of_classes_is_kept(tmp_path):
    module = timm.create_model("deit_tiny_patch16_224", num_classes=4).eval()
    save_file(module.state_dict(), tmp_path / "four.safetensors")
    model = load_model(f"timm:deit_tiny_patch16_224@{tmp_path / 'four.safetensors'}", classes=LETTERS)
    assert model.classes == LETTERS
    assert same_logits(model, module)


def test_a_fresh_hf_head_leaves_the_rest_strict(tmp_path):
    module, _ = hf_folder(tmp_path / "m", "vit")
    model = load_model(str(tmp_path / "m"), num_classes=5)
    assert model.module.config.num_labels == 5
    differing = {n for n, p in model.module.state_dict().items() if not torch.equal(p, module.state_dict()[n])}
    assert differing == {"classifier.weight", "classifier.bias"}

    state = load_file(tmp_path / "m" / "model.safetensors")
    lost = next(name for name in state if "layernorm" in name and name.endswith("weight"))
    save_file({k: v for k, v in state.items() if k != lost}, tmp_path / "m" / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"lacks.*layernorm.*weight"):
        load_model(str(tmp_path / "m"), num_classes=5)
    rest = {k: v for k, v in state.items() if not k.startswith("classifier")}
    save_file(rest, tmp_path / "m" / "model.safetensors", {"format": "pt"})
    with pytest.raises(
        ModelError, match=r"classifier\.bias, classifier\.weight; if that is the head, pass num_classes"
    ):
        load_model(str(tmp_path / "m"))


def test_imagenet_names_are_short_and_fit_the_data_folder(tmp_path):
    model = load_model("timm:resnet18", pretrained=False)
    folded = [name.casefold() for name in model.classes]
    assert len(set(folded)) == len(model.classes) == 1000
    assert model.classes[0] == "tench"
    assert model.classes == load_model("torchvision:resnet18", pretrained=False).classes
    cranes = [name for name in model.classes if name.startswith("crane")]
    assert cranes == ["crane (n02012849)", "crane (n03126707)"]
    for folder in ("n01440764", "n02012849", "goldfish", "crane (n03126707)"):
        (tmp_path / folder).mkdir()
        picture().save(tmp_path / folder / "1.png")
    data = read_folder(tmp_path, classes=model.classes)
    assert {s.file.split("/")[0]: s.label for s in data.samples} == {
        "n01440764": 0,
        "goldfish": 1,
        "n02012849": 134,
        "crane (n03126707)": 517,
    }
    assert ImageDataset(data, model.preprocess)[0]["image"].shape == (3, 224, 224)


def test_hf_classes_without_names_are_numbered(tmp_path):
    hf_folder(tmp_path, "vit")
    assert load_model(str(tmp_path)).classes == ("class 0", "class 1", "class 2")


def test_random_weights_of_a_folder(tmp_path):
    module = timm_folder(tmp_path / "timm", "deit_tiny_patch16_224")
    assert not same_logits(load_model(str(tmp_path / "timm"), pretrained=False), module)
    hf, _ = hf_folder(tmp_path / "hf", "vit")
    assert not same_logits(load_model(str(tmp_path / "hf"), pretrained=False), hf)


def test_a_convolutional_model_takes_any_size():
    model = load_model("timm:resnet18", pretrained=False, image_size=96, num_classes=2)
    assert model.preprocess.size == (96, 96)
    assert model(batch(model)).shape == (2, 2)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("timm:deit_tinny_patch16_224", "did you mean deit_tiny_patch16_224"),
        ("timm:deit_tiny_patch16_224.no_such", r"choose from deit_tiny_patch16_224\.fb_in1k"),
        ("timm:deit_tiny_patch16_224@no/file.pth", "no such file: no/file.pth"),
        ("timm:", "write timm:NAME"),
        ("torchvision:vit_b16", "did you mean vit_b_16"),
        ("deit_tiny_patch16_224", "write timm:deit_tiny_patch16_224"),
        ("weights/deit.safetensors", "write timm:ARCHITECTURE@weights/deit.safetensors"),
        ("resnet_18", "neither a folder that exists nor .* did you mean timm:resnet18"),
    ],
)
def test_an_unknown_name_says_what_would_work(name, message):
    with pytest.raises(ModelError, match=message):
        load_model(name)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"classes": ["a", "b"]}, "1000 outputs, but there are 2 class names; num_classes=2 gives it a new head"),
        ({"classes": ["a", "a"]}, "'a' is named twice"),
        ({"classes": ["a", "b"], "num_classes": 3}, "num_classes is 3, but classes has 2 names"),
        ({"num_classes": 0}, "num_classes: 0; at least 1"),
        ({"image_size": -1}, "image_size: -1; at least 1"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ModelError, match=message):
        load_model("timm:resnet18", pretrained=False, **arguments)


def test_weights_that_do_not_fit_or_cannot_be_read(tmp_path):
    save_file({"head.weight": torch.zeros(1000, 5)}, tmp_path / "other.safetensors")
    with pytest.raises(ModelError, match="Missing key"):
        load_model(f"timm:deit_tiny_patch16_224@{tmp_path / 'other.safetensors'}")
    with pytest.raises(ModelError, match="Missing key"):
        load_model(f"torchvision:resnet18@{tmp_path / 'other.safetensors'}")
    for name in ("cut.safetensors", "cut.pth"):
        (tmp_path / name).write_bytes(b"\x08\x00broken")
        with pytest.raises(ModelError, match=name):
            load_model(f"timm:deit_tiny_patch16_224@{tmp_path / name}")


def test_a_size_the_library_cannot_take(tmp_path):
    hf_folder(tmp_path / "hf", "vit")
    with pytest.raises(ModelError, match="image_size: 64; a Hugging Face model has a fixed size"):
        load_model(str(tmp_path / "hf"), image_size=64)
    with pytest.raises(ModelError, match="indivisible by patch size"):
        load_model("torchvision:vit_b_16", pretrained=False, image_size=100)
    with pytest.raises(ModelError, match="does not run on a 1 x 3 x 96 x 96 image"):
        load_model("torchvision:maxvit_t", pretrained=False, image_size=96)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "has no config.json"),
        ("{", "cannot be read as JSON"),
        ("[]", "holds a list"),
        ("{}", "names no architecture .* and no model_type"),
        ('{"architecture": "no_such"}', "no_such"),
        ('{"model_type": "no_such"}', "no_such"),
    ],
)
def test_a_folder_that_is_no_checkpoint(content, message, tmp_path):
    if content:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(ModelError, match=message):
        load_model(str(tmp_path))


def test_an_hf_folder_whose_preprocessing_is_unknown(tmp_path):
    module, _ = hf_model("vit")
    module.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"no image processor \(preprocessor_config.json\)"):
        load_model(str(tmp_path))
    transformers.LevitImageProcessor(**CROPPED).save_pretrained(tmp_path)  # resizes to 256/224 of the size
    with pytest.raises(ModelError, match="LevitImageProcessor does something besides"):
        load_model(str(tmp_path))
    transformers.ViTImageProcessor(do_resize=False).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="does not bring every image to one size"):
        load_model(str(tmp_path))


def test_without_transformers(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ModelError, match=r"pip install clearhead\[hf\]"):
        load_model(f"hf:{tmp_path}")


@pytest.mark.parametrize("name", ["timm:deit_tiny_patch16_224", "torchvision:resnet18", "hf:google/no-such-vit"])
def test_without_a_network(name, monkeypatch, tmp_path):
    def refuse(*_args, **_kwargs):
        raise OSError("no network")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(ModelError, match="the hub is out of reach and the local cache has no copy: give local files"):
        load_model(name)


@pytest.mark.slow
@pytest.mark.skipif("CLEARHEAD_DATA" not in os.environ, reason="CLEARHEAD_DATA names no folder of real data")
def test_deit_tiny_on_real_photographs():
    root = Path(os.environ["CLEARHEAD_DATA"])
    model = load_model(f"timm:deit_tiny_patch16_224@{root / 'models' / 'deit_tiny_patch16_224.safetensors'}")
    data = read_folder(root / "nips17", classes=model.classes, check=False)
    images = ImageDataset(data, model.preprocess)
    correct = 0
    with torch.no_grad():
        for item in images:
            correct += model(item["image"][None]).argmax().item() == item["label"]
    assert len(images) == 455
    assert correct / len(images) == pytest.approx(0.857, abs=0.0005)


# Checkpoints of training scripts


def deit_checkpoint(module: nn.Module, form: str) -> dict:
    state = module.state_dict()
    worse = {name: torch.zeros_like(value) for name, value in state.items()}
    if form == "timm":
        arguments = argparse.Namespace(model="deit_tiny_patch16_224", lr=0.1)
        metric = np.float64(71.5)
        return {"epoch": 3, "state_dict": worse, "state_dict_ema": state, "args": arguments, "metric": metric}
    if form == "timm without ema":
        return {"state_dict": state, "optimizer": {"state": {}, "param_groups": []}}
    if form == "deit":
        return {"model": worse, "model_ema": state, "epoch": 1}
    if form == "lightning":
        state = {f"model.{k}": v for k, v in state.items()} | {"criterion.weight": torch.ones(3)}
        return {"pytorch-lightning_version": "2.5", "state_dict": state, "hyper_parameters": {"lr": 0.1}}
    if form == "lightning, compiled":
        state = {f"net._orig_mod.{k}": v for k, v in state.items()}
        return {"pytorch-lightning_version": "2.5", "state_dict": state}
    if form == "parallel":
        return {f"module.{k}": v for k, v in state.items()}
    return {"model_state_dict": state}


ENTRIES = {
    "timm": "state_dict_ema",
    "timm without ema": "state_dict",
    "deit": "model_ema",
    "lightning": "state_dict",
    "lightning, compiled": "state_dict",
    "parallel": "",
    "tutorial": "model_state_dict",
}


@pytest.mark.parametrize("form", ENTRIES)
def test_checkpoints_of_training_scripts(form, tmp_path):
    file = tmp_path / "checkpoint.pth.tar"
    source = timm.create_model("deit_tiny_patch16_224", num_classes=3, depth=2).eval()
    torch.save(deit_checkpoint(source, form), file)
    state, entry = read_state(file)
    assert entry == ENTRIES[form]
    assert state.keys() == source.state_dict().keys()
    assert all(torch.equal(state[name], value) for name, value in source.state_dict().items())


def test_a_timm_training_checkpoint_with_a_file_of_class_names(tmp_path, deit):
    torch.save(deit_checkpoint(deit, "timm"), tmp_path / "model_best.pth.tar")
    names = tmp_path / "classes.txt"
    names.write_text("\n".join(f" name {i}" for i in range(1000)) + "\n\n", encoding="utf-8")
    model = load_model(f"timm:deit_tiny_patch16_224@{tmp_path / 'model_best.pth.tar'}", classes=names)
    assert same_logits(model, deit)
    assert (model.classes[0], model.classes[-1], model.weights) == ("name 0", "name 999", "state_dict_ema")
    assert "state_dict" not in model.module.pretrained_cfg


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"model": nn.Linear(2, 2)}, "without running the code in it .*Linear.*weights_only=False"),
        ([1, 2], "holds a list; a state dict is needed"),
        ({"epoch": 3, "lr": 0.1}, "holds no state dict, only epoch, lr; needed are tensors"),
    ],
)
def test_a_file_that_is_no_state_dict(content, message, tmp_path):
    torch.save(content, tmp_path / "c.pth")
    with pytest.raises(ModelError, match=message):
        load_model(f"timm:deit_tiny_patch16_224@{tmp_path / 'c.pth'}")
    with pytest.raises(ModelError, match=message):
        load_model(f"torchvision:resnet18@{tmp_path / 'c.pth'}")


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "no-names.txt cannot be read"), ("", "is empty"), ("a\nb\na\n", "'a' is named twice")],
)
def test_a_file_of_class_names_that_is_wrong(content, message, tmp_path):
    file = tmp_path / "no-names.txt"
    if content is not None:
        file.write_text(content)
    with pytest.raises(ModelError, match=message):
        load_model("timm:resnet18", pretrained=False, classes=str(file))


def test_the_preprocessing_can_be_named(tmp_path):
    module, _ = hf_model("vit")
    module.eval().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"preprocessor_config.json.*--mean --std --size --crop-pct"):
        load_model(tmp_path)
    model = load_model(tmp_path, mean=[0.5] * 3, std=[0.25] * 3, crop_pct=0.8)
    assert model.preprocess == Preprocessing((48, 48), (60, 60), (0.5,) * 3, (0.25,) * 3)
    assert same_logits(model, module)
    own = Preprocessing((48, 48), (56, 56), (0.5,) * 3, (0.5,) * 3, interpolation="bicubic")
    assert load_model(tmp_path, preprocess=own).preprocess == own

    changed = load_model("timm:resnet18", pretrained=False, mean=(0.1, 0.2, 0.3), image_size=64)
    assert (changed.preprocess.mean, changed.preprocess.std) == ((0.1, 0.2, 0.3), NORM["std"])
    assert changed.preprocess.size == (64, 64)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"crop_pct": 87.5}, "crop_pct: 87.5; a fraction above 0"),
        ({"mean": [0.5]}, "mean: .*three numbers"),
        ({"preprocess": PLAIN, "crop_pct": 0.9}, "preprocess: it includes image_size"),
    ],
)
def test_a_preprocessing_that_makes_no_sense(arguments, message):
    with pytest.raises(ModelError, match=message):
        load_model("timm:resnet18", pretrained=False, **arguments)


def test_the_folder_of_a_run_is_its_checkpoint(tmp_path):
    module = timm_folder(tmp_path / "checkpoint", "resnet18")
    (tmp_path / "config.yaml").write_text("command: repair\n")
    assert same_logits(load_model(tmp_path), module)
    (tmp_path / "audit").mkdir()
    (tmp_path / "audit" / "config.yaml").write_text("command: audit\n")
    with pytest.raises(ModelError, match="a run that left no model: it has no checkpoint/"):
        load_model(tmp_path / "audit")


def test_a_hub_that_does_not_answer_costs_less_than_five_seconds(monkeypatch, tmp_path):
    """No reply to anything: the name is looked up for ever, and so is every connection made."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    silent = threading.Event()

    def never(*_args, **_kwargs):
        silent.wait()
        raise OSError

    monkeypatch.setattr(socket, "getaddrinfo", never)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    for name in ("hf:google/no-such-vit", "timm:resnet18", "torchvision:resnet18"):
        started = time.perf_counter()
        with pytest.raises(ModelError, match="the hub is out of reach"):
            load_model(name)
        assert time.perf_counter() - started < 5
    assert not huggingface_hub.constants.HF_HUB_OFFLINE
    silent.set()
