"""Which part of the repair does the work? The demo's model on the demo's pictures of another seed.

Each variant is shown as it was after the epoch that its validation loss keeps, and after the last epoch.

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

VARIANTS = {
    "plain training": replace(LOSS, relevance=0.0, classification=1.0, background_swap=0.0),
    "relevance": replace(LOSS, background_swap=0.0),
    "background swap": replace(LOSS, relevance=0.0, classification=1.0),
    "relevance and background swap (the demo)": LOSS,
}


def said(estimate: Estimate) -> str:
    """A number with its interval."""
    return f"{format_value(estimate.value, estimate.unit)} {format_interval(estimate)}"


def main(out: Path) -> None:
    """Print a table of the variants, each trained as the demo trains."""
    if not (out / "metadata.csv").exists():
        make_demo(out, seed=1)
    model, config = load_model(str(MODEL)), settings()
    train, validation, test = (read_folder(out, split=s, classes=model.classes) for s in ("train", "val", "test"))

    def numbers(found: Classifier) -> Audit:
        return summarize(predict(found, test, batch_size=100), model.classes)

    print("| | epoch | average | worst group | foreground relevance |\n|---|---|---|---|---|")
    results = [("as it ships", "", numbers(model))]
    for name, loss in VARIANTS.items():
        state = out / "state" / name
        trained, history = fit(model, loss, train, validation, config, state)
        last = copy.deepcopy(model.module)
        last.load_state_dict(load_file(state / "model.safetensors"))
        kept = best_epoch(history).number
        results.append((name, f"{kept}, kept", numbers(trained)))
        if kept < config.epochs:
            results.append((name, f"{config.epochs}, the last", numbers(replace(model, module=last.eval()))))
    for name, kept, found in results:
        if found.worst_group and found.relevance_mass:
            cells = (found.accuracy, found.worst_group[1], found.relevance_mass)
            print(f"| {name} | {kept} | {' | '.join(said(cell) for cell in cells)} |", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    main(parser.parse_args().out)
