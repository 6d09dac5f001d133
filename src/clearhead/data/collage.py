"""Make a data set with a known shortcut: foregrounds pasted on backgrounds that are correlated with their class.

Waterbirds (Sagawa et al. 2020) was made like this from birds and places. In train and val, a fraction `correlation` of
each class has its usual background. In test, every foreground appears once on every background: within each class the
backgrounds are equally frequent, and the images of one foreground differ only in the scene.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from clearhead.data.dataset import DataIssue, Sample, check_samples, sort_issues
from clearhead.data.folder import image_files
from clearhead.data.image_io import DataError, load_image, load_mask
from clearhead.data.writing import new_folder, require_empty, write_metadata

SPLITS = ("train", "val", "test")
FILL = (0.45, 0.75)
"""Range of the longer side of the foreground's box, as a fraction of the image's side."""
COLUMNS = ("file", "split", "background", "source", "scene")


@dataclass(frozen=True)
class _Pasting:
    """One image to make: foreground `number`, which seeds its size and position, on a scene."""

    number: int
    class_name: str
    foreground: Sample
    split: str
    background: str
    scene: Sample


def make_collage(
    out: str | Path,
    *,
    images: str | Path,
    masks: str | Path,
    backgrounds: Mapping[str, str | Path],
    classes: Mapping[str, Sequence[str]],
    pairing: Mapping[str, str],
    correlation: float = 0.95,
    size: int = 96,
    fractions: tuple[float, float, float] = (0.6, 0.15, 0.25),
    seed: int = 0,
) -> tuple[DataIssue, ...]:
    """Write the data set for ``read_folder``; return the issues with the sources.

    Foregrounds (within each source) and scenes (within each background) are divided into train, val and test before any
    pasting; identical files count once. All foregrounds are used; scenes are repeated only if a split has too few.
    Equal arguments and files give equal bytes.

    Args:
        out: the new folder, which appears when it is complete: <class>/, masks/<class>/ and metadata.csv with the
            columns file, split, background, source (the foreground's file) and scene.
        images: foregrounds, as <source>/<stem>.*.
        masks: their masks, as <source>/<stem>.png.
        backgrounds: the folder of scenes of each background.
        classes: the sources of each class.
        pairing: the usual background of each class.
        correlation: fraction of the training and validation images of a class with its usual background.
        size: side of the images in pixels.
        fractions: of the foregrounds and scenes for train, val and test.
        seed: decides everything that is random.

    Raises:
        DataError: for contradictory arguments, sources that cannot be read or are too few, or an `out` that is not
            empty or cannot be written.
    """
    out = Path(out)
    _check_arguments(classes, backgrounds, pairing, correlation, size, fractions, seed)
    require_empty(out)
    issues: list[DataIssue] = []
    rng = np.random.default_rng(seed)
    scenes = _read_scenes({name: Path(folder) for name, folder in backgrounds.items()}, fractions, rng, issues)
    foregrounds = _read_foregrounds(Path(images), Path(masks), classes, fractions, rng, issues)
    plan = _plan(foregrounds, scenes, pairing, correlation, rng)
    with new_folder(out) as partial:
        _write(partial, plan, tuple(classes), size, seed, issues)
    return sort_issues(issues)


def _check_arguments(
    classes: Mapping[str, Sequence[str]],
    backgrounds: Mapping[str, str | Path],
    pairing: Mapping[str, str],
    correlation: float,
    size: int,
    fractions: tuple[float, float, float],
    seed: int,
) -> None:
    """Raise DataError for arguments that are out of range or contradict each other."""
    if len(classes) < 2 or len(backgrounds) < 2:
        raise DataError(f"two classes and two backgrounds are needed, got {list(classes)} and {list(backgrounds)}")
    for name in [*classes, *backgrounds]:
        if name in ("", "masks", "images") or name.startswith(".") or "/" in name or "\\" in name:
            raise DataError(f"{name!r} cannot name a class or background: it would be part of a file's path")
    if len({name.casefold() for name in classes}) < len(classes):
        raise DataError(f"class names must differ by more than case, got {list(classes)}")
    sources = [source for names in classes.values() for source in names]
    if len(set(sources)) < len(sources) or not all(classes.values()):
        raise DataError(f"each class needs sources of its own, got {dict(classes)}")
    folders = [Path(folder).resolve() for folder in backgrounds.values()]
    if len(set(folders)) < len(folders):
        raise DataError(f"each background needs a folder of its own, got {list(map(str, folders))}")
    if set(pairing) != set(classes) or not set(pairing.values()) <= set(backgrounds):
        raise DataError(
            f"pairing must give each class ({', '.join(classes)}) one background ({', '.join(backgrounds)}), "
            f"got {dict(pairing)}"
        )
    if not 0 <= correlation <= 1:
        raise DataError(f"correlation must lie in 0..1, got {correlation}")
    if size < 16 or seed < 0:
        raise DataError(f"size must be at least 16 pixels and seed at least 0, got {size} and {seed}")
    if len(fractions) != 3 or min(fractions) <= 0 or abs(sum(fractions) - 1) > 1e-6:
        raise DataError(f"fractions for train, val, test must be positive and sum to 1, got {fractions}")


def _read_scenes(
    folders: Mapping[str, Path],
    fractions: tuple[float, float, float],
    rng: np.random.Generator,
    issues: list[DataIssue],
) -> dict[tuple[str, str], list[Sample]]:
    """Return the scenes of each (split, background), shuffled."""
    scenes: dict[tuple[str, str], list[Sample]] = {}
    seen: set[str] = set()
    for name, folder in folders.items():
        samples = [Sample(f"{name}/{path.name}", path, 0, None, {}) for path in image_files(folder)]
        parts = _divide(_usable(samples, seen, issues), fractions, rng, f"usable scenes of {name} in {folder}")
        scenes |= {(split, name): part for split, part in zip(SPLITS, parts, strict=True)}
    return scenes


def _read_foregrounds(
    images: Path,
    masks: Path,
    classes: Mapping[str, Sequence[str]],
    fractions: tuple[float, float, float],
    rng: np.random.Generator,
    issues: list[DataIssue],
) -> dict[tuple[str, str], list[Sample]]:
    """Return the foregrounds of each (split, class), shuffled; those without a usable mask become issues."""
    foregrounds: dict[tuple[str, str], list[Sample]] = {(split, name): [] for name in classes for split in SPLITS}
    seen: set[str] = set()
    for name, sources in classes.items():
        for source in sources:
            samples = []
            paths = image_files(images / source)
            stems = [path.stem for path in paths]
            for path in paths:
                file, mask = f"{source}/{path.name}", masks / source / f"{path.stem}.png"
                if stems.count(path.stem) > 1:
                    detail = f"several images share the mask {mask.name}"
                    issues.append(DataIssue(file, "duplicate-name", detail, "skipped"))
                elif not mask.is_file():
                    issues.append(DataIssue(file, "no-mask", f"{mask} does not exist", "skipped"))
                else:
                    samples.append(Sample(file, path, 0, mask, {}))
            parts = _divide(_usable(samples, seen, issues), fractions, rng, f"usable foregrounds in {images / source}")
            for split, part in zip(SPLITS, parts, strict=True):
                foregrounds[split, name] += part
    for group in foregrounds.values():
        group[:] = [group[i] for i in rng.permutation(len(group))]
    return foregrounds


def _usable(samples: list[Sample], seen: set[str], issues: list[DataIssue]) -> list[Sample]:
    """Return the samples that decode, mask included, and whose bytes are not among those `seen` before."""
    decoded, new_issues = check_samples(samples)
    issues += [replace(issue, action="skipped") for issue in new_issues]
    broken = {issue.file for issue in new_issues}
    unique = []
    for sample in decoded:
        digest = hashlib.sha256(sample.image_file.read_bytes()).hexdigest()
        if digest in seen:
            issues.append(DataIssue(sample.file, "duplicate-image", "identical to an earlier file", "skipped"))
        elif sample.file not in broken:
            unique.append(sample)
            seen.add(digest)
    return unique


def _divide(
    samples: list[Sample], fractions: tuple[float, float, float], rng: np.random.Generator, what: str
) -> list[list[Sample]]:
    """Shuffle samples and divide them by `fractions`. Raises DataError if a part would be empty."""
    edges = [0, *np.round(np.cumsum(fractions) * len(samples)).astype(int).tolist()]
    order = rng.permutation(len(samples)).tolist()
    parts = [[samples[i] for i in order[start:stop]] for start, stop in pairwise(edges)]
    if not all(parts):
        raise DataError(f"{len(samples)} {what} are too few for fractions {fractions} of train, val and test")
    return parts


def _plan(
    foregrounds: Mapping[tuple[str, str], list[Sample]],
    scenes: Mapping[tuple[str, str], list[Sample]],
    pairing: Mapping[str, str],
    correlation: float,
    rng: np.random.Generator,
) -> list[_Pasting]:
    """Pair foregrounds with scenes."""
    backgrounds = list(dict.fromkeys(background for _, background in scenes))
    supply = {key: _cycle(part, rng) for key, part in scenes.items()}
    plan = []
    number = 0
    for (split, name), samples in foregrounds.items():
        usual = pairing[name]
        others = [background for background in backgrounds if background != usual]
        matching = round(correlation * len(samples))
        for i, sample in enumerate(samples):
            single = usual if i < matching else others[(i - matching) % len(others)]
            for background in backgrounds if split == "test" else [single]:
                scene = next(supply[split, background])
                plan.append(_Pasting(number, name, sample, split, background, scene))
            number += 1
    return plan


def _cycle(scenes: list[Sample], rng: np.random.Generator) -> Iterator[Sample]:
    """Yield the scenes endlessly, in a new random order on each pass."""
    while True:
        for i in rng.permutation(len(scenes)):
            yield scenes[i]


def _write(
    folder: Path, plan: list[_Pasting], classes: tuple[str, ...], size: int, seed: int, issues: list[DataIssue]
) -> None:
    """Paste and save every image of the plan with its mask, and metadata.csv."""
    for name in classes:
        (folder / name).mkdir()
        (folder / "masks" / name).mkdir(parents=True)
    rows = []
    for number, group in groupby(plan, key=lambda pasting: pasting.number):
        pastings = list(group)
        foreground = pastings[0].foreground
        cutout = _cut_out(foreground, size, np.random.default_rng([seed, number]))
        mask = cutout[..., 3] >= 127.5
        if not mask.any():
            detail = f"nothing is left of the foreground at {size} pixels"
            issues.append(DataIssue(foreground.file, "mask-empty", detail, "skipped"))
            continue
        for pasting in pastings:
            scene = np.asarray(_square(load_image(pasting.scene.path), size), dtype=np.float32)
            image = cutout[..., :3] + scene * (1 - cutout[..., 3:] / 255)
            file = f"{pasting.class_name}/{number:05d}_{pasting.background}.png"
            Image.fromarray(image.round().clip(0, 255).astype(np.uint8)).save(folder / file)
            Image.fromarray(mask.astype(np.uint8) * 255).save(folder / "masks" / file)
            rows.append((file, pasting.split, pasting.background, foreground.file, pasting.scene.file))
    write_metadata(folder, COLUMNS, rows)


def _cut_out(sample: Sample, size: int, rng: np.random.Generator) -> npt.NDArray[np.float32]:
    """Return the foreground at a random size and position: size x size x 4, RGB times alpha, and alpha, in 0..255.

    Colours are multiplied by the mask before scaling, so that the old background does not bleed into the edges.
    """
    assert sample.mask is not None
    image, mask = load_image(sample.path), load_mask(sample.mask)
    x0, y0, x1, y1 = mask.getbbox() or (0, 0, *mask.size)
    scale = rng.uniform(*FILL) * size / max(x1 - x0, y1 - y0)
    margin = int(np.ceil(1 / scale)) if scale < 1 else 0  # room for the antialiased edge
    box = (x0 - margin, y0 - margin, x1 + margin, y1 + margin)
    alpha = np.asarray(mask.crop(box), dtype=np.float32)
    source = np.dstack([np.asarray(image.crop(box), dtype=np.float32) * (alpha[..., None] / 255), alpha])
    width, height = (max(1, round(side * scale)) for side in (source.shape[1], source.shape[0]))
    x, y = rng.integers(size - width, endpoint=True), rng.integers(size - height, endpoint=True)
    cutout = np.zeros((size, size, 4), dtype=np.float32)
    for channel in range(4):
        scaled = Image.fromarray(source[..., channel]).resize((width, height), Image.Resampling.BILINEAR)
        cutout[y : y + height, x : x + width, channel] = np.asarray(scaled)
    return cutout


def _square(image: Image.Image, size: int) -> Image.Image:
    """Return the central square of an image at size x size, bicubic."""
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.resize((size, size), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side))
