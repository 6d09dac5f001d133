"""How long corruptions take, against the published code, image by image.

    python -m pip install imagecorruptions-imaug==1.1.5 opencv-python-headless
    python benchmarks/corruptions.py [TYPE ...]

A batch of images of 224 px on the CPU, severities 1 and 5. The peer is the package imagecorruptions-imaug, the
published code made to run on today's libraries (its glass blur is compiled, its motion blur is NumPy instead of
ImageMagick); it is given the same images, one after the other, as it wants them. It works in float64 and returns 8
bits, we in float32.

The floor is one pass over the images, a product and a cut-off, about 0.2 ms an image: every type reads and writes all
pixels at least once. Noise needs a random number a value on top, blur 2 to 50 multiplications. The target is the peer's
time.
"""

import argparse

import clearhead  # noqa: F401  (before timm and torchvision)

# isort: split
import numpy as np
import torch
from scipy import ndimage
from timing import seconds

from clearhead.shifts.corruptions import CORRUPTIONS
from clearhead.shifts.sets import generators

try:
    from imagecorruptions import corrupt
except ImportError:
    corrupt = None


def random_images(count: int, size: int) -> np.ndarray:
    """Smooth coloured images with some texture, 8 bits, B x H x W x 3."""
    rng = np.random.default_rng(0)
    rough = rng.normal(size=(count, size, size, 3))
    smooth = ndimage.gaussian_filter(rough, (0, 12, 12, 0), mode="wrap")
    return (128 + 60 * smooth / smooth.std() + 12 * rough).clip(0, 255).astype(np.uint8)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("types", nargs="*", default=list(CORRUPTIONS), help="corruption types; all without")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()

    arrays = random_images(arguments.batch_size, 224)
    images = torch.from_numpy(arrays).permute(0, 3, 1, 2).float().div_(255).contiguous()
    drawn = generators(0, range(len(images)))
    print(f"{torch.get_num_threads()} threads, batches of {len(images)}; ms an image\n")
    if corrupt is None:
        print("imagecorruptions is not installed: the published code is not timed\n")
    print("| type | severity | ours | published | ratio |\n|---|---|---|---|---|")
    floor = seconds({"floor": lambda: images.mul(0.5).clamp_(0, 1)})["floor"] / len(images)
    print(f"| floor | | {1e3 * floor:.2f} | | |")
    for name in arguments.types:
        for severity in (1, 5):
            candidates = {"ours": lambda name=name, severity=severity: CORRUPTIONS[name](images, severity, drawn)}
            if corrupt is not None:
                candidates["published"] = lambda name=name, severity=severity: [
                    corrupt(array, corruption_name=name, severity=severity) for array in arrays
                ]
            times = {who: 1e3 * spent / len(images) for who, spent in seconds(candidates, arguments.rounds).items()}
            published = f"{times['published']:.2f} | {times['ours'] / times['published']:.2f}" if corrupt else "|"
            print(f"| {name} | {severity} | {times['ours']:.2f} | {published} |", flush=True)
