"""How many batches a loader will hand out, asked only where asking changes nothing."""

from __future__ import annotations

import sys
from typing import Any


def known_length(loader: Any) -> int | None:
    """Return the number of batches, or None if the loader does not know it, or if asking could change anything.

    A loader over an iterable data set remembers that it was asked, and warns later if the length was wrong. A length of the
    program's own class may be dear, or count how often it is asked.
    """
    if type(loader) in (list, tuple, range):
        return len(loader)
    data: Any = getattr(sys.modules.get("torch"), "utils", None)
    data = getattr(data, "data", None)
    if data is None or not isinstance(loader, data.DataLoader) or isinstance(loader.dataset, data.IterableDataset):
        return None
    try:
        return len(loader) or None
    except Exception:  # the program's own sampler
        return None
