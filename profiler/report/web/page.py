"""One HTML file: its skeleton, its tables and its policy. Elements are those of `xml.etree`, which escapes every text.

The rule it keeps: the policy allows our own script and style alone, by their hashes, and no request. Nothing depends on them.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable
from pathlib import Path
from xml.etree.ElementTree import Element, tostring

from profiler.report.layout import Column

HERE = Path(__file__).parent
POLICY = "default-src 'none'; script-src 'sha256-{script}'; style-src 'sha256-{style}'; base-uri 'none'; form-action 'none'"
Content = Element | str | None


def el(kind: str, /, *content: Content, **attributes: object) -> Element:
    """Return an element. ``class_`` is its class, and an underscore in a name is a hyphen; an attribute None is left out."""
    made = Element(kind)
    for key, value in attributes.items():
        if value is not None:
            made.set(key.rstrip("_").replace("_", "-"), str(value))
    for part in content:
        if isinstance(part, str):
            if len(made):
                made[-1].tail = (made[-1].tail or "") + part
            else:
                made.text = (made.text or "") + part
        elif part is not None:
            made.append(part)
    return made


def table(columns: Iterable[Column], caption: str, *, identity: str | None = None) -> Element:
    """Return a table for the columns of `layout`. Its first column has the heads of the rows."""
    shown = [column for column in columns if any(column.cells)]
    kinds = [None if column.is_words else "n" for column in shown]
    heads = [el("th", column.head, scope="col", class_=kind) for column, kind in zip(shown, kinds, strict=True)]
    rows = []
    for cells in zip(*(column.cells for column in shown), strict=True):
        first, *others = (cell.strip() if kind else cell for cell, kind in zip(cells, kinds, strict=True))
        numbers = [el("td", cell, class_=kind) for cell, kind in zip(others, kinds[1:], strict=True)]
        rows.append(el("tr", el("th", first, scope="row", class_=kinds[0]), *numbers))
    made = el("table", el("caption", caption), el("thead", el("tr", *heads)), el("tbody", *rows), id=identity)
    return el("div", made, class_="wide", tabindex="0", role="region", aria_label=caption)


def facts(rows: Iterable[tuple[str, str]]) -> Element:
    """Return texts, each with its label."""
    return el("dl", *(part for label, text in rows for part in (el("dt", label), el("dd", text))))


def section(title: str, *content: Content) -> Element:
    """Return a part of a page with its heading."""
    return el("section", el("h2", title), *content)


def folded(summary: str, *content: Content) -> Element:
    """Return a part that is shown on request."""
    return el("details", el("summary", summary), *content)


def page(title: str, *content: Content) -> str:
    """Return the whole file."""
    style, script = ((HERE / name).read_text("utf-8") for name in ("style.css", "script.js"))
    hashes = {"script": _hash(script), "style": _hash(style)}
    head = el(
        "head",
        el("meta", charset="utf-8"),
        el("meta", http_equiv="Content-Security-Policy", content=POLICY.format(**hashes)),
        el("meta", name="viewport", content="width=device-width, initial-scale=1"),
        el("meta", name="color-scheme", content="light dark"),
        el("title", title),
        el("style", style),
    )
    whole = el("html", head, el("body", el("main", *content), el("script", script)), lang="en")
    made = tostring(whole, encoding="unicode", method="html")
    # Letters beyond ASCII as references: the page is the same through a pipe of any encoding.
    return f"<!DOCTYPE html>\n{made}\n".encode("ascii", "xmlcharrefreplace").decode()


def fragment(*content: Content) -> str:
    """Return parts of a page for a notebook, whose style and policy are its own."""
    return tostring(el("div", *content), encoding="unicode", method="html")


def _hash(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
