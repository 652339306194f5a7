"""The HTML page: every text stays a text, nothing is asked of a network, and it is small; in a real browser it works."""

from __future__ import annotations

import base64
import builtins
import hashlib
import html.parser
import importlib.util
import json
import re
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import rich.console

from profiler import Profiler
from profiler.records.run import Run
from profiler.report.compare import compared
from profiler.report.web.compare_page import compare_page
from profiler.report.web.run_page import run_page
from support.big_run import big_run
from support.browser import CHROMIUM, browse
from support.processes import at_terminal, epochmeter

EVIL = "<script>alert(1)</script>\"'&</title><img src=x onerror=alert(2)>"
MIB = 1_000_000
WIDTHS = (375, 768, 1280)


@pytest.fixture(scope="module")
def big() -> Run:
    return big_run()


class Parsed(html.parser.HTMLParser):
    """The elements of a page, each with its attributes, and its text outside scripts and styles."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self._inside = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._inside = tag

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside not in ("script", "style"):
            self.text.append(data)

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def small(name: str = "small") -> Run:
    return big_run(epochs=6, gpus=2, name=name)


def test_a_page_has_all_its_parts() -> None:
    page = Parsed(run_page(small()))
    said = " ".join(page.text)
    heads = ("What held the run back", "Where the time went", "Over time", "Steps of train", "Steps of val", "Epochs")
    for head in (*heads, "Slowest steps", "Lines of the code", "Ranks", "Machine"):
        assert head in said, head
    for track in ("CPU of the process: ", "GPU: ", "GPU memory: ", "power: ", "memory of the process: "):
        assert track in said, track
    assert "NVIDIA H100 80GB HBM3" in said and "train.py:40" in said
    charts = [attributes for attributes in page.named("svg") if attributes.get("role") == "img"]
    assert len(charts) == len(page.named("figure")) >= 9
    titles = run_page(small()).count("<title>")
    assert titles >= len(charts) + 1


@pytest.mark.parametrize("make", [lambda run: run_page(run), lambda run: compare_page([compared(run, small("other"))])])
def test_nothing_of_a_name_is_markup(make: Any) -> None:
    run = small(EVIL)
    run.epochs[0].stages["train"].phases[(EVIL,)] = run.epochs[0].stages["train"].phases.pop(("mine",))
    for one in run.slices:
        phases = one.stages["train"].phases
        phases[EVIL] = phases.pop("mine", 0)
    run.command = EVIL
    page = Parsed(make(run))
    assert EVIL in "".join(page.text)
    assert len(page.named("script")) == 1 and not page.named("img")
    assert not [key for _, attributes in page.elements for key in attributes if key.startswith("on") or key == "style"]


def test_the_policy_allows_our_script_and_style_alone() -> None:
    page = run_page(small())
    (policy,) = (one["content"] for one in Parsed(page).named("meta") if one.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None and policy.startswith("default-src 'none'; ")
    for kind in ("script", "style"):
        (content,) = re.findall(rf"<{kind}>(.*?)</{kind}>", page, re.DOTALL)
        known = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{known}'" in policy
    assert not re.findall(r"(?:https?:)?//[a-z]", re.sub(r"<script>.*?</script>", "", page, flags=re.DOTALL))
    assert not [value for _, attributes in Parsed(page).elements for key, value in attributes.items() if key in ("src", "href")]


def test_a_page_is_the_same_in_every_encoding() -> None:
    page = run_page(small("é \N{ROCKET}"))
    assert page.isascii() and "é \N{ROCKET}" in "".join(Parsed(page).text)


@pytest.mark.slow
def test_the_largest_page_is_below_a_megabyte(big: Run) -> None:
    page = run_page(big)
    assert len(page.encode()) < MIB
    assert "999" in "".join(Parsed(page).text)


@pytest.mark.parametrize("run", [Run("0a1b", "empty", 0), big_run(epochs=1, gpus=0)])
def test_a_run_with_little_has_a_page(run: Run) -> None:
    said = " ".join(Parsed(run_page(run)).text)
    assert run.name in said and "Over time" not in said
    assert "None" not in said and "nan" not in said.split()


def test_numbers_of_charts_are_in_tables() -> None:
    run = small()
    page = run_page(run)
    table = re.search(r'<table id="timeline">.*?</table>', page, re.DOTALL)
    assert table is not None and table[0].count("<tr>") == len(run.slices) + 1
    heads = re.findall(r"<th[^>]*>([^<]*)</th>", table[0])
    assert heads[:2] == ["from (UTC)", "at s"] and "forward" in heads and "power W" in heads


class TestCommand:
    def test_page_of_a_recorded_run(self, tmp_path: Path) -> None:
        ids = []
        for name in (EVIL, "other"):
            with Profiler(name) as prof:
                for _ in prof.epochs(4):
                    for _ in prof.train(range(5)):
                        with prof.phase("forward"):
                            pass
            ids.append(prof.summary.id)
        written = tmp_path / "report.html"
        assert epochmeter("report", ids[0], "--format", "html", "-o", str(written)).out == ""
        assert EVIL in "".join(Parsed(written.read_text()).text)
        piped = epochmeter("compare", *ids, "--format", "html")
        assert piped.out.startswith("<!DOCTYPE html>") and EVIL in "".join(Parsed(piped.out).text)

    @pytest.mark.skipif(sys.platform == "win32", reason="needs a pty")
    def test_no_page_goes_to_a_terminal(self) -> None:
        with Profiler("one") as prof:
            list(prof.train(range(3)))
        code = (
            "import os,sys; os.dup2(2, 1); sys.argv[1:] = ['report','--format','html']; from profiler.cli import main; main()"
        )
        answer = at_terminal("-c", code)
        assert answer.code == 2 and "add -o report.html" in answer.err


class TestNotebook:
    """Where a notebook looks."""

    def test_everything_shows_itself(self) -> None:
        with Profiler(EVIL) as prof:
            for _ in prof.epochs(4):
                list(prof.train(range(5)))
            begun = prof._repr_html_()
        summary = prof.summary
        pair = summary.compare(summary)
        for shown in (begun, summary._repr_html_(), pair._repr_html_()):
            page = Parsed(shown)
            assert EVIL in "".join(page.text) and not page.named("script") and not page.named("style")
        assert "What held the run back" in summary._repr_html_()
        assert "as a whole" in str(pair) and "as a whole" in "".join(Parsed(pair._repr_html_()).text)

    def test_print_adds_no_block(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Rich shows a block by itself where it believes to be in a notebook."""
        shown: list[Any] = []
        notebook = types.ModuleType("IPython.display")
        notebook.display = lambda *things, **_: shown.append(things)  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "IPython", types.ModuleType("IPython"))
        monkeypatch.setitem(sys.modules, "IPython.display", notebook)
        monkeypatch.setattr(rich.console, "_is_jupyter", lambda: True)
        monkeypatch.setattr(builtins, "get_ipython", object, raising=False)
        with Profiler("one") as prof:
            list(prof.train(range(3)))
        assert "verdict" in str(prof.summary) and not shown


# ---- in a real browser ---------------------------------------------------------------------------------------------

COUNT = """
<script>
addEventListener("load", () => {
  const buttons = [...document.querySelectorAll(".tools button")];
  const before = document.querySelector("svg.time").getAttribute("viewBox");
  buttons[0].focus();
  buttons[0].click();
  const zoomed = document.querySelector("svg.time").getAttribute("viewBox");
  buttons[4].click();
  const box = document.querySelector("svg.time").getBoundingClientRect();
  document.querySelector("svg.time").dispatchEvent(
    new PointerEvent("pointermove", {clientX: box.left + box.width / 2, clientY: box.top + 5, bubbles: true}));
  const tip = document.querySelector(".tip");
  document.title = JSON.stringify({
    buttons: buttons.length, before, zoomed, whole: document.querySelector("svg.time").getAttribute("viewBox"),
    tip: tip.hidden ? "" : tip.textContent, focused: document.activeElement === buttons[0],
    wide: document.documentElement.scrollWidth > innerWidth,
  });
});
</script>
"""
AXE = """
<script>%s</script>
<script>
axe.run(document).then((found) => {
  document.title = JSON.stringify(found.violations.map((one) => [one.id, one.nodes.length, one.nodes[0].html.slice(0, 200)]));
});
</script>
"""


def title_of(page: Path, more: str, *options: str) -> Any:
    """Return what a script in a copy of the page, which has no policy, has put into its title."""
    content = re.sub(r"<meta http-equiv[^>]*>", "", page.read_text())
    other = page.with_name("with_script.html")
    other.write_text(content.replace("</body>", more + "</body>"))
    dumped = browse(other.as_uri(), "--virtual-time-budget=20000", "--dump-dom", *options).stdout
    found = re.search(r"<title>(.*?)</title>", dumped, re.DOTALL)
    assert found is not None
    return json.loads(found[1].replace("&gt;", ">").replace("&lt;", "<").replace("&amp;", "&"))


def messages(log: str) -> list[str]:
    return [line for line in log.splitlines() if ":CONSOLE" in line or "Refused to" in line]


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory, big: Run) -> list[Path]:
    folder = tmp_path_factory.mktemp("pages")
    written = {
        "run.html": run_page(big),
        "evil.html": run_page(small(EVIL)),
        "compare.html": compare_page([compared(small(), small("other"))]),
    }
    for name, content in written.items():
        (folder / name).write_text(content)
    return [folder / name for name in written]


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
class TestBrowser:
    def test_no_message_and_no_request(self, pages: list[Path]) -> None:
        for page in pages:
            shot = page.with_suffix(".png")
            log = browse(page.as_uri(), f"--screenshot={shot}", "--window-size=1280,2000").stderr
            assert not messages(log), messages(log)
            assert shot.stat().st_size > 20_000

    @pytest.mark.parametrize("width", WIDTHS)
    def test_zoom_and_hover_in_three_widths(self, pages: list[Path], width: int) -> None:
        told = title_of(pages[0], COUNT, f"--window-size={width},2000")
        assert told["buttons"] == 5 and told["focused"] and not told["wide"]
        assert (told["before"], told["zoomed"], told["whole"]) == ("0 0 1000 100", "250 0 500 100", "0 0 1000 100")
        assert "forward: " in told["tip"] and "at s: " in told["tip"]

    def test_axe_finds_nothing(self, pages: list[Path]) -> None:
        spec = importlib.util.find_spec("axe_core_python")
        if spec is None or not spec.submodule_search_locations:
            pytest.skip("needs axe-core-python")
        axe = (Path(spec.submodule_search_locations[0]) / "axe.min.js").read_text()
        for page in pages[1:]:  # in the long one it needs minutes for the cells of a thousand epochs
            assert title_of(page, AXE % axe) == []

    def test_it_prints(self, pages: list[Path]) -> None:
        paper = pages[1].with_suffix(".pdf")
        browse(pages[1].as_uri(), f"--print-to-pdf={paper}")
        assert paper.read_bytes().startswith(b"%PDF") and paper.stat().st_size > 20_000
