"""report.html in headless Chromium: it renders, the headline is on it, and no request leaves the page."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sampleresults import entry

from cohomcli.report.build import ReportContext, build

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), ""
)
pytestmark = pytest.mark.skipif(not CHROMIUM, reason="no Chromium on PATH (Debian: apt-get install chromium)")


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("report")
    build([entry(n_layers=3)], None, out, ReportContext("run", ("cohom", "run"), "0.1.0", "cohom run: tiny-gpt"))
    return out / "report.html"


def chromium(page: Path, profile: Path, *arguments: str) -> str:
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", f"--user-data-dir={profile}"]
    command = [CHROMIUM, *flags, *arguments, page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


def test_screenshot_shows_text_and_figures(page: Path, tmp_path: Path) -> None:
    shot = tmp_path / "shot.png"
    chromium(page, tmp_path / "profile", f"--screenshot={shot}", "--window-size=1200,1600", "--hide-scrollbars")
    image = np.asarray(Image.open(shot).convert("RGB"), dtype=int)
    assert image.shape == (1600, 1200, 3)
    blue = np.abs(image - [0, 114, 178]).max(axis=2) < 12
    assert blue.sum() > 200
    dark = image.max(axis=2) < 80
    assert dark[:400].sum() > 2000
    assert (image[:, -10:] == image[0, -1]).all()


def test_page_holds_the_headline_and_its_script_ran(page: Path, tmp_path: Path) -> None:
    dom = chromium(page, tmp_path / "profile", "--dump-dom")
    assert re.search(r"<dt>raw H0 expansion</dt>\s*<dd class=\"value\">[0-9.]+×</dd>", dom)
    assert re.search(r"<th[^>]*><button type=\"button\">H0 total</button></th>", dom)
    assert dom.count("<img ") == 5
