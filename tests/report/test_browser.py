"""The page in headless Chromium, where there is one: light, dark, on a phone."""

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clearhead.report.page import write
from tests.report.samples import full_page

CHROMIUM = next(
    (result for name in ("chromium", "chromium-browser", "google-chrome") if (result := shutil.which(name))), None
)


def screenshot(
    page: Path, file: Path, profile: Path, *flags: str, width: int, height: int
) -> tuple[np.ndarray, list[str]]:
    """Return what Chromium shows, H x W x 3, and the lines of its console."""
    assert CHROMIUM is not None
    quiet = (
        "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
        "--disable-component-update --disable-sync --hide-scrollbars --enable-logging=stderr --v=0"
    )
    command = [CHROMIUM, *quiet.split(), *flags, f"--user-data-dir={profile}", f"--screenshot={file}"]
    ran = subprocess.run(
        [*command, f"--window-size={width},{height}", page.as_uri()], capture_output=True, text=True, timeout=120
    )
    assert file.exists(), ran.stderr[-2000:]
    return np.asarray(Image.open(file).convert("RGB")), [li for li in ran.stderr.splitlines() if "CONSOLE" in li]


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium in PATH to render the page with")
def test_the_page_renders_in_light_in_dark_and_on_a_phone(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    write(full_page(), path)
    dark = ("--force-dark-mode", "--blink-settings=preferredColorScheme=0")
    backgrounds = {}
    for name, width, height, flags in (("light", 1280, 6000, ()), ("dark", 1280, 6000, dark), ("phone", 390, 9000, ())):
        shown, console = screenshot(path, tmp_path / f"{name}.png", tmp_path / name, *flags, width=width, height=height)
        assert not console, (name, console)
        assert shown.shape == (height, width, 3)
        backgrounds[name] = shown[2, 2].astype(int)
        assert (shown[:, -12:] == shown[2, 2]).all(), f"{name}: something sticks out to the right"
        assert shown[: height // 2].std() > 10, f"{name}: nothing is drawn"
    assert backgrounds["light"].min() > 240
    assert backgrounds["phone"].min() > 240
    assert backgrounds["dark"].max() < 40

    path.write_text(path.read_text().replace("<main>", '<main><img src="https://example.invalid/a.png">'))
    _, console = screenshot(path, tmp_path / "request.png", tmp_path / "request", width=390, height=400)
    assert any("Content Security Policy" in line for line in console), "a request must be refused, and seen here"
