"""Fit the repository into the site: the README as its first page, and the files outside of docs/ that pages link to."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"(\]\()((?:\.\./)+)([^)#\s]+)")
MADE = {"index.md": "README.md", "contributing.md": "CONTRIBUTING.md"}


def on_files(files: Files, config: Any) -> Files:
    """Add the README, CONTRIBUTING, and each file outside of docs/ that a page links to."""
    for page, source in MADE.items():
        text = (ROOT / source).read_text("utf-8")
        text = re.sub(r"\]\(docs/", "](", text)
        text = re.sub(r"\]\((?!http|#)(?=[A-Z]|examples|benchmarks|tests|profiler)", "](../", text)
        files.append(File.generated(config, page, content=text))
    wanted: set[str] = set()
    for file in files.documentation_pages():
        wanted.update(path for _, _, path in LINK.findall(file.content_string))
    for path in sorted(wanted):
        target = ROOT / path
        if path in MADE.values():
            continue
        if target.exists():
            files.append(File.generated(config, f"repository/{_as_file(path)}", content=_content(target)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Point links out of docs/ to the copies in the site."""
    by_source = {source: made for made, source in MADE.items()}

    def moved(found: re.Match[str]) -> str:
        path = found[3]
        return found[1] + (by_source[path] if path in by_source else f"repository/{_as_file(path)}")

    return LINK.sub(moved, markdown)


def _content(target: Path) -> bytes:
    """Return a file, or of a folder its README or else the names in it."""
    if target.is_dir():
        readme = target / "README.md"
        names = sorted(path.name for path in target.iterdir() if not path.name.startswith((".", "__")))
        return readme.read_bytes() if readme.exists() else "\n".join(names).encode()
    return target.read_bytes()


def _as_file(path: str) -> str:
    """Return a name that a browser shows instead of saving it, and that is no page of the site."""
    path = path.rstrip("/")
    return path if path.endswith((".json", ".png", ".svg")) else f"{path}.txt"
