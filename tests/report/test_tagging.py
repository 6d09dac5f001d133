"""The page for tagging: what it embeds, what it forbids, and how it is used in Chromium."""

import base64
import csv
import hashlib
import json
import os
import re
import shutil
import time
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from clearhead.report.tagging import ImageToTag, render_tagging
from tests.command import clearhead, result
from tests.report.test_browser import CHROMIUM

DRIVER = shutil.which("chromedriver")


def page(**changes: Any) -> str:
    pixels = np.random.default_rng(0).integers(0, 256, (600, 300, 3), dtype=np.uint8)
    images = [ImageToTag(f"a/{i}.png", "a", "b", pixels[: 600 - i]) for i in range(3)]
    options = {"run": "1", "title": "t", "lead": "l", "command": "c", "minimum": 2}
    return render_tagging(images, ["with", "without"], **{**options, **changes})


def test_the_page_allows_its_own_script_only():
    html = page()
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', html)[1]
    script = re.search(r"<script>(.*?)</script>", html, re.DOTALL)[1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy == f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    assert "http" not in re.sub(r'"src": "[^"]*"', "", html).replace("http-equiv", "")
    assert not re.search(r"<(?:link|script|img)[^>]* (?:src|href)=\"(?!data:)", html)


def test_names_cannot_leave_the_data():
    pixels = np.zeros((8, 8, 3), np.uint8)
    name = '</script><script>alert(1)</script>"\u2028é'
    html = render_tagging(
        [ImageToTag(name, "<b>", "&", pixels)], [name, "x"], run="1", title=name, lead="l", command="<c>", minimum=2
    )
    data = re.search(r'id="data">(.*?)</script>', html, re.DOTALL)[1]
    assert json.loads(data)["images"][0]["file"] == name
    assert json.loads(data)["values"][0] == name
    assert html.count("<script") == 2
    assert "<c>" not in html


def test_images_are_small_and_keep_their_shape():
    data = json.loads(re.search(r'id="data">(.*?)</script>', page(), re.DOTALL)[1])
    source = data["images"][0]["src"]
    assert source.startswith("data:image/webp;base64,")
    assert Image.open(BytesIO(base64.b64decode(source.partition(",")[2]))).size == (224, 448)
    assert not data["images"][0]["tiny"]


@pytest.mark.slow
@pytest.mark.skipif(not CHROMIUM or not DRIVER, reason="no chromium and chromedriver in PATH to tag images with")
def test_images_are_tagged_in_a_browser_and_the_repair_reads_them(workspace, tmp_path):
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    from selenium.webdriver.chrome.service import Service
    from selenium.webdriver.common.keys import Keys

    run = clearhead("tag", "model", "data", "--count", 12, "--out", "tag-browser", cwd=workspace)
    assert run.returncode == 0, run.stderr
    folder = workspace / "tag-browser"
    files = [one["file"] for one in result(folder)["proposals"]]

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in ("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage", "window-size=1280,900"):
        options.add_argument(f"--{flag}")
    options.add_argument(f"--user-data-dir={tmp_path / 'profile'}")
    options.add_experimental_option("prefs", {"download.default_directory": str(tmp_path)})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options=options, service=Service(DRIVER))

    def text(element: str) -> str:
        return browser.find_element("id", element).text

    def press(*keys: str) -> None:
        webdriver.ActionChains(browser).send_keys(*keys).perform()

    def click(selector: str) -> None:
        browser.execute_script("arguments[0].click()", browser.find_element("css selector", selector))

    def downloaded() -> list[dict[str, str]]:
        file = tmp_path / "tags.csv"
        file.unlink(missing_ok=True)
        click("#download")
        deadline = time.monotonic() + 20
        while not file.is_file() and time.monotonic() < deadline:
            time.sleep(0.1)
        with file.open(newline="", encoding="utf-8") as opened:
            return list(csv.DictReader(opened))

    try:
        browser.get((folder / "tagging.html").as_uri())
        assert text("position") == "Image 1 of 12"
        assert not browser.find_element("id", "download").is_enabled()
        press("1", "2", "9", "2")  # there is no ninth tag
        assert text("tagged") == "3 tagged"
        press("z")
        assert (text("tagged"), text("position")) == ("2 tagged", "Image 3 of 12")
        press(Keys.BACKSPACE)
        assert (text("tagged"), text("position")) == ("1 tagged", "Image 2 of 12")
        press(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT, "1", Keys.ARROW_LEFT, "2")  # image 4 is tagged again
        tags = {files[0]: "with shortcut", files[3]: "without"}
        assert {row["file"]: row["tag"] for row in downloaded() if row["tag"]} == tags

        browser.refresh()
        assert text("tagged") == "2 tagged"
        press("z")  # undo of the second tag of image 4
        assert {row["file"]: row["tag"] for row in downloaded()}[files[3]] == "with shortcut"

        name = browser.find_element("css selector", "#values input")
        name.send_keys(Keys.CONTROL + "a")
        name.send_keys('light, "bright"', Keys.ENTER)
        click("#add")
        assert len(browser.find_elements("css selector", "#choices button")) == 3
        click("#values li:last-child button")
        assert len(browser.find_elements("css selector", "#choices button")) == 2
        browser.find_element("id", "position").click()  # leave the text field
        browser.execute_script("document.activeElement.blur()")
        first = browser.switch_to.active_element
        press(Keys.TAB)
        focused = browser.switch_to.active_element
        assert focused != first
        assert focused.value_of_css_property("outline-style") == "solid"

        def tagged() -> int:
            return int(re.search(r"\d+", text("download"))[0])

        while tagged() < 12:  # by touch: each image by its background, as a person would
            current = browser.find_element("id", "image").get_attribute("alt")
            number = int(re.search(r"(\d+)\.png", current)[1])
            click(f"#choices button:nth-child({1 + number % 2})")
        assert text("tagged") == "All images are tagged"
        table = downloaded()
        assert [row["file"] for row in table] == files
        assert {row["tag"] for row in table} == {'light, "bright"', "without"}
        errors = [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
        assert not errors

        for width in (1280, 390):
            metrics = {"width": width, "height": 844, "deviceScaleFactor": 1, "mobile": width < 500}
            browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
            wide, visible = browser.execute_script("return [document.documentElement.scrollWidth, innerWidth]")
            assert wide <= visible == width
            for button in browser.find_elements("css selector", "#choices button"):
                assert button.size["height"] >= 44
            if target := os.environ.get("CLEARHEAD_SCREENSHOTS"):
                browser.save_screenshot(str(Path(target) / f"tagging-{width}.png"))
    finally:
        browser.quit()

    repaired = clearhead(
        "repair", "model", "data", "--method", "dfr", "--tags", tmp_path / "tags.csv", "--out", "by-browser",
        cwd=workspace,
    )  # fmt: skip
    assert repaired.returncode == 0, repaired.stderr
    counts = result(workspace / "by-browser")["outcome"]["tagged"]
    assert sum(counts.values()) == 12
    assert len(counts) == 6
