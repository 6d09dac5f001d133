"""Measure which part of the repair does the work, with the demo's model on the demo's images of another seed.

Each variant is shown after the epoch with the lowest validation loss, and after the last epoch.

python scripts/demo_ablation.py --out /tmp/ablation
"""

import argparse
import copy
from dataclasses import replace
from pathlib import Path

from safetensors.torch import load_file

from clearhead.analyses.audit import Audit, summarize
from clearhead.data.folder import read_folder
from clearhead.demo.data import make_demo
from clearhead.demo.run import LOSS, MODEL, settings
from clearhead.metrics.statistics import Estimate, format_interval, format_value
from clearhead.models import Classifier, load_model
from clearhead.prediction.predict import predict
from clearhead.training.loop import best_epoch, fit

GAE = replace(LOSS, attribution="gae")  # the map of the published table

VARIANTS = {
    "plain training": replace(GAE, relevance=0.0, classification=1.0, background_swap=0.0),
    "relevance": replace(GAE, background_swap=0.0),
    "background swap": replace(GAE, relevance=0.0, classification=1.0),
    "relevance and background swap": GAE,
}


def formatted(estimate: Estimate) -> str:
    """Return a number with its interval."""
    return f"{format_value(estimate.value, estimate.unit)} {format_interval(estimate)}"


def main(out: Path) -> None:
    """Print a table of the variants, each trained as the demo trains."""
    if not (out / "metadata.csv").exists():
        make_demo(out, seed=1)
    model, config = load_model(str(MODEL)), settings()
    train, validation, test = (read_folder(out, split=s, classes=model.classes) for s in ("train", "val", "test"))

    def measured(classifier: Classifier) -> Audit:
        return summarize(predict(classifier, test, batch_size=100), model.classes)

    print("| | epoch | average | worst group | foreground relevance |\n|---|---|---|---|---|")
    results = [("original model", "", measured(model))]
    for name, loss in VARIANTS.items():
        state = out / "state" / name
        trained, history = fit(model, loss, train, validation, config, state)
        last = copy.deepcopy(model.module)
        last.load_state_dict(load_file(state / "model.safetensors"))
        best = best_epoch(history).number
        results.append((name, f"{best}, best", measured(trained)))
        if best < config.epochs:
            results.append((name, f"{config.epochs}, the last", measured(replace(model, module=last.eval()))))
    for name, epoch, audit in results:
        if audit.worst_group and audit.relevance_mass:
            cells = (audit.accuracy, audit.worst_group[1], audit.relevance_mass)
            print(f"| {name} | {epoch} | {' | '.join(formatted(cell) for cell in cells)} |", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    main(parser.parse_args().out)
