"""The package's own code: the files that its installation has recorded, and the words that stand in them.

A package may load its users' files under its own name (plugins), and make commands of its users' files (recipes). Their names
are the users'. So a module counts only if its file is where the installation says that this module is. The name of a
command that the author has not listed counts only if it stands in such a file.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath

WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
MAX_BYTES = 2**20  # of one source file


class OwnFiles:
    """The own files of one package.

    Args:
        app: the name of the distribution.
        modules: the names of its import packages.
    """

    def __init__(self, app: str, modules: Iterable[str]) -> None:
        self._modules = tuple(modules)
        self._recorded = _recorded(app, self._modules)
        self._words: set[str] | None = None

    def has(self, module: str, path: str) -> bool:
        """Return True if this file is the package's own module of that name. The path is compared, and not kept."""
        expected = self._place_of(module)
        return expected is not None and os.path.realpath(path) == expected

    def says(self, name: str) -> bool:
        """Return True if each part of a name stands in the package's own files, as far as they are loaded."""
        if self._words is None:
            self._words = set()
            for module, loaded in list(sys.modules.items()):
                path = getattr(loaded, "__file__", None)
                if isinstance(path, str) and self.has(module, path):
                    self._words |= _words_in(Path(path))
        return all(_plain(part) in self._words for part in name.split("."))

    def _place_of(self, module: str) -> str | None:
        top, _, rest = module.partition(".")
        if top not in self._modules:
            return None
        if self._recorded:
            return self._recorded.get(module)
        # Nothing is recorded: the package runs from a folder of sources. There, a module is where its name says.
        found = getattr(sys.modules.get(top), "__file__", None)
        if not isinstance(found, str):
            return None
        if not rest:
            return os.path.realpath(found)
        place = Path(found).parent.joinpath(*rest.split("."))
        inner = place / "__init__.py"
        return os.path.realpath(inner if inner.exists() else place.with_name(f"{place.name}.py"))


def _recorded(app: str, modules: tuple[str, ...]) -> Mapping[str, str]:
    """Return the place of each module that the installation of this package has recorded (its RECORD); none if it has none."""
    from importlib import metadata

    try:
        files = metadata.distribution(app).files or ()
    except (metadata.PackageNotFoundError, ValueError, OSError):
        return {}
    found = {}
    for file in files:
        parts = PurePosixPath(file).with_suffix("").parts
        if file.suffix == ".py" and parts and parts[0] in modules:
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            found[name] = os.path.realpath(str(file.locate()))
    return found


def _words_in(path: Path) -> set[str]:
    try:
        text = path.read_bytes()[:MAX_BYTES].decode("utf-8", "replace")
    except OSError:
        return set()
    return set(map(_plain, WORD.findall(text)))


def _plain(word: str) -> str:
    """Return a word as a function, an option and a command have it alike."""
    return word.lower().replace("-", "_")
