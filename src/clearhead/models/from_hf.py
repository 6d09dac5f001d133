"""Hugging Face's models."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from clearhead.models.checkpoint_io import CONFIG, read_json, require_same, write_json
from clearhead.models.class_names import numbered
from clearhead.models.classifier import Classifier, Wanted
from clearhead.models.errors import ModelError, cause
from clearhead.models.preprocessing import CropMode, Preprocessing, per_channel


def load_hf(target: str, wanted: Wanted) -> Classifier:
    """A model of transformers: from its hub, or from a folder `save_pretrained` wrote."""
    try:
        import transformers
    except ImportError:
        raise ModelError("transformers is not installed; pip install clearhead[hf]") from None
    path = Path(target).expanduser()
    source = str(path) if path.is_dir() else target
    auto = transformers.AutoModelForImageClassification
    config = transformers.AutoConfig.from_pretrained(source)
    fresh = wanted.fresh_head(config.num_labels)
    if fresh:
        config.num_labels = fresh  # which also numbers its id2label anew
    # "sdpa" is also what transformers takes by default, but only where the model has it: a CNN must not fail here.
    if wanted.pretrained:
        module, found = auto.from_pretrained(
            source, config=config, ignore_mismatched_sizes=True, output_loading_info=True
        )
        _require_loaded(module, found, wanted.num_classes is not None)
    else:
        module = auto.from_config(config)
    preprocess = _hf_preprocessing(_image_processor(transformers, source))
    if wanted.size not in (None, preprocess.size):
        raise ModelError(f"image_size: {wanted.size[0]}; a Hugging Face model keeps its own, {preprocess.size}")
    names = [str(config.id2label[index]) for index in range(config.num_labels)]
    if fresh or names == [f"LABEL_{index}" for index in range(config.num_labels)]:
        names = list(numbered(config.num_labels))
    return Classifier(module.float(), target, "hf", preprocess, tuple(names))


def _require_loaded(module: Any, found: Mapping[str, Any], fresh: bool) -> None:
    """Raise unless the checkpoint held every parameter, those of a fresh head (Linear of as many outputs) aside."""
    mismatched = [key if isinstance(key, str) else key[0] for key in found["mismatched_keys"]]
    missing = {*found["missing_keys"], *mismatched}
    if fresh:
        outputs = module.config.num_labels
        heads = {n for n, m in module.named_modules() if isinstance(m, nn.Linear) and m.out_features == outputs}
        missing = {key for key in missing if key.rpartition(".")[0] not in heads}
    if missing:
        raise ModelError(
            f"the checkpoint lacks, or has in another shape, {', '.join(sorted(missing)[:4])}"
            + (f" and {len(missing) - 4} more" if len(missing) > 4 else "")
            + ("" if fresh else "; if that is the head, give num_classes for a fresh one")
        )


def _image_processor(transformers: Any, source: str) -> Any:
    try:
        return transformers.AutoImageProcessor.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise ModelError(f"no image processor (preprocessor_config.json) could be read: {cause(error)}") from error


def _hf_preprocessing(processor: Any) -> Preprocessing:
    """The preprocessing of a Hugging Face image processor, proved on one image against the processor itself."""
    preprocess = _from_processor_config(processor.to_dict())
    noise = np.random.default_rng(0).integers(0, 256, (300, 401, 3), dtype=np.uint8)
    wanted = torch.as_tensor(processor(images=Image.fromarray(noise), return_tensors="pt")["pixel_values"][0])
    ours = preprocess.normalize(preprocess.image(Image.fromarray(noise)))
    # Noise moved by one pixel is off by 40 levels; the processors' filters are Pillow's, or torchvision's, off by one.
    if wanted.shape != ours.shape or ((wanted - ours) * per_channel(preprocess.std)).abs().mean() > 4 / 255:
        raise ModelError(
            f"its image processor {type(processor).__name__} does something besides scaling, centre crop and "
            "normalising; load the module yourself and give from_module its preprocessing"
        )
    return preprocess


def _from_processor_config(config: Mapping[str, Any]) -> Preprocessing:
    """The preprocessing a processor's config describes."""
    size = {k: v for k, v in (config.get("size") or {}).items() if v is not None}
    crop_mode: CropMode
    crop = config.get("crop_size") if config.get("do_center_crop") else None
    if set(size) == {"shortest_edge"}:
        edge = size["shortest_edge"]
        box, crop_mode = (edge, edge), "center"
        if config.get("crop_pct"):  # ConvNext's: `size` is that of the crop, and from 384 on it is squashed
            crop, crop_mode = {"height": edge, "width": edge}, "center" if edge < 384 else "squash"
            box = (int(edge / config["crop_pct"]),) * 2 if edge < 384 else box
    elif set(size) == {"height", "width"}:
        box, crop_mode = (size["height"], size["width"]), "squash"
    else:
        box, crop_mode = None, "squash"
    if not config.get("do_resize") or box is None or (crop_mode == "center" and not crop):
        told = {key: config.get(key) for key in ("do_resize", "size", "do_center_crop", "crop_size")}
        raise ModelError(f"its image processor does not bring every image to one size: {told}")
    normalise = config.get("do_normalize")
    return Preprocessing(
        size=(crop["height"], crop["width"]) if crop else box,
        resize=box,
        mean=tuple(config["image_mean"]) if normalise else (0.0, 0.0, 0.0),
        std=tuple(config["image_std"]) if normalise else (1.0, 1.0, 1.0),
        crop_mode=crop_mode,
        interpolation=Image.Resampling(config["resample"]).name.lower(),
        odd_margin="down",
    )


def save_hf(classifier: Classifier, folder: Path) -> None:
    """What `save_pretrained` writes, and an image processor's config."""
    preprocess = classifier.preprocess
    (height, width), (tall, wide) = preprocess.size, preprocess.resize
    processor = {
        "image_processor_type": "CLIPImageProcessor",  # the plain one: scaling, centre crop, normalising
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": tall} if preprocess.crop_mode == "center" else {"height": tall, "width": wide},
        "resample": Image.Resampling[preprocess.interpolation.upper()].value,
        "do_center_crop": True,
        "crop_size": {"height": height, "width": width},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": preprocess.mean,
        "image_std": preprocess.std,
    }
    require_same(_from_processor_config(processor), preprocess, "Hugging Face")
    module: Any = classifier.module
    module.save_pretrained(folder)
    names = dict(enumerate(classifier.classes))
    config = read_json(folder / CONFIG) | {"id2label": names, "label2id": {n: i for i, n in names.items()}}
    write_json(folder / CONFIG, config)
    write_json(folder / "preprocessor_config.json", processor)
