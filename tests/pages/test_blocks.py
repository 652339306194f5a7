"""Every block of code on every page runs: Python in one program a page, commands one after another in one folder a page."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any
from unittest import SkipTest

import pytest
from sybil import Example

from support.pages import LANGUAGES, PAGES, ROOT, blocks, prepare

FENCE = re.compile(r"^ *```(.*)$", re.MULTILINE)
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_every_block_names_its_language(page: Path) -> None:
    begins = FENCE.findall(page.read_text("utf-8"))[::2]
    assert not set(begins) - set(LANGUAGES), "a block of another language is not run"


RUN = [page for page in PAGES if re.search(r"^ *```(python|bash|yaml)$", page.read_text("utf-8"), re.MULTILINE)]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")  # of the frameworks
@pytest.mark.timeout(300)
@pytest.mark.parametrize("page", RUN, ids=lambda page: page.name)
def test_every_block_runs(page: Path, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from support.page_names import Made

    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    prepare(tmp_path)
    names = Made()

    def python(example: Example) -> None:
        code: Any = compile(str(example.parsed), str(page), "exec")
        names.make_for(example.parsed)
        exec(code, names)  # noqa: S102  # it is our own page

    for _ in range(2):  # pages speak of the newest run, and of the one before
        names.make_for("prof")
        names.pop("prof").stop()
    with warnings.catch_warnings():
        for example in blocks(python).parse(page).examples():
            try:
                example.evaluate()
            except SkipTest as why:
                assert len(str(why)) > 10, f"line {example.line}: say why this block is not run"
