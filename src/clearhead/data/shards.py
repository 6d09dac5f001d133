"""Read images from Parquet files, WebDataset shards and arrays, on disk or behind a URL, without copying them.

A sample knows where its image is stored (``clearhead.data.image_refs``) and reads only that when it is loaded.

============= ======================================== ======================== =================================
source        images and labels                        class names              read while listing the samples
============= ======================================== ======================== =================================
Parquet       a column image, img, jpg or png (bytes,  the Hub's metadata, or   the labels; with `check` all
              or a struct with them) and one of label, names.txt, classnames.txt
              fine_label, labels, cls                  beside or one level up
WebDataset    {key}.jpg (jpeg, png, webp) with         the labels if they are   every shard from end to end,
              {key}.cls, or the label in {key}.json    text, or as above        decoded in passing with `check`
MedMNIST      an .npz file with {split}_images and     as above                 all
              {split}_labels
============= ======================================== ======================== =================================

Issues are listed in ``ImageIndex.issues``, with these categories besides those of ``clearhead.data.folder``:

=============== ============================================================= =======
no-label        no label, or -1, which the Hub uses for unpublished labels    skipped
label-range     the label is not an index of a class                          skipped
no-image        a key of a tar shard has no image                             skipped
unreadable-json {key}.json is not JSON                                        skipped
=============== ============================================================= =======
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from clearhead.data.dataset import (
    DataIssue,
    ImageIndex,
    Sample,
    check_samples,
    format_names,
    require_samples,
    sort_issues,
)
from clearhead.data.folder import image_files, normalize_name, wordnet_ids
from clearhead.data.image_io import DataError
from clearhead.data.image_refs import clear_caches
from clearhead.data.shard_files import Entry, Shard, npz_splits, read_shard, reading

HUB = "hf-dataset:"
_SUFFIXES = (".parquet", ".tar", ".npz")
_NAME_FILES = ("names.txt", "classnames.txt")
_SPLITS = {"training": "train", "validation": "val", "valid": "val", "dev": "val", "testing": "test", "eval": "test"}


def read_sharded(
    source: str | Path, *, split: str | None = None, classes: Sequence[str] | None = None, check: bool = True
) -> ImageIndex:
    """Read images from Parquet, tar or .npz files; arguments and errors as in ``clearhead.data.images.read_images``."""
    clear_caches()
    shards = _select_split(source, _list_shards(source), split)
    with ThreadPoolExecutor(8) as pool:
        contents = list(pool.map(lambda shard: read_shard(shard, check), shards))
    entries = [entry for content in contents for entry in content.entries]
    issues = [issue for content in contents for issue in content.issues]
    if not entries and not issues:
        raise DataError(f"{source}: its {len(shards)} files have no images")
    names = next((content.names for content in contents if content.names), None)
    names, samples = _assign_labels(str(source), entries, names or _read_names_file(shards), classes, issues)
    if check and shards[0].suffix != ".tar":  # images in tar files were decoded in passing
        samples, decoding = check_samples(samples)
        issues += decoding
    require_samples(source, samples, issues)
    return ImageIndex(Path(source), names, tuple(samples), sort_issues(issues))


def splits_in(source: str | Path) -> set[str]:
    """Return the splits named by the files of a sharded source; none if there are fewer than two. Raises DataError."""
    splits = {shard.split for shard in _list_shards(source)} - {""}
    return splits if len(splits) > 1 else set()


def is_sharded(source: str | Path) -> bool:
    """Return whether a source is something other than a folder of class folders."""
    text = str(source)
    if text.startswith(HUB) or "://" in text or text.endswith(_SUFFIXES):
        return True
    folder = Path(source)
    if not folder.is_dir():
        return any(character in text for character in "*{[") and not folder.exists()
    folders = [entry for top in (folder, folder / "images") if top.is_dir() for entry in top.iterdir()]
    if any(entry.is_dir() and image_files(entry) for entry in folders):
        return False
    return next(_find_shards(folder), None) is not None


def normalize_split(split: str) -> str:
    """Return the standard name of a split: ``validation``, ``valid`` and ``dev`` are ``val``."""
    return _SPLITS.get(split.lower(), split.lower())


def _list_shards(source: str | Path) -> list[Shard]:
    """Return the files of a source, sorted. Raises DataError if there is none, or several formats."""
    text = str(source)
    with reading(text):
        if text.startswith(HUB):
            fs, base, paths = _hub_files(text)
        elif "://" not in text and Path(text).is_dir():
            folder = Path(text).absolute()
            fs, base, paths = LocalFileSystem(), folder.as_posix(), [path.as_posix() for path in _find_shards(folder)]
        else:
            fs, base, paths = _resolve(text)
        suffixes = Counter(_suffix(path) for path in paths)
        if not paths:
            raise DataError(f"{source}: no {', '.join(_SUFFIXES[:2])} or {_SUFFIXES[2]} file found")
        if len(suffixes) > 1:
            counts = " and ".join(f"{count} {suffix}" for suffix, count in sorted(suffixes.items()))
            raise DataError(f"{source}: {counts} files; name those of one format, as in FOLDER/*.parquet")
    shards, suffix = [], next(iter(suffixes))
    for path in sorted(paths):
        name = path.removeprefix(base).lstrip("/")
        url = path if isinstance(fs, LocalFileSystem) else fs.unstrip_protocol(path)
        splits = npz_splits(url) if suffix == ".npz" else []
        parts = [(f"{name}/{split}", split) for split in splits] or [(name, _split_in_name(name))]
        shards += [Shard(url, suffix, part, split) for part, split in parts]
    return shards


def _suffix(path: str) -> str:
    """Return the format suffix of a file, or nothing; a query after the path of a URL is ignored."""
    return next((suffix for suffix in _SUFFIXES if path.partition("?")[0].endswith(suffix)), "")


def _resolve(text: str) -> tuple[fsspec.AbstractFileSystem, str, list[str]]:
    """Return the file system of a path, URL or pattern, the folder that names are relative to, and the files."""
    fs, path = url_to_fs(text)
    if not any(character in text for character in "*{["):
        if _suffix(path):
            return fs, path.rpartition("/")[0], [path]
        return fs, path, [file for file in map(str, fs.find(path)) if _suffix(file)]
    paths: list[str] = []
    for pattern in _expand_braces(path):
        paths += fs.glob(pattern) if any(character in pattern for character in "*[") else [pattern]
    base = re.split(r"[*{\[]", path)[0].rpartition("/")[0]
    return fs, base, [file for file in dict.fromkeys(map(str, paths)) if _suffix(file)]


def _expand_braces(text: str) -> list[str]:
    """Return ``a-{08..10}`` as a-08, a-09, a-10."""
    match = re.search(r"\{(\d+)\.\.(\d+)\}", text)
    if not match:
        return [text]
    head, tail, (first, last) = text[: match.start()], text[match.end() :], match.groups()
    numbers = range(int(first), int(last) + 1)
    return [path for number in numbers for path in _expand_braces(f"{head}{number:0{len(first)}d}{tail}")]


def _hub_files(text: str) -> tuple[fsspec.AbstractFileSystem, str, list[str]]:
    """Return the Parquet files that the Hub makes of every public data set: CONFIG/SPLIT/0000.parquet in a branch.

    https://huggingface.co/docs/dataset-viewer/parquet
    """
    parts = text.removeprefix(HUB).strip("/").split("/")
    if len(parts) not in (2, 3) or not all(parts):
        raise DataError(f"{text}: {HUB}OWNER/NAME or {HUB}OWNER/NAME/CONFIG is needed")
    repository = "/".join(parts[:2])
    fs, root = url_to_fs(f"hf://datasets/{repository}@refs/convert/parquet")
    configs = defaultdict(list)
    for path in map(str, fs.find(root)):
        relative = path.removeprefix(root).lstrip("/").split("/")
        if len(relative) == 3 and relative[2].endswith(".parquet"):
            configs[relative[0]].append(path)
    config = parts[2] if len(parts) == 3 else "default" if "default" in configs else next(iter(configs), "")
    if config not in configs or (len(parts) == 2 and config != "default" and len(configs) > 1):
        choices = f"choose from {', '.join(sorted(configs))}" if configs else "it has none"
        raise DataError(f"{text}: name a configuration, as in {HUB}{repository}/CONFIG; {choices}")
    if any("/partial-" in path for path in configs[config]):
        raise DataError(
            f"{text}: the Hub converts only a part of large data sets; name the data set's own files, as in "
            f"hf://datasets/{repository}/data/test-*.parquet"
        )
    return fs, f"{root}/{config}", configs[config]


def _find_shards(folder: Path) -> Iterator[Path]:
    """Yield the Parquet and tar files of a folder, at most two levels down, as data sets of the Hub are laid out."""
    for pattern in ("*", "*/*", "*/*/*"):
        for path in folder.glob(pattern):
            if path.suffix in _SUFFIXES[:2] and not path.name.startswith("."):
                yield path


def _split_in_name(name: str) -> str:
    """Return the split in a shard's name, or nothing."""
    numbered = re.search(r"([^/]+)-\d{5}-of-\d{5}|([^/]+)/\d{4,}\.parquet$", name)
    if numbered:
        return normalize_split(numbered[1] or numbered[2])
    words = map(normalize_split, re.split(r"[^a-z]+", name.lower()))
    return next((word for word in words if word in ("train", "val", "test")), "")


def _select_split(source: str | Path, shards: list[Shard], split: str | None) -> list[Shard]:
    """Return the shards of a split. Raises DataError if it does not exist."""
    if split is None:
        return shards
    wanted = normalize_split(split)
    selected = [shard for shard in shards if shard.split == wanted]
    if not selected:
        splits = ", ".join(sorted({shard.split for shard in shards} - {""}))
        choices = f"choose from {splits}" if splits else "its file names contain no split"
        raise DataError(f"split: {split!r} is not in {source}; {choices}")
    return selected


def _read_names_file(shards: Sequence[Shard]) -> tuple[str, ...] | None:
    """Return the class names, one per line, from a file beside the shards or one level up."""
    folder = shards[0].url.rpartition("/")[0]
    for parent in (folder, folder.rpartition("/")[0]):
        for file in _NAME_FILES:
            url = f"{parent}/{file}"
            fs, path = url_to_fs(url)
            if fs.exists(path):
                with reading(url):
                    return tuple(line.strip() for line in fs.cat_file(path).decode().splitlines() if line.strip())
    return None


def _assign_labels(
    source: str,
    entries: Sequence[Entry],
    names: tuple[str, ...] | None,
    classes: Sequence[str] | None,
    issues: list[DataIssue],
) -> tuple[tuple[str, ...], list[Sample]]:
    """Return the class names (the model's, if any) and the samples with their labels."""
    labels = [entry.label for entry in entries]
    if any(isinstance(label, str) for label in labels):
        names = tuple(sorted({str(label) for label in labels if label is not None}))
        indices = {name: index for index, name in enumerate(names)}
        labels = [None if label is None else indices[str(label)] for label in labels]
    numbers = [int(label) for label in labels if label is not None]
    if names is None:
        count = max(numbers, default=-1) + 1
        if classes is not None and tuple(classes) == tuple(map(str, range(len(classes)))):
            count = len(classes)  # the classes are named by their numbers
        if classes is not None and count != len(classes):
            raise DataError(
                f"{source}: its labels are the numbers 0..{count - 1}, the model has {len(classes)} classes; put the "
                f"class names, one per line, into {_NAME_FILES[0]} beside it"
            )
        names = tuple(classes) if classes is not None else tuple(map(str, range(count)))
    output_of = {index: index for index in range(len(names))}
    if classes is not None:
        output_of = _match_classes(source, names, tuple(classes), Counter(numbers), issues)
    samples = []
    for entry, label in zip(entries, labels, strict=True):
        if label is None or label == -1:
            issues.append(DataIssue(entry.file, "no-label", "no label", "skipped"))
        elif not 0 <= int(label) < len(names):
            issues.append(DataIssue(entry.file, "label-range", f"label {label} of {len(names)} classes", "skipped"))
        elif int(label) in output_of:
            samples.append(Sample(entry.file, entry.path, output_of[int(label)], None, {}))
    return tuple(classes) if classes is not None else names, samples


def _match_classes(
    source: str,
    names: tuple[str, ...],
    classes: tuple[str, ...],
    counts: Mapping[int, int],
    issues: list[DataIssue],
) -> dict[int, int]:
    """Return the model's class of each class of the data set, as ``read_images`` describes."""
    by_name, by_first_word = defaultdict(list), defaultdict(list)
    for index, name in enumerate(classes):
        by_name[normalize_name(name)].append(index)
        by_first_word[_first_synonym(name)].append(index)
    candidates = []
    for name in names:
        matches = by_name.get(normalize_name(name)) or by_first_word.get(_first_synonym(name), [])
        if len(classes) == 1000 and name in (ids := wordnet_ids()):
            matches = [ids[name]]
        candidates.append(matches)
    agreeing = sum(index in matches for index, matches in enumerate(candidates))
    same_order = len(names) == len(classes) and 2 * agreeing > len(names)
    output_of: dict[int, int] = {}
    for index, (name, matches) in enumerate(zip(names, candidates, strict=True)):
        if same_order and len(matches) != 1:
            matches = [index]
        if len(matches) == 1:
            output_of[index] = matches[0]
        elif counts.get(index):
            category, reason = "unknown-class", f"not among the model's {len(classes)} classes"
            if matches:
                category, reason = "ambiguous-class", f"classes {matches} of the model all have this name"
            issues.append(DataIssue(name, category, f"{reason}; {counts[index]} images", "skipped"))
    repeated = [output for output, times in Counter(output_of.values()).items() if times > 1]
    if repeated:
        same = " and ".join(names[index] for index, output in output_of.items() if output == repeated[0])
        raise DataError(f"{source}: its classes {same} both match the model's {classes[repeated[0]]}; rename one")
    if not output_of:
        raise DataError(
            f"{source}: none of its classes ({format_names(names)}) is a class of the model ({format_names(classes)})"
        )
    return output_of


def _first_synonym(name: str) -> str:
    """Return the first of several synonyms, without a WordNet id: ``crane`` for ``crane, bird (n02012849)``."""
    return normalize_name(re.sub(r" \(n\d{8}\)$", "", name).partition(",")[0])
