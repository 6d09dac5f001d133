"""Duplicates of images: copies that are changed a little, different images, plain ones, and their groups."""

import io

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from clearhead.data.cues import THUMBNAIL, describe, feature_matrix
from clearhead.data.dataset import Sample
from clearhead.data.duplicates import duplicate_groups, find_duplicates
from clearhead.data.image_refs import InMemoryImage


def sample(image: Image.Image, form: str = "PNG", **options) -> Sample:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return Sample("a.png", InMemoryImage("a.png", buffer.getvalue()), 0, None, {})


def scene(seed: int) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (12, 16, 3)).astype(np.uint8)
    return Image.fromarray(coarse).resize((160, 120), Image.Resampling.BICUBIC)


def duplicates(*samples: Sample):
    described = [describe(one) for one in samples]
    return find_duplicates(np.stack([d.thumbnail for d in described]), [d.digest for d in described])


def positions(pairs) -> set[tuple[int, int]]:
    return set(zip(pairs.first.tolist(), pairs.second.tolist(), strict=True))


@pytest.mark.parametrize(
    "copy",
    [
        lambda image: sample(image, "JPEG", quality=30),
        lambda image: sample(image.resize((80, 60))),
        lambda image: sample(ImageEnhance.Brightness(image).enhance(1.15)),
        lambda image: sample(image.convert("L")),
    ],
)
def test_changed_copies_are_near_duplicates(copy):
    pairs = duplicates(sample(scene(0)), sample(scene(1)), copy(scene(0)))
    assert positions(pairs) == {(0, 2)}
    assert not pairs.exact[0]
    assert 0.98 <= pairs.correlation[0] <= 1


def test_equal_pixels_are_exact_whatever_the_file():
    pairs = duplicates(sample(scene(0)), sample(scene(0), "BMP"))
    assert (pairs.exact.tolist(), pairs.correlation.tolist()) == ([True], [1])


def test_plain_images_are_duplicates_only_if_equal():
    def grey(value):
        return sample(Image.new("RGB", (40, 40), (value,) * 3))

    assert positions(duplicates(grey(10), grey(20), grey(10), sample(scene(0)))) == {(0, 2)}


def test_pairs_beyond_one_chunk_and_their_groups():
    rng = np.random.default_rng(0)
    thumbnails = rng.integers(0, 256, (2500, THUMBNAIL**2)).astype(np.float32)
    thumbnails[2400] = thumbnails[3]
    thumbnails[2499] = 0.5 * thumbnails[2400] + 20
    thumbnails[2300] = thumbnails[2200]
    pairs = find_duplicates(thumbnails, [str(i) for i in range(2500)])
    assert positions(pairs) == {(3, 2400), (3, 2499), (2400, 2499), (2200, 2300)}
    groups = duplicate_groups(pairs, 2500)
    assert len(set(groups)) == 2500 - 3
    assert groups[3] == groups[2400] == groups[2499] != groups[2200]
    assert len(set(duplicate_groups(find_duplicates(thumbnails[:5], list("abcde")), 5))) == 5


def test_images_of_one_scene_are_no_duplicates_but_copies_among_them_are():
    rng = np.random.default_rng(0)
    common = 1000 * rng.random(THUMBNAIL**2)
    thumbnails = (common + 20 * rng.standard_normal((100, THUMBNAIL**2))).astype(np.float32)
    thumbnails[70] = thumbnails[4] + rng.standard_normal(THUMBNAIL**2)
    assert np.corrcoef(thumbnails[0], thumbnails[1])[0, 1] > 0.99
    assert positions(find_duplicates(thumbnails, [str(i) for i in range(100)])) == {(4, 70)}


def test_too_many_near_duplicates_leave_the_exact_ones(monkeypatch):
    monkeypatch.setattr("clearhead.data.duplicates.MOST_PAIRS", 5)
    thumbnails = np.tile(np.arange(THUMBNAIL**2, dtype=np.float32), (10, 1))
    pairs = find_duplicates(thumbnails, ["a", "b", "c", "b", "d", "b", "e", "f", "g", "h"])
    assert not pairs.complete
    assert positions(pairs) == {(1, 3), (1, 5)}
    assert pairs.exact.all()


def test_features_of_text_are_columns_of_values_that_several_images_have():
    entries = [{"make": "a", "iso": 100.0}, {"make": "a"}, {"make": "b", "iso": 50.0}, {"make": "b", "same": 1.0}]
    matrix = feature_matrix(entries)
    assert matrix.shape == (4, 4)
    assert sorted(map(tuple, matrix.T.tolist())) == sorted([(100, 0, 50, 0), (1, 1, 0, 0), (0, 0, 1, 1), (0, 0, 0, 1)])
    assert feature_matrix([{"serial": str(i)} for i in range(4)]) is None
    assert feature_matrix([{"x": 1.0}] * 3) is None
    assert feature_matrix([{}, {}]) is None


def test_dates_are_numbers_and_broken_metadata_count_as_none():
    exif = Image.Exif()
    exif[271], exif[306], exif[282] = "Canon", "2024:05:06 07:08:09", 72.0
    cue = describe(sample(scene(0), "JPEG", exif=exif)).cues["camera metadata"]
    assert (cue["Make"], cue["DateTime year"], cue["DateTime hour"], cue["XResolution"]) == ("Canon", 2024, 7, 72)
    broken = describe(sample(scene(0), "PNG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")).cues["camera metadata"]
    assert broken == {"entries": 0}
