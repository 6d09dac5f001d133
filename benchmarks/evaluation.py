"""Is the loading of images the bottleneck of an audit? Images a second of the loader, the model and the whole.

python benchmarks/evaluation.py --data FOLDER --model MODEL [--images 256] [--workers 2]
"""

import argparse
import time
from dataclasses import replace
from pathlib import Path

import torch

from clearhead.attribution import explain_with_logits
from clearhead.data.folder import read_folder
from clearhead.data.loading import ImageDataset, loader
from clearhead.models import load_model
from clearhead.prediction.predict import predict


def main(model_name: str, data: Path, count: int, workers: int, batch_size: int) -> None:
    model = load_model(model_name)
    folder = read_folder(data, classes=model.classes, check=False)
    folder = replace(folder, samples=folder.samples[:count])
    images = ImageDataset(folder, model.preprocess)
    count = len(images)

    start = time.perf_counter()
    batches = [batch["image"] for batch in loader(images, batch_size, workers)]
    loading = count / (time.perf_counter() - start)

    inputs = [model.normalize(batch) for batch in batches]
    start = time.perf_counter()
    with torch.inference_mode():
        for batch in inputs:
            model.from_normalized(batch)
    forward = count / (time.perf_counter() - start)

    start = time.perf_counter()
    for batch in batches:
        explain_with_logits(model, batch)
    maps = count / (time.perf_counter() - start)

    start = time.perf_counter()
    predict(model, folder, batch_size=batch_size, workers=workers)
    whole = count / (time.perf_counter() - start)

    masked = sum(sample.mask is not None for sample in folder.samples)
    print(f"{model_name}, {count} images ({masked} with masks), batches of {batch_size}, {workers} workers\n")
    print("| | images/s |\n|---|---|")
    for name, rate in (
        ("loader alone", loading),
        ("model alone", forward),
        ("model and GAE map", maps),
        ("audit", whole),
    ):
        print(f"| {name} | {rate:.1f} |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--batch-size", type=int, default=32)
    options = parser.parse_args()
    main(options.model, options.data, options.images, options.workers, options.batch_size)
