"""Images that are not files in class folders: Parquet files, WebDataset shards, arrays; on disk or behind a URL.

``read_images`` reads any of them as ``read_folder`` reads class folders. Nothing is copied to the local disk: a sample
knows where its picture lies (``clearhead.data.image_refs``) and reads that much when it is loaded.

============= ======================================== ======================== =================================
source        as                                       class names              read when the set is read
============= ======================================== ======================== =================================
Parquet       a column image, img, jpg or png (bytes,  the Hub's metadata, or   the labels; with `check` all
              or a struct with them), one label,       names.txt, classnames.txt
              fine_label, labels or cls                beside or one above
WebDataset    {key}.jpg (jpeg, png, webp) with         the labels where they    each shard from end to end, and
              {key}.cls or the label of {key}.json     are text, or as above    decoded in passing with `check`
MedMNIST      an .npz of {split}_images, _labels       as above                 all
============= ======================================== ======================== =================================

What is left out is listed in ``ImageIndex.problems``, besides the kinds at the head of folder.py:

=============== ============================================================= =======
no-label        no label, or -1, the Hub's sign for one that is kept secret   skipped
label-range     a number that no class has                                    skipped
no-image        a key of a tar shard without an image                         skipped
unreadable-json a {key}.json that is none                                     skipped
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

from clearhead.data.dataset import DataIssue, ImageIndex, Sample, check_samples, listed, require_samples
from clearhead.data.folder import image_files, plain_name, wordnet_ids
from clearhead.data.image_io import DataError
from clearhead.data.image_refs import forget
from clearhead.data.shard_files import Entry, Shard, contents_of, npz_splits, reading

HUB = "hf-dataset:"
_SUFFIXES = (".parquet", ".tar", ".npz")
_NAME_FILES = ("names.txt", "classnames.txt")
_SPLITS = {"training": "train", "validation": "val", "valid": "val", "dev": "val", "testing": "test", "eval": "test"}


def read_sharded(
    source: str | Path, *, split: str | None = None, classes: Sequence[str] | None = None, check: bool = True
) -> ImageIndex:
    """Read images from Parquet, tar or .npz files; arguments and errors as in ``clearhead.data.images.read_images``."""
    forget()
    shards = _of_split(source, _shards(source), split)
    with ThreadPoolExecutor(8) as pool:
        contents = list(pool.map(lambda shard: contents_of(shard, check), shards))
    entries = [entry for content in contents for entry in content.entries]
    issues = [issue for content in contents for issue in content.issues]
    if not entries and not issues:
        raise DataError(f"{source}: its {len(shards)} files have no images")
    names = next((content.names for content in contents if content.names), None)
    names, samples = _labelled(str(source), entries, names or _names_beside(shards), classes, issues)
    if check and shards[0].kind != ".tar":  # a tar's were decoded in passing
        samples, found = check_samples(samples)
        issues += found
    require_samples(source, samples, issues)
    issues.sort(key=lambda p: (p.file, p.category))
    return ImageIndex(Path(source), names, tuple(samples), tuple(issues))


def splits_in(source: str | Path) -> set[str]:
    """The splits of a source that is no folder of class folders; none where there is a single one. Raises DataError."""
    found = {shard.split for shard in _shards(source)} - {""}
    return found if len(found) > 1 else set()


def is_sharded(source: str | Path) -> bool:
    """Whether a source is something else than a folder of class folders."""
    text = str(source)
    if text.startswith(HUB) or "://" in text or text.endswith(_SUFFIXES):
        return True
    folder = Path(source)
    if not folder.is_dir():
        return any(character in text for character in "*{[") and not folder.exists()
    if any(entry.is_dir() and image_files(entry) for top in (folder, folder / "images") for entry in _folders(top)):
        return False
    return next(_inside(folder), None) is not None


def plain_split(split: str) -> str:
    """A split by the name it has here: ``validation``, ``valid`` and ``dev`` are ``val``."""
    return _SPLITS.get(split.lower(), split.lower())


def _shards(source: str | Path) -> list[Shard]:
    """The files of a source, in order. Raises DataError where there is none, or there are several kinds."""
    text = str(source)
    with reading(text):
        if text.startswith(HUB):
            fs, base, paths = _on_hub(text)
        elif "://" not in text and Path(text).is_dir():
            folder = Path(text).absolute()
            fs, base, paths = LocalFileSystem(), folder.as_posix(), [path.as_posix() for path in _inside(folder)]
        else:
            fs, base, paths = _named(text)
        kinds = Counter(_suffix(path) for path in paths)
        if not paths:
            raise DataError(f"{source}: no {', '.join(_SUFFIXES[:2])} or {_SUFFIXES[2]} file is there")
        if len(kinds) > 1:
            told = " and ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
            raise DataError(f"{source}: {told} files; name those of one kind, as in FOLDER/*.parquet")
    shards, kind = [], next(iter(kinds))
    for path in sorted(paths):
        name = path.removeprefix(base).lstrip("/")
        url = path if isinstance(fs, LocalFileSystem) else fs.unstrip_protocol(path)
        splits = npz_splits(url) if kind == ".npz" else []
        parts = [(f"{name}/{split}", split) for split in splits] or [(name, _split(name))]
        shards += [Shard(url, kind, part, split) for part, split in parts]
    return shards


def _suffix(path: str) -> str:
    """The kind of a file, or nothing; what may follow the path of a URL (``?download=true``) aside."""
    return next((suffix for suffix in _SUFFIXES if path.partition("?")[0].endswith(suffix)), "")


def _named(text: str) -> tuple[fsspec.AbstractFileSystem, str, list[str]]:
    """The file system of a path or URL, the folder that names are relative to, and the files that are meant."""
    fs, first = url_to_fs(text)
    if not any(character in text for character in "*{["):
        if _suffix(first):
            return fs, first.rpartition("/")[0], [first]
        return fs, first, [path for path in map(str, fs.find(first)) if _suffix(path)]
    paths: list[str] = []
    for each in _braces(first):
        paths += fs.glob(each) if any(character in each for character in "*[") else [each]
    base = re.split(r"[*{\[]", first)[0].rpartition("/")[0]
    return fs, base, [path for path in dict.fromkeys(map(str, paths)) if _suffix(path)]


def _braces(text: str) -> list[str]:
    """``a-{08..10}`` as a-08, a-09, a-10."""
    found = re.search(r"\{(\d+)\.\.(\d+)\}", text)
    if not found:
        return [text]
    head, tail, (first, last) = text[: found.start()], text[found.end() :], found.groups()
    return [r for n in range(int(first), int(last) + 1) for r in _braces(f"{head}{n:0{len(first)}d}{tail}")]


def _on_hub(text: str) -> tuple[fsspec.AbstractFileSystem, str, list[str]]:
    """The Parquet files that the Hub makes of every public set, CONFIG/SPLIT/0000.parquet in a branch of their own.

    https://huggingface.co/docs/dataset-viewer/parquet
    """
    parts = text.removeprefix(HUB).strip("/").split("/")
    if len(parts) not in (2, 3) or not all(parts):
        raise DataError(f"{text}: {HUB}OWNER/NAME or {HUB}OWNER/NAME/CONFIG is needed")
    set_name = "/".join(parts[:2])
    fs, root = url_to_fs(f"hf://datasets/{set_name}@refs/convert/parquet")
    configs = defaultdict(list)
    for path in map(str, fs.find(root)):
        inside = path.removeprefix(root).lstrip("/").split("/")
        if len(inside) == 3 and inside[2].endswith(".parquet"):
            configs[inside[0]].append(path)
    config = parts[2] if len(parts) == 3 else "default" if "default" in configs else next(iter(configs), "")
    if config not in configs or (len(parts) == 2 and config != "default" and len(configs) > 1):
        there = ", ".join(sorted(configs)) or "none"
        raise DataError(f"{text}: name a configuration, as in {HUB}{set_name}/CONFIG; there is {there}")
    if any("/partial-" in path for path in configs[config]):
        raise DataError(
            f"{text}: of large sets the Hub converts a part alone; name the set's own files, as in "
            f"hf://datasets/{set_name}/data/test-*.parquet"
        )
    return fs, f"{root}/{config}", configs[config]


def _folders(folder: Path) -> list[Path]:
    return sorted(entry for entry in folder.iterdir() if entry.is_dir()) if folder.is_dir() else []


def _inside(folder: Path) -> Iterator[Path]:
    """The Parquet and tar files of a folder, at most two folders deep: as sets of the Hub are laid out."""
    for pattern in ("*", "*/*", "*/*/*"):
        for path in folder.glob(pattern):
            if path.suffix in _SUFFIXES[:2] and not path.name.startswith("."):
                yield path


def _split(name: str) -> str:
    """The split that a shard's name tells, or nothing."""
    numbered = re.search(r"([^/]+)-\d{5}-of-\d{5}|([^/]+)/\d{4,}\.parquet$", name)
    if numbered:
        return plain_split(numbered[1] or numbered[2])
    words = map(plain_split, re.split(r"[^a-z]+", name.lower()))
    return next((word for word in words if word in ("train", "val", "test")), "")


def _of_split(source: str | Path, shards: list[Shard], split: str | None) -> list[Shard]:
    """The shards of a split. Raises DataError where it does not exist."""
    if split is None:
        return shards
    wanted = plain_split(split)
    found = [shard for shard in shards if shard.split == wanted]
    if not found:
        there = ", ".join(sorted({shard.split for shard in shards} - {""})) or "none that its files are named for"
        raise DataError(f"{source}: no split {split!r}; there is {there}")
    return found


def _names_beside(shards: Sequence[Shard]) -> tuple[str, ...] | None:
    """Class names, one a line, from a file beside the shards or one folder above."""
    folder = shards[0].url.rpartition("/")[0]
    for place in (folder, folder.rpartition("/")[0]):
        for file in _NAME_FILES:
            url = f"{place}/{file}"
            fs, path = url_to_fs(url)
            if fs.exists(path):
                with reading(url):
                    return tuple(line.strip() for line in fs.cat_file(path).decode().splitlines() if line.strip())
    return None


def _labelled(
    source: str,
    entries: Sequence[Entry],
    names: tuple[str, ...] | None,
    classes: Sequence[str] | None,
    issues: list[DataIssue],
) -> tuple[tuple[str, ...], list[Sample]]:
    """The class names, the model's where it has been given, and the samples with their labels."""
    labels = [entry.label for entry in entries]
    if any(isinstance(label, str) for label in labels):
        names = tuple(sorted({str(label) for label in labels if label is not None}))
        places = {name: place for place, name in enumerate(names)}
        labels = [None if label is None else places[str(label)] for label in labels]
    numbers = [int(label) for label in labels if label is not None]
    if names is None:
        count = max(numbers, default=-1) + 1
        if classes is not None and tuple(classes) == tuple(map(str, range(len(classes)))):
            count = len(classes)  # classes that have no other names than their numbers
        if classes is not None and count != len(classes):
            raise DataError(
                f"{source}: its labels are the numbers 0..{count - 1}, the model has {len(classes)} classes; put the "
                f"class names, one a line, into {_NAME_FILES[0]} beside it"
            )
        names = tuple(classes) if classes is not None else tuple(map(str, range(count)))
    matched = {place: place for place in range(len(names))}
    if classes is not None:
        matched = _matched(source, names, tuple(classes), Counter(numbers), issues)
    samples = []
    for entry, label in zip(entries, labels, strict=True):
        if label is None or label == -1:
            issues.append(DataIssue(entry.file, "no-label", "no label", "skipped"))
        elif not 0 <= int(label) < len(names):
            issues.append(DataIssue(entry.file, "label-range", f"{label}, for {len(names)} classes", "skipped"))
        elif int(label) in matched:
            samples.append(Sample(entry.file, entry.path, matched[int(label)], None, {}))
    return tuple(classes) if classes is not None else names, samples


def _matched(
    source: str,
    names: tuple[str, ...],
    classes: tuple[str, ...],
    counts: Mapping[int, int],
    issues: list[DataIssue],
) -> dict[int, int]:
    """The model's class of each class of the set, as `read_images` says; those without one go to `problems`."""
    whole, first = defaultdict(list), defaultdict(list)
    for index, name in enumerate(classes):
        whole[plain_name(name)].append(index)
        first[_first(name)].append(index)
    found = []
    for name in names:
        known = whole.get(plain_name(name)) or first.get(_first(name), [])
        if len(classes) == 1000 and name in (ids := wordnet_ids()):
            known = [ids[name]]
        found.append(known)
    in_place = sum(place in known for place, known in enumerate(found))
    same_order = len(names) == len(classes) and 2 * in_place > len(names)
    matched: dict[int, int] = {}
    for place, (name, known) in enumerate(zip(names, found, strict=True)):
        if same_order and len(known) != 1:
            known = [place]
        if len(known) == 1:
            matched[place] = known[0]
        elif counts.get(place):
            kind, why = "unknown-class", f"not among the model's {len(classes)} classes"
            if known:
                kind, why = "ambiguous-class", f"the model's classes {known} are all called so"
            issues.append(DataIssue(name, kind, f"{why}; {counts[place]} images", "skipped"))
    twice = [index for index, times in Counter(matched.values()).items() if times > 1]
    if twice:
        same = " and ".join(names[place] for place, index in matched.items() if index == twice[0])
        raise DataError(f"{source}: its classes {same} are both the model's {classes[twice[0]]}; name them apart")
    if not matched:
        raise DataError(
            f"{source}: none of its classes is one of the model's: it has {listed(names)}, the model {listed(classes)}"
        )
    return matched


def _first(name: str) -> str:
    """The first of several words for a class, without a WordNet id behind it: of ``crane (n02012849)`` the crane."""
    return plain_name(re.sub(r" \(n\d{8}\)$", "", name).partition(",")[0])
