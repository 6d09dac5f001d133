"""Models of Hugging Face transformers."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image
from torch import nn

from clearhead.models.checkpoint_io import CONFIG, read_json, require_same, write_json
from clearhead.models.class_names import numbered
from clearhead.models.classifier import Classifier, LoadOptions
from clearhead.models.errors import ModelError, cause
from clearhead.models.hub import hub_access
from clearhead.models.preprocessing import Preprocessing, UnknownPreprocessing, unknown_preprocessing
from clearhead.models.transforms import from_processor_config, preprocessing_of_processor


def load_hf(target: str, options: LoadOptions) -> Classifier:
    """Load a model of transformers: from its hub, or from a folder that `save_pretrained` wrote."""
    try:
        import transformers
    except ImportError:
        raise ModelError("transformers is not installed; pip install clearhead[hf]") from None
    path = Path(target).expanduser()
    if path.is_dir():
        return _load_hf(transformers, str(path), options, {"local_files_only": True})
    with hub_access() as offline:
        return _load_hf(transformers, target, options, {"local_files_only": offline})


def _load_hf(transformers: Any, source: str, options: LoadOptions, arguments: dict[str, Any]) -> Classifier:
    arguments = {"trust_remote_code": False, **arguments}
    auto = transformers.AutoModelForImageClassification
    config = transformers.AutoConfig.from_pretrained(source, **arguments)
    new_head = options.new_head(config.num_labels)
    if new_head:
        config.num_labels = new_head  # which also resets its id2label
    # "sdpa" is also what transformers takes by default, but only where the model has it: a CNN must not fail here.
    if options.pretrained:
        module, report = auto.from_pretrained(
            source, config=config, ignore_mismatched_sizes=True, output_loading_info=True, **arguments
        )
        _require_loaded(module, report, options.num_classes is not None)
    else:
        module = auto.from_config(config, trust_remote_code=False)
    preprocess = _preprocessing(transformers, source, config, options.size, arguments)
    if options.size not in (None, preprocess.size):
        raise ModelError(f"image_size: {options.size[0]}; a Hugging Face model has a fixed size, {preprocess.size}")
    return Classifier(module.float(), source, "hf", preprocess, _names(config, new_head is not None))


def describe_hf(module: nn.Module, image_size: tuple[int, int] | None) -> Classifier | None:
    """Return a module of transformers as a classifier with what its config says; None for another module."""
    config: Any = getattr(module, "config", None)
    if not hasattr(config, "id2label") or not hasattr(module, "save_pretrained"):
        return None
    import transformers

    source = str(config._name_or_path)
    try:
        if not source:
            raise ModelError("it was not loaded by name")
        preprocess = _preprocessing(transformers, source, config, image_size, {"local_files_only": True})
    except ModelError as error:
        size = _image_size(config) or image_size or (224, 224)
        preprocess = unknown_preprocessing(size, f"the preprocessing of {type(module).__name__} is unknown: {error}")
    return Classifier(module, source or type(module).__name__, "hf", preprocess, _names(config, False))


def _preprocessing(
    transformers: Any, source: str, config: Any, size: tuple[int, int] | None, arguments: dict[str, Any]
) -> Preprocessing:
    """Return the preprocessing of the image processor that belongs to a model; unknown where there is none."""
    try:
        processor = transformers.AutoImageProcessor.from_pretrained(source, **arguments)
    except (OSError, ValueError) as error:
        reason = f"no image processor (preprocessor_config.json) could be read: {cause(error)}"
        if (size := _image_size(config) or size) is None:
            raise ModelError(
                f"{reason}. Its config names no image size either: pass image_size, mean and std"
            ) from error
        return unknown_preprocessing(size, reason)
    return preprocessing_of_processor(processor)


def _image_size(config: Any) -> tuple[int, int] | None:
    """Return H, W of a model's input, where its config, or that of its vision model, names it."""
    size = getattr(getattr(config, "vision_config", config), "image_size", None)
    if isinstance(size, int):
        return size, size
    return (size[0], size[1]) if isinstance(size, list | tuple) and len(size) == 2 else None


def _names(config: Any, new_head: bool) -> tuple[str, ...]:
    """Return the class names in a config; numbers for a new head, and where it has only its own placeholders."""
    names = tuple(str(config.id2label[index]) for index in range(config.num_labels))
    return numbered(len(names)) if new_head or names == tuple(f"LABEL_{i}" for i in range(len(names))) else names


def _require_loaded(module: Any, report: Mapping[str, Any], new_head: bool) -> None:
    """Raise unless the checkpoint held every parameter, except those of a new head (Linear of as many outputs)."""
    mismatched = [key if isinstance(key, str) else key[0] for key in report["mismatched_keys"]]
    missing = {*report["missing_keys"], *mismatched}
    if new_head:
        outputs = module.config.num_labels
        heads = {n for n, m in module.named_modules() if isinstance(m, nn.Linear) and m.out_features == outputs}
        missing = {key for key in missing if key.rpartition(".")[0] not in heads}
    if missing:
        raise ModelError(
            f"the checkpoint lacks, or has in another shape, {', '.join(sorted(missing)[:4])}"
            + (f" and {len(missing) - 4} more" if len(missing) > 4 else "")
            + ("" if new_head else "; if that is the head, pass num_classes for a new one")
        )


def save_hf(classifier: Classifier, folder: Path) -> None:
    """Write what `save_pretrained` writes, and the config of an image processor where the preprocessing is known."""
    module: Any = classifier.module
    module.save_pretrained(folder)
    names = dict(enumerate(classifier.classes))
    config = read_json(folder / CONFIG) | {"id2label": names, "label2id": {n: i for i, n in names.items()}}
    write_json(folder / CONFIG, config)
    if not isinstance(classifier.preprocess, UnknownPreprocessing):
        write_json(folder / "preprocessor_config.json", processor_config(classifier.preprocess))


def processor_config(preprocess: Preprocessing) -> dict[str, Any]:
    """Return the config of the image processor that applies a preprocessing. Raises ModelError if none does."""
    (height, width), (tall, wide) = preprocess.size, preprocess.resize
    processor = {
        "image_processor_type": "CLIPImageProcessor",  # the plain one: resize, centre crop, normalisation
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
    require_same(from_processor_config(processor), preprocess, "Hugging Face")
    return processor
