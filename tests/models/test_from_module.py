"""Classifiers from modules that the user built."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from clearhead.models import ModelError, Preprocessing, TokenGrid, as_classifier, from_module, load_model, save_model
from clearhead.models.transforms import preprocessing_of
from tests.models.build import (
    LETTERS,
    NORM,
    PLAIN,
    Patches,
    hf_folder,
    hf_model,
    network_input,
    picture,
    same_logits,
)

import timm  # isort: skip  (after clearhead, which lets torchvision import)
import torchvision  # isort: skip
import torchvision.transforms.v2  # isort: skip
import transformers  # isort: skip


def test_a_module_of_ones_own(tmp_path):
    module = Patches(lambda x: x[:, 0])
    model = from_module(module, preprocess=PLAIN, classes=LETTERS, name="mine")
    assert (model.library, model.name, model.grid) == ("module", "mine", TokenGrid(4, 6, 1, "cls"))
    save_model(model, tmp_path / "mine")
    again = Patches(lambda x: x[:, 0])
    again.load_state_dict(load_file(tmp_path / "mine" / "model.safetensors"))
    assert same_logits(model, again)
    saved = json.loads((tmp_path / "mine" / "config.json").read_text())
    assert saved["label_names"] == list(LETTERS)
    with pytest.raises(ModelError, match="pass it to from_module"):
        load_model(str(tmp_path / "mine"))
    with pytest.raises(ModelError, match="4 outputs, but there are 3 class names"):
        from_module(module, preprocess=PLAIN, classes=["a", "b", "c"])
    with pytest.raises(ModelError, match="does not run on a 1 x 3 x 4 x 4 image"):
        from_module(module, preprocess=Preprocessing((4, 4), (4, 4), **NORM), classes=LETTERS)


SIZE = {"img_size": 64, "embed_dim": 32, "depth": 2, "num_heads": 2}


def test_a_timm_module_describes_itself():
    module = timm.create_model("deit_tiny_patch16_224", **SIZE).eval()
    model = as_classifier(module)
    assert (model.name, model.library, model.grid) == ("deit_tiny_patch16_224", "timm", TokenGrid(4, 4, 1, "cls"))
    assert model.classes[0] == "tench"
    assert (model.preprocess.size, model.preprocess.resize) == ((64, 64), (71, 71))
    assert model.preprocess.mean == NORM["mean"]
    assert as_classifier(model) is model
    resnet = as_classifier(timm.create_model("resnet18", num_classes=3), image_size=(48, 40))
    assert (resnet.classes, resnet.preprocess.size) == (("class 0", "class 1", "class 2"), (48, 40))


@pytest.mark.parametrize(("heads", "library"), [(3, "timm"), (4, "module")])  # with 4 heads, shapes are the same
def test_a_timm_module_is_saved_for_timm_if_timm_can_rebuild_it(heads, library, tmp_path):
    module = timm.create_model("vit_tiny_patch16_224", num_classes=3, img_size=32, num_heads=heads).eval()
    model = as_classifier(module)
    save_model(model, tmp_path / "m")
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    assert ("library" in config) == (library == "module")
    if library == "timm":
        assert same_logits(model, load_model(tmp_path / "m"))
        assert same_logits(model, timm.create_model(f"local-dir:{tmp_path / 'm'}", pretrained=True).eval())


def test_an_hf_module_describes_itself(tmp_path):
    hf_folder(tmp_path / "m", "vit", ["x", "y", "z"])
    module = transformers.AutoModelForImageClassification.from_pretrained(tmp_path / "m")
    model, loaded = as_classifier(module), load_model(tmp_path / "m")
    assert (model.library, model.classes, model.preprocess) == ("hf", ("x", "y", "z"), loaded.preprocess)
    save_model(model, tmp_path / "again")
    assert same_logits(model, load_model(tmp_path / "again"))

    fresh, _ = hf_model("vit")
    unknown = as_classifier(fresh)
    assert unknown.preprocess.size == (48, 48)
    assert same_logits(unknown, fresh)
    with pytest.raises(ModelError, match="preprocessing of ViTForImageClassification is unknown"):
        unknown.preprocess.image(picture())


def test_a_torchvision_module_has_imagenets_names_and_takes_tensors_as_they_are():
    module = torchvision.models.resnet18().eval()
    model = as_classifier(module, image_size=(32, 32))
    assert model.classes == load_model("torchvision:resnet18", pretrained=False).classes
    tensors = torch.randn(2, 3, 32, 32)
    assert torch.equal(model(tensors), module(tensors))
    with pytest.raises(ModelError, match=r"preprocessing of ResNet is unknown.*transform=.*from_module"):
        model.preprocess.image(picture())
    assert as_classifier(torchvision.models.resnet18(num_classes=4)).classes == tuple(f"class {i}" for i in range(4))


def test_what_is_no_model_is_named():
    with pytest.raises(ModelError, match=r"model: got dict; pass a Classifier, a torch\.nn\.Module, or a name"):
        as_classifier({"state_dict": {}})


@settings(max_examples=40, deadline=None)
@given(
    size=st.tuples(st.integers(8, 60), st.integers(8, 60)),
    square=st.booleans(),
    crop_pct=st.sampled_from([0.7, 0.875, 0.9, 1.0]),
    crop_mode=st.sampled_from(["center", "squash", "border"]),
    interpolation=st.sampled_from(["bilinear", "bicubic", "lanczos"]),
)
def test_a_timm_transform_becomes_the_preprocessing(size, square, crop_pct, crop_mode, interpolation):
    size = (size[0], size[0]) if square else size
    data = {"crop_pct": crop_pct, "crop_mode": crop_mode, "interpolation": interpolation, **NORM}
    transform = timm.data.create_transform(input_size=(3, *size), is_training=False, **data)
    preprocess = preprocessing_of(transform)
    for width, height in [(90, 71), (57, 120), (40, 40)]:
        image = picture(width, height)
        assert torch.allclose(network_input(preprocess, image), transform(image), atol=1e-6)


V1, V2 = torchvision.transforms, torchvision.transforms.v2
TRANSFORMS = {
    "preset": torchvision.models.ViT_B_16_Weights.DEFAULT.transforms(),
    "v1": V1.Compose([V1.Resize(40), V1.CenterCrop(32), V1.ToTensor(), V1.Normalize(**NORM)]),
    "squash": V1.Compose([V1.Resize((32, 48)), V1.ToTensor(), V1.Normalize(**NORM)]),
    "not normalised": V1.Compose([V1.Resize(40), V1.CenterCrop((24, 32)), V1.ToTensor()]),
    "v2": V2.Compose(
        [V2.Resize(40), V2.CenterCrop(32), V2.ToImage(), V2.ToDtype(torch.float32, scale=True), V2.Normalize(**NORM)]
    ),
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_a_torchvision_transform_becomes_the_preprocessing(name):
    preprocess = preprocessing_of(TRANSFORMS[name])
    for width, height in [(90, 71), (57, 120), (40, 40)]:
        image = picture(width, height)
        assert torch.allclose(network_input(preprocess, image), TRANSFORMS[name](image), atol=1e-6)
    module = torchvision.models.resnet18(num_classes=2)
    assert from_module(module, transform=TRANSFORMS[name], classes=["a", "b"]).preprocess == preprocess


def test_an_image_processor_becomes_the_preprocessing():
    _, processor = hf_model("clip")
    assert from_module(hf_model("clip")[0], transform=processor).preprocess.size == (48, 48)


@pytest.mark.parametrize(
    ("transform", "message"),
    [
        (V1.Compose([V1.RandomResizedCrop(32), V1.ToTensor()]), "RandomResizedCrop is more than resize, centre crop"),
        (V1.Compose([V1.Grayscale(3), V1.Resize((8, 8)), V1.ToTensor()]), "Grayscale is more than"),
        (V1.Compose([V1.Resize(32), V1.ToTensor()]), "does not bring every image to one size"),
        (V1.Compose([V1.Resize((32, 32)), V1.PILToTensor()]), "does something besides resize, centre crop"),
        (V1.Compose([V1.Resize((32, 32)), V1.Normalize(**NORM)]), "transform does not run on an RGB image"),
        (lambda image: image, "function is more than resize"),
    ],
)
def test_a_transform_that_is_more_than_preprocessing_is_an_error(transform, message):
    with pytest.raises(ModelError, match=message):
        from_module(torchvision.models.resnet18(), transform=transform)


def test_a_module_whose_library_cannot_express_the_preprocessing_is_saved_as_a_module(tmp_path):
    preprocess = Preprocessing((48, 48), (50, 61), **NORM)
    for module in (hf_model("vit")[0], timm.create_model("resnet18", num_classes=3)):
        model = from_module(module, preprocess=preprocess)
        assert (model.library, model.preprocess) == ("module", preprocess)
        save_model(model, tmp_path / "m")


def test_a_transform_or_a_preprocessing_but_not_both():
    with pytest.raises(ModelError, match="preprocess, transform: pass one of the two"):
        from_module(Patches(lambda x: x[:, 0]), preprocess=PLAIN, transform=TRANSFORMS["v1"])
