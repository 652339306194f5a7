"""The pages as a site: it builds without a warning, asks no other server for anything, and fits a phone and a screen."""

from __future__ import annotations

import html.parser
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from support.browser import CHROMIUM, browse
from support.outputs import OUTPUTS, PAGES, shown, standing
from support.pages import ROOT

pytest.importorskip("mkdocs")
LOADED = {"script": "src", "img": "src", "iframe": "src", "link": "href", "source": "src", "video": "src"}
WIDE = """<script>addEventListener("load", () => setTimeout(() => {
  document.title = "wide " + (document.documentElement.scrollWidth > innerWidth);
}, 500));</script>"""
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


class Loads(html.parser.HTMLParser):
    """The addresses that a page loads by itself; those of links that a reader follows are not among them."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag in LOADED and given.get("rel") not in ("canonical", "prev", "next"):
            self.found.append(given.get(LOADED[tag]) or "")


@pytest.mark.slow
def test_pages_ask_no_other_server(site: Path) -> None:
    pages = list(site.glob("*.html"))
    assert len(pages) >= 20
    for page in pages:
        loaded = Loads(page.read_text("utf-8")).found
        assert loaded and not [address for address in loaded if "//" in address], page.name
    for sheet in site.rglob("*.css"):
        assert not re.search(r"(url\(|@import )[\"']?(https?:)?//", sheet.read_text("utf-8")), sheet.name


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
@pytest.mark.parametrize("width", [500, 1280])  # a headless Chromium has no narrower window
@pytest.mark.parametrize("name", ["index", "quickstart", "report", "commands", "overhead", "api"])
def test_page_fits_its_width(site: Path, name: str, width: int, tmp_path: Path) -> None:
    page = site / f"{name}-{width}.html"
    page.write_text((site / f"{name}.html").read_text("utf-8").replace("</body>", WIDE + "</body>"), "utf-8")
    options = (f"--user-data-dir={tmp_path}", f"--window-size={width},2000", "--virtual-time-budget=5000", "--dump-dom")
    done = browse(page.as_uri(), *options)
    assert "<title>wide false</title>" in done.stdout


@pytest.mark.parametrize(
    "page", ["README.md", "CONTRIBUTING.md", "skills/epochmeter/SKILL.md", "examples/digitreader/README.md"]
)
def test_links_to_files_resolve(page: str) -> None:
    for target in LINK.findall((ROOT / page).read_text("utf-8")):
        assert "://" in target or ((ROOT / page).parent / target).exists(), f"{page} links to {target}"


def test_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) <= 120


@pytest.mark.slow
@pytest.mark.parametrize("name", OUTPUTS)
def test_shown_output_is_what_comes_out(name: str, home: Path, tmp_path: Path) -> None:
    label = re.compile(r"^([a-z]+) {2,}(\w[\w-]*)", re.MULTILINE)
    now = dict(label.findall(shown(name, tmp_path)))
    if now["verdict"] == "starved":
        pytest.skip("other programs had the CPUs, and the verdict says so")
    stand = [text for page in PAGES if (text := standing(name, ROOT / page)) is not None]
    assert stand
    for text in stand:
        then = dict(label.findall(text))
        assert then["verdict"] == now["verdict"] and {"verdict", "line", "next", "ledger"} <= set(then)
