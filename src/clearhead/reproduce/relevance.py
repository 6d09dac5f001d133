"""Relevance repair: tables 4 to 9 of arXiv 2206.01161 on your copies of its data, ours beside the paper's.

One study (``clearhead.study``): 3 images of each of 500 ImageNet classes with masks, 414 images of other classes to
select the epoch, 50 epochs, the settings of the model's preset; each test set before and after, over class seeds.
Differences from the public code: the model keeps its own preprocessing (the code has mean and standard deviation 0.5
for all), GradMask and RRR have a gradient (at a weight of 1, as we do not have the paper's), and the best epoch can be
the original model.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clearhead.errors import ClearheadError
from clearhead.metrics.statistics import format_interval, format_value
from clearhead.progress import Progress
from clearhead.repairs import PRESETS, preset_named
from clearhead.study.repairs import Method, Plan, StudyRow, run_study

PAPER = {
    "ViT-B": {
        "INet": (81.5, 80.3), "A": (16.0, 23.6), "R": (33.8, 36.1), "Sketch": (35.4, 36.3), "v2": (71.1, 70.1),
        "ObjNet": (35.1, 41.7), "SI-loc": (33.3, 38.6), "SI-rot": (39.1, 46.1), "SI-size": (55.6, 60.9),
    },
    "AR-B": {
        "INet": (84.4, 83.0), "A": (23.9, 30.9), "R": (41.0, 45.3), "Sketch": (43.1, 44.9), "v2": (73.8, 73.3),
        "ObjNet": (41.4, 47.0), "SI-loc": (40.5, 43.8), "SI-rot": (48.1, 54.7), "SI-size": (60.6, 64.6),
    },
    "DeiT-B": {
        "INet": (80.8, 80.6), "A": (12.9, 17.2), "R": (30.9, 32.7), "Sketch": (31.2, 31.2), "v2": (69.7, 69.3),
        "ObjNet": (31.4, 35.9), "SI-loc": (34.5, 37.0), "SI-rot": (39.3, 43.3), "SI-size": (54.6, 58.3),
    },
}  # fmt: skip
"""Top-1 in %, original and repaired, by the paper's names of model and test set (supplement, table 4)."""

METHODS: dict[str, dict[str, Any]] = {
    "relevance": {"method": "relevance"},
    "GradMask": {"method": "gradmask"},
    "RRR": {"method": "rrr"},
    "fine-tuning": {"method": "train"},
}
ABLATIONS: dict[str, dict[str, Any]] = {
    "without background": {"background": 0},
    "without foreground": {"foreground": 0},
    "without classification": {"classification": 0},
    "true labels": {"target": "truth"},
    "rollout": {"attribution": "rollout"},
    "attention": {"attribution": "attention"},
}
"""Tables 8 and 9: relevance with one thing changed."""


def plan_of(
    name: str,
    images: Path,
    tests: Mapping[str, Path],
    *,
    weights: str | None = None,
    ablations: bool = False,
    seeds: int = 3,
    epochs: int | None = None,
) -> Plan:
    """Return the paper's experiment as a plan.

    Args:
        name: the paper's name of the model, a key of ``PRESETS``.
        images: ImageNet images to train on, in folders by WordNet id, with masks/.
        tests: test sets by name, in folders by WordNet id.
        weights: the model's name as for ``load_model``; by default timm's weights of the preset.
        ablations: also change one part of relevance after another.
        seeds: number of class seeds.
        epochs: in place of the paper's 50.

    Raises:
        ClearheadError: for another name, or one that timm has no weights for.
    """
    preset = preset_named(name)
    if weights is None and preset.weights is None:
        names = ", ".join(known for known, preset in PRESETS.items() if preset.weights)
        raise ClearheadError(f"model: timm has no weights of {name}; name yours with --weights, or choose from {names}")
    ours = METHODS["relevance"] | ({"temperature": preset.temperature} if preset.temperature else {})
    methods = METHODS | {"relevance": ours}
    if ablations:
        methods |= {f"relevance, {what}": ours | change for what, change in ABLATIONS.items()}
    return Plan(
        model=weights or f"timm:{preset.weights}",
        data=images,
        tests=dict(tests),
        methods={method: Method.model_validate(terms) for method, terms in methods.items()},
        seeds=list(range(seeds)),
        epochs=epochs or preset.epochs,
        lr=preset.lr,
    )


def reproduce(
    name: str,
    plan: Plan,
    out: Path,
    *,
    jobs: int = 1,
    device: str | None = None,
    progress: Progress | None = None,
) -> str:
    """Run what is not finished below `out`, and return the table (Markdown). Arguments and errors as ``run_study``."""
    return table(name, run_study(plan, out, jobs=jobs, device=device, progress=progress))


def table(name: str, rows: list[StudyRow]) -> str:
    """Return a row for each method, test set and measure, with the paper's accuracy from ``PAPER`` (Markdown)."""
    lines = [
        "| method | test | measure | before | after | change | paper | seeds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        paper = PAPER.get(name, {}).get(row.test) if (row.name, row.measure) == ("relevance", "accuracy") else None
        after = f"{100 * row.after:.1f}" + (f" ± {100 * row.spread:.1f}" if row.spread is not None else "")
        change = f"{format_value(row.change.value, 'pp')} {format_interval(row.change)}"
        published = f"{paper[0]:.1f} → {paper[1]:.1f}" if paper else ""
        cells = [row.name, row.test, row.measure, f"{100 * row.before:.1f}", after, change, published, str(row.seeds)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
