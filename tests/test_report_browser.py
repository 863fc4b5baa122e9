"""report.html in headless Chromium: it renders, the headline is on it, and no request leaves the page."""

from __future__ import annotations

import html
import json
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


DRIVER = """
<script>
const root = document.querySelector(".explorer"), [diagram, curves] = root.querySelectorAll("svg.view");
const slider = root.querySelector("input[type=range]"), tip = root.querySelector(".tip");
const log = {}, status = root.querySelector("[role=status]");
const options = (name) => ({ key: name, bubbles: true, cancelable: true });
const key = (svg, name) => svg.dispatchEvent(new KeyboardEvent("keydown", options(name)));
const marks = (kind) => diagram.querySelectorAll(`.mark.${kind}`).length;
log.visible = !root.hidden;
log.first = status.textContent;
log.loops = marks("h1");
const spot = diagram.querySelector("rect.mark").getBoundingClientRect();
const at = { clientX: spot.x + spot.width / 2, clientY: spot.y + spot.height / 2, bubbles: true };
diagram.dispatchEvent(new PointerEvent("pointermove", at));
log.hover = tip.hidden ? null : tip.textContent;
const box = diagram.getBoundingClientRect();
diagram.dispatchEvent(new PointerEvent("pointermove", { clientX: box.right - 4, clientY: box.bottom - 4 }));
log.away = tip.hidden;
key(diagram, "Home"); log.longest = status.textContent;
key(diagram, "ArrowRight"); log.second = status.textContent;
key(diagram, "ArrowRight"); log.third = status.textContent;
key(diagram, "Escape"); log.escaped = tip.hidden;
key(curves, "End"); log.end = status.textContent;
key(curves, "Home"); log.start = status.textContent;
slider.value = slider.max; slider.dispatchEvent(new Event("input"));
log.last = root.querySelector(".layer-name").textContent;
log.spoken = slider.getAttribute("aria-valuetext");
const loops = root.querySelector('input[data-dimension="1"]');
loops.checked = false; loops.dispatchEvent(new Event("input"));
log.hidden = marks("h1");
const result = document.createElement("pre");
result.id = "log"; result.textContent = JSON.stringify(log); document.body.append(result);
</script></body>"""


def test_the_view_answers_to_pointer_keys_and_slider(page: Path, tmp_path: Path) -> None:
    """A copy of the page with a script of the test's own, which the page's policy would forbid."""
    text = page.read_text(encoding="utf-8")
    driven = tmp_path / "driven.html"
    without = re.sub(r"<meta http-equiv=\"Content-Security-Policy\"[^>]*>", "", text)
    driven.write_text(without.replace("</body>", DRIVER), encoding="utf-8")
    dom = chromium(driven, tmp_path / "profile", "--dump-dom", "--window-size=1200,1600")
    log = json.loads(html.unescape(re.search(r'<pre id="log">(.*?)</pre>', dom, re.DOTALL)[1]))  # type: ignore[index]
    first, *_, last = entry(n_layers=3).topology.layers  # type: ignore[union-attr]
    loops = first.diagrams[1].pairs / first.scale
    longest = max(death - birth for birth, death in loops.tolist())
    assert log["visible"]
    assert f"{len(first.diagrams[0].pairs)} in H0, {len(loops)} in H1" in log["first"]
    assert log["loops"] == len(loops)
    birth, death, lifetime = map(float, re.findall(r"(?:born|dies|lifetime) ([0-9.]+)", log["hover"]))
    assert lifetime == pytest.approx(death - birth, abs=2e-3)
    assert min(abs(loops - [birth, death]).max(axis=1)) < 1e-3 or birth == 0
    assert log["away"]
    assert "H0: born 0, never dies; 1 bar" in log["longest"]
    order = sorted((*(loops[:, 1] - loops[:, 0]), *(first.diagrams[0].pairs[:, 1] / first.scale)), reverse=True)
    for spoken, expected in ((log["second"], order[0]), (log["third"], order[1])):
        assert float(re.search(r"lifetime ([0-9.]+)", spoken)[1]) == pytest.approx(expected, rel=5e-3)  # type: ignore[index]
    assert longest <= order[0]
    assert log["escaped"]
    assert log["end"].endswith("H0: 1, H1: 0 alive")
    assert log["start"] == f"distance 0: H0: {first.n_points}, H1: 0 alive"
    assert (log["last"], log["spoken"]) == (last.name, f"{last.name}, 3 of 3")
    assert log["hidden"] == 0


def test_the_policy_lets_our_script_run_and_no_other(page: Path, tmp_path: Path) -> None:
    driven = tmp_path / "driven.html"
    driven.write_text(page.read_text(encoding="utf-8").replace("</body>", DRIVER), encoding="utf-8")
    dom = chromium(driven, tmp_path / "profile", "--dump-dom")
    assert '<div class="explorer">' in dom
    assert 'id="log"' not in dom.replace(DRIVER, "")


SANDBOX = """<!doctype html><iframe sandbox="allow-same-origin" width="1200" height="900" srcdoc="{}"></iframe><script>
addEventListener("load", () => {{
  const inner = document.querySelector("iframe").contentDocument, view = inner.querySelector(".explorer");
  const drawn = [...inner.images].filter((image) => image.complete && image.naturalWidth > 100).length;
  const sortable = inner.querySelectorAll("th button").length;
  document.title = `${{getComputedStyle(view).display}} ${{drawn}} ${{sortable}}`;
}});</script>"""


def test_without_scripts_the_page_shows_its_figures(page: Path, tmp_path: Path) -> None:
    frame = tmp_path / "frame.html"
    frame.write_text(SANDBOX.format(html.escape(page.read_text(encoding="utf-8"))), encoding="utf-8")
    dom = chromium(frame, tmp_path / "profile", "--dump-dom")
    assert "<title>none 5 0</title>" in dom


def test_it_prints_its_figures(page: Path, tmp_path: Path) -> None:
    paper = tmp_path / "page.pdf"
    chromium(page, tmp_path / "profile", f"--print-to-pdf={paper}", "--no-pdf-header-footer")
    data = paper.read_bytes()
    assert data.startswith(b"%PDF-")
    assert len(re.findall(rb"/Subtype\s*/Image", data)) >= 5
