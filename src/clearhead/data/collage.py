"""Make a set with a known shortcut: cut-out foregrounds on backgrounds that usually, not always, fit their class.

As Waterbirds (Sagawa et al. 2020) was made from birds and places. In train and val a fraction `correlation` of each
class stands on its usual background; in test every foreground stands once on every kind of background, so that within
each class the backgrounds are equally frequent and a foreground's pictures differ in nothing but the scene.
"""

import csv
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, pairwise
from pathlib import Path

import numpy as np
from PIL import Image

from clearhead.data.dataset import DataIssue, Sample, check_samples
from clearhead.data.folder import image_files
from clearhead.data.image_io import DataError, load_image, load_mask
from clearhead.data.writing import new_folder

SPLITS = ("train", "val", "test")
FILL = (0.45, 0.75)  # longer side of the foreground's box, as a fraction of the picture's side
COLUMNS = ("file", "split", "background", "source", "scene")


@dataclass(frozen=True)
class _Pasting:
    """One picture to make: foreground `number` (it seeds size and place) on a scene."""

    number: int
    name: str  # the output class
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
    """Write a set of `size` x `size` pictures to `out`; return what of the sources was left out.

    Foregrounds are `images`/<source>/<stem>.* with `masks`/<source>/<stem>.png; `classes` gives the sources of each
    output class, `backgrounds` the folder of scenes of each kind, `pairing` the usual kind of each class. Foregrounds
    (within each source) and scenes (within each kind) are divided by `fractions` into train, val and test before any
    pasting; identical files count once. All foregrounds are used; scenes recur only when a split has too few.

    Leaves <class>/, masks/<class>/ and metadata.csv (file, split, background, source, scene) that ``read_folder``
    reads. `out` appears when it is complete; equal arguments and files give equal bytes. Raises DataError.
    """
    out = Path(out)
    _require_settings(classes, backgrounds, pairing, correlation, size, fractions, seed)
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise DataError(f"{out} exists and is not an empty folder; choose another or remove it")
    issues: list[DataIssue] = []
    rng = np.random.default_rng(seed)
    scenes = _scenes({kind: Path(folder) for kind, folder in backgrounds.items()}, fractions, rng, issues)
    foregrounds = _foregrounds(Path(images), Path(masks), classes, fractions, rng, issues)
    plan = _plan(foregrounds, scenes, pairing, correlation, rng)
    with new_folder(out) as partial:
        _write(partial, plan, tuple(classes), size, seed, issues)
    return tuple(sorted(issues, key=lambda p: (p.file, p.category)))


def _require_settings(
    classes: Mapping[str, Sequence[str]],
    backgrounds: Mapping[str, str | Path],
    pairing: Mapping[str, str],
    correlation: float,
    size: int,
    fractions: tuple[float, float, float],
    seed: int,
) -> None:
    """Raise DataError for arguments that contradict each other."""
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


def _scenes(
    folders: Mapping[str, Path],
    fractions: tuple[float, float, float],
    rng: np.random.Generator,
    issues: list[DataIssue],
) -> dict[tuple[str, str], list[Sample]]:
    """The scenes of each (split, kind), shuffled."""
    scenes: dict[tuple[str, str], list[Sample]] = {}
    seen: set[str] = set()
    for kind, folder in folders.items():
        found = [Sample(f"{kind}/{path.name}", path, 0, None, {}) for path in image_files(folder)]
        parts = _divide(_usable(found, seen, issues), fractions, rng, f"usable scenes of {kind} in {folder}")
        scenes |= {(split, kind): part for split, part in zip(SPLITS, parts, strict=True)}
    return scenes


def _foregrounds(
    images: Path,
    masks: Path,
    classes: Mapping[str, Sequence[str]],
    fractions: tuple[float, float, float],
    rng: np.random.Generator,
    issues: list[DataIssue],
) -> dict[tuple[str, str], list[Sample]]:
    """The foregrounds of each (split, class), shuffled; those without a usable mask go to `problems`."""
    foregrounds: dict[tuple[str, str], list[Sample]] = {(split, name): [] for name in classes for split in SPLITS}
    seen: set[str] = set()
    for name, sources in classes.items():
        for source in sources:
            found = []
            paths = image_files(images / source)
            stems = [path.stem for path in paths]
            for path in paths:
                file, mask = f"{source}/{path.name}", masks / source / f"{path.stem}.png"
                if stems.count(path.stem) > 1:
                    detail = f"several images would share the mask {mask.name}"
                    issues.append(DataIssue(file, "duplicate-name", detail, "skipped"))
                elif not mask.is_file():
                    issues.append(DataIssue(file, "no-mask", f"{mask} does not exist", "skipped"))
                else:
                    found.append(Sample(file, path, 0, mask, {}))
            parts = _divide(_usable(found, seen, issues), fractions, rng, f"usable foregrounds in {images / source}")
            for split, part in zip(SPLITS, parts, strict=True):
                foregrounds[split, name] += part
    for samples in foregrounds.values():
        samples[:] = [samples[i] for i in rng.permutation(len(samples))]
    return foregrounds


def _usable(samples: list[Sample], seen: set[str], issues: list[DataIssue]) -> list[Sample]:
    """The samples that decode, mask included, and whose bytes were not `seen` before."""
    kept, found = check_samples(samples)
    issues += [replace(issue, action="skipped") for issue in found]
    broken = {issue.file for issue in found}
    fresh = []
    for sample in kept:
        digest = hashlib.sha256(sample.image_file.read_bytes()).hexdigest()
        if digest in seen:
            issues.append(DataIssue(sample.file, "duplicate-image", "identical to an earlier file", "skipped"))
        elif sample.file not in broken:
            fresh.append(sample)
            seen.add(digest)
    return fresh


def _divide(
    samples: list[Sample], fractions: tuple[float, float, float], rng: np.random.Generator, what: str
) -> list[list[Sample]]:
    """Shuffle samples and cut them by `fractions`; raise DataError where a part would be empty."""
    edges = [0, *np.round(np.cumsum(fractions) * len(samples)).astype(int).tolist()]
    order = rng.permutation(len(samples)).tolist()
    parts = [[samples[i] for i in order[start:stop]] for start, stop in pairwise(edges)]
    if not all(parts):
        raise DataError(f"{len(samples)} {what} are too few for train, val and test of {fractions}")
    return parts


def _plan(
    foregrounds: Mapping[tuple[str, str], list[Sample]],
    scenes: Mapping[tuple[str, str], list[Sample]],
    pairing: Mapping[str, str],
    correlation: float,
    rng: np.random.Generator,
) -> list[_Pasting]:
    """Which foreground goes on which scene."""
    kinds = list(dict.fromkeys(kind for _, kind in scenes))
    supply = {key: _again(part, rng) for key, part in scenes.items()}
    plan = []
    number = 0
    for (split, name), samples in foregrounds.items():
        usual = pairing[name]
        others = [kind for kind in kinds if kind != usual]
        fitting = round(correlation * len(samples))
        for i, sample in enumerate(samples):
            one = usual if i < fitting else others[(i - fitting) % len(others)]
            for kind in kinds if split == "test" else [one]:
                plan.append(_Pasting(number, name, sample, split, kind, next(supply[split, kind])))
            number += 1
    return plan


def _again(scenes: list[Sample], rng: np.random.Generator) -> Iterator[Sample]:
    """The scenes without end, each once before any comes again."""
    while True:
        for i in rng.permutation(len(scenes)):
            yield scenes[i]


def _write(
    folder: Path, plan: list[_Pasting], classes: tuple[str, ...], size: int, seed: int, issues: list[DataIssue]
) -> None:
    """Paste and save every picture of the plan with its mask, and metadata.csv."""
    for name in classes:
        (folder / name).mkdir()
        (folder / "masks" / name).mkdir(parents=True)
    with (folder / "metadata.csv").open("w", encoding="utf-8", newline="") as opened:
        table = csv.writer(opened)
        table.writerow(COLUMNS)
        for number, pastings in groupby(plan, key=lambda pasting: pasting.number):
            premultiplied = None
            for pasting in pastings:
                if premultiplied is None:  # once for all scenes of a foreground: same size, same place
                    premultiplied = _cut(pasting.foreground, size, np.random.default_rng([seed, number]))
                    mask = premultiplied[..., 3] >= 127.5
                if not mask.any():
                    detail = f"nothing is left of the foreground at {size} pixels"
                    issues.append(DataIssue(pasting.foreground.file, "mask-empty", detail, "skipped"))
                    break
                scene = np.asarray(_square(load_image(pasting.scene.path), size), dtype=np.float32)
                picture = premultiplied[..., :3] + scene * (1 - premultiplied[..., 3:] / 255)
                file = f"{pasting.name}/{number:05d}_{pasting.background}.png"
                Image.fromarray(picture.round().clip(0, 255).astype(np.uint8)).save(folder / file)
                Image.fromarray(mask.astype(np.uint8) * 255).save(folder / "masks" / file)
                table.writerow((file, pasting.split, pasting.background, pasting.foreground.file, pasting.scene.file))


def _cut(sample: Sample, size: int, rng: np.random.Generator) -> np.ndarray:
    """The foreground at a random size and place: size x size x 4, colours times alpha and alpha, all in 0..255.

    Colours are scaled multiplied by the mask, so that nothing of the old background bleeds into the edges.
    """
    assert sample.mask is not None
    image, mask = load_image(sample.path), load_mask(sample.mask)
    left, top, right, bottom = mask.getbbox() or (0, 0, *mask.size)
    scale = rng.uniform(*FILL) * size / max(right - left, bottom - top)
    margin = int(np.ceil(1 / scale)) if scale < 1 else 0  # room for the antialiased edge
    box = (left - margin, top - margin, right + margin, bottom + margin)
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
    """The middle square of an image at size x size, bicubic."""
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.resize((size, size), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side))
