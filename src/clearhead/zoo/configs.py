"""timm's configs of the zoo's models: input size, normalisation, names of the first and the last layer.

None of them has pretrained weights.
"""

from typing import Any

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD


def cifar(first_conv: str, classifier: str, **changes: Any) -> dict[str, Any]:
    """Return the config of a model for 32 x 32 pixels and 100 classes, normalised as CIFAR-100's training set."""
    return {
        "num_classes": 100,
        "input_size": (3, 32, 32),
        "crop_pct": 1.0,
        "interpolation": "bicubic",
        "mean": (0.5071, 0.4865, 0.4409),
        "std": (0.2673, 0.2564, 0.2762),
        "first_conv": first_conv,
        "classifier": classifier,
    } | changes


def imagenet(first_conv: str, classifier: str) -> dict[str, Any]:
    """Return the config of a model for 224 x 224 pixels and ImageNet's 1000 classes."""
    return cifar(
        first_conv,
        classifier,
        num_classes=1000,
        input_size=(3, 224, 224),
        crop_pct=0.875,
        mean=IMAGENET_DEFAULT_MEAN,
        std=IMAGENET_DEFAULT_STD,
    )
