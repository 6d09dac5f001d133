"""What does clearhead evaluate cost beyond the model itself? Decoding, preprocessing, the model, and the whole.

python benchmarks/suites.py --data FOLDER --model MODEL [--images 128] [--workers 0]

The floor is the model's own forward passes on batches that are there. Rounds are interleaved. Where loader processes
and the model share the cores, as on a CPU, loading cannot be hidden behind the model: the floor is then their sum.
"""

import argparse
import shutil
import statistics
import tempfile
import time
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import torch

from clearhead.data.folder import read_folder
from clearhead.data.image_io import load_image
from clearhead.models import load_model
from clearhead.prediction.suite_predictions import predict_suite
from clearhead.shifts.sets import ShiftedDataset, identity_mapping


def main(name: str, data: Path, count: int, workers: int, batch_size: int, rounds: int) -> None:
    model = load_model(name)
    folder = read_folder(data, classes=model.classes, check=False)
    folder = replace(folder, samples=folder.samples[:count])
    one = ShiftedDataset("clean", folder, {"all": identity_mapping(len(model.classes))})
    spent: dict[str, list[float]] = defaultdict(list)
    for number in range(rounds + 1):
        out = Path(tempfile.mkdtemp())
        start = time.perf_counter()
        decoded_images = [load_image(sample.path) for sample in folder.samples]
        decoded = time.perf_counter()
        images = torch.stack([model.preprocess.image(image) for image in decoded_images])
        images = model.normalize(images)
        prepared = time.perf_counter()
        with torch.inference_mode():
            for batch in images.split(batch_size):
                model.from_normalized(batch)
        passed = time.perf_counter()
        predict_suite(model, [one], out, batch_size=batch_size, workers=workers)
        whole = time.perf_counter()
        shutil.rmtree(out)
        if number:  # the first round warms up
            times = {"decoding": decoded - start, "preprocessing": prepared - decoded, "model": passed - prepared}
            for what, seconds in (times | {"evaluate": whole - passed}).items():
                spent[what].append(seconds / count)
    medians = {what: statistics.median(values) for what, values in spent.items()}
    print(f"{name}, {count} images of {data.name}, batches of {batch_size}, {workers} workers, {rounds} rounds\n")
    print("| | ms an image | ratio to the model |\n|---|---|---|")
    for what, seconds in medians.items():
        print(f"| {what} | {1000 * seconds:.2f} | {seconds / medians['model']:.3f} |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    main(options.model, options.data, options.images, options.workers, options.batch_size, options.rounds)
