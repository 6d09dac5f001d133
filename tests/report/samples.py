"""A page with everything that a page can hold, for tests."""

import math

import numpy as np

from clearhead.attribution import overlay
from clearhead.metrics.statistics import Estimate
from clearhead.metrics.verdict import Verdict
from clearhead.report import plots
from clearhead.report.images import outline
from clearhead.report.page import ExampleImages, Figure, Gallery, Page, Row, Table

NAN = math.nan


def share(value: float, half: float = 0.018, count: int = 1600, unit: str = "%") -> Estimate:
    return Estimate(value, value - half, value + half, count, unit)


def scene(seed: int, size: int = 224) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return an image of a disc on a background, the mask of the disc, and a map with its maximum elsewhere."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size] / size
    cy, cx = random.uniform(0.35, 0.65, 2)
    mask = (y - cy) ** 2 + ((x - cx) * 0.7) ** 2 < 0.04
    background = (
        random.uniform(60, 200, 3) + 40 * np.sin(9 * x + 7 * y)[..., None] + random.normal(0, 12, (size, size, 3))
    )
    image = np.where(mask[..., None], random.uniform(20, 240, 3) + random.normal(0, 8, (size, size, 3)), background)
    by, bx = random.uniform(0.1, 0.9, 2)
    return image.clip(0, 255).astype(np.uint8), mask, np.exp(-((y - by) ** 2 + (x - bx) ** 2) / 0.03)


def full_page(examples: int = 12) -> Page:
    def example(i: int) -> ExampleImages:
        image, mask, heat = scene(i)
        after = np.clip(mask * 0.8 + 0.25 * heat, 0, 1)
        after = after.reshape(14, 16, 14, 16).mean((1, 3))
        more = [("rollout", overlay(image, heat**2)), ("attention", overlay(image, heat**0.5))] if i == 11 else []
        return ExampleImages(
            [
                *more,
                ("image with mask", outline(image, mask)),
                ("before", overlay(image, heat)),
                ("after", overlay(image, after)),
            ],
            f"test/bird/{i:05d}_on_water.png",
            f"bird; before: fish (71.{i}%), after: bird (88.{i}%)",
        )

    shifts = ["train background", "swapped background", "grey background", "noise, severity 3", "blur, severity 3"]
    return Page(
        title="Relevance repair of vit_small_patch16_224 on the demo set",
        lead="The model before the repair against the model after it, on images that no training or choice has seen.",
        verdicts=[
            Verdict(
                "improved",
                "The repair raised accuracy on shifted backgrounds by 20.9 points, from 62.2% to 83.1%.",
                data="demo, shifted backgrounds",
            ),
            Verdict(
                "inconclusive",
                "On the usual backgrounds the difference of −0.4 points is within what chance explains.",
                data="/srv/data/a_folder_whose_name_is_long_and_has_no_place_to_break/usual_backgrounds/test",
            ),
            Verdict("regressed", "On blurred images accuracy fell by 3.1 points.", data="demo, blurred"),
        ],
        headline=[
            ("Accuracy on shifted backgrounds, after", share(0.831)),
            ("Gain over the model before", Estimate(0.209, 0.181, 0.237, 1600, "pp")),
            ("Relevance on the object", share(0.774, 0.011, 400)),
            ("Calibration error", Estimate(0.0412, 0.0331, 0.0520, 1600)),
        ],
        sections=[
            Table(
                "Accuracy under shift",
                ["before", "after", "difference", "p (McNemar)"],
                [
                    Row(
                        name,
                        [
                            share(0.93 - 0.08 * i),
                            share(0.94 - 0.03 * i),
                            Estimate(0.01 + 0.05 * i, -0.004 + 0.05 * i, 0.024 + 0.05 * i, 1600, "pp"),
                            "< 0.001" if i else "0.21",
                        ],
                    )
                    for i, name in enumerate(shifts)
                ],
                "Share of images whose most likely class is the right one. Both models saw the same images.",
                "data",
            ),
            Figure(
                "Before and after",
                "Dots are estimates, lines their 95% intervals. The paired differences are in the table.",
                plots.intervals(
                    [
                        (
                            name,
                            [
                                ("before", share(0.93 - 0.08 * i)),
                                ("after", share(0.94 - 0.03 * i) if i != 4 else Estimate(NAN, NAN, NAN, 0)),
                            ],
                        )
                        for i, name in enumerate(shifts)
                    ],
                    "Accuracy before and after, by kind of shift",
                ),
            ),
            Table(
                "Where the relevance lies",
                [
                    "images",
                    "on the object, before",
                    "on the object, after",
                    "pointing game, before",
                    "pointing game, after",
                    "deletion AUC",
                ],
                [
                    Row(
                        name,
                        [
                            400,
                            share(0.41, 0.02, 400),
                            share(0.77, 0.02, 400),
                            share(0.52, 0.05, 400),
                            share(0.9, 0.03, 400),
                            Estimate(0.312, 0.291, 0.334, 400) if name != "fish" else Estimate(NAN, NAN, NAN, 0),
                        ],
                        "masks from the data set" if name == "beetle" else "",
                    )
                    for name in ("beetle", "bird", "butterfly", "fish")
                ],
                "Share of the relevance map that falls inside the object's mask (GAE maps for the true class).",
                "class",
            ),
            Figure(
                "Is its confidence deserved?",
                "On the dashed line, of the images held with 80% confidence 80% are right.",
                plots.reliability(
                    np.linspace(0.35, 0.98, 8), np.linspace(0.3, 0.93, 8) ** 1.1, [12, 31, 0, 88, 130, 202, 401, 733]
                ),
            ),
            Gallery(
                "What it looks at",
                "Drawn at random (seed 0). Warm colours: relevant for the true class.",
                [example(i) for i in range(examples)],
            ),
            Figure(
                "How the repair went",
                "The epoch was chosen on validation images only.",
                plots.curves(
                    {"training": [0.6, 0.41, 0.33, 0.3, 0.29], "validation": [0.61, 0.46, 0.4, 0.42, 0.45]},
                    "Loss by epoch",
                    "loss",
                    chosen=3,
                ),
            ),
            Table(
                "Seeds",
                ["accuracy", "steps", "remark"],
                [
                    Row(
                        "a_long_" * 9 * (s == 2) + f"seed_{s}",
                        [share(0.83 + s / 300), 1200, "" if s else "shown above"],
                    )
                    for s in range(3)
                ],
            ),
        ],
        provenance={
            "Model": "timm:vit_small_patch16_224.augreg_in21k_ft_in1k",
            "Data": "clearhead demo, 1,600 test images, sha256 3f786850e387550fdab836ed7e6dc881de23001b",
            "Seed": "0",
            "Versions": "clearhead 0.1.0, torch 2.9.1, timm 1.0.22, Python 3.11.7",
            "Command": "clearhead repair timm:vit_small_patch16_224 ./demo --method relevance --epochs 5 --out runs/a",
        },
    )


def some_plots() -> dict[str, str]:
    return {
        "intervals": plots.intervals(
            [
                ("average", [("before", share(0.81)), ("after", Estimate(NAN, NAN, NAN, 0, "%"))]),
                ("worst group", [("before", share(0.42)), ("after", Estimate(0.66, NAN, NAN, 1, "%"))]),
            ],
            "Accuracy & more",
        ),
        "reliability": plots.reliability([0.4, 0.6, 0.9], [0.3, 0.5, 0.85], [10, 0, 1200]),
        "curves": plots.curves(
            {"training": [NAN, 0.5, 0.25], "validation": [0.6, 0.45, NAN]}, "Loss", "loss", chosen=2
        ),
        "heat": plots.heatmap([[0.02, -0.101], [NAN]], "Lost", ["0", "1"], "head", "pp", "layer"),
        "scatter": plots.scatter({"last": [(0.4, 0.8)], "before": [(0.6, 0.5)]}, "Heads", "follows", "accuracy"),
        "no estimates": plots.intervals([], "Nothing"),
        "no bins": plots.reliability([], [], []),
        "no lines": plots.curves({"training": [], "validation": [NAN]}, "Nothing yet", "loss"),
    }
