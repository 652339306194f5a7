"""Whether a loader is one of torch, and how many batches it will hand out, asked only where asking changes nothing."""

from __future__ import annotations

import sys
from typing import Any

from profiler.records.faults import is_of_a_signal


def known_length(loader: Any) -> int | None:
    """Return the number of batches, or None if the loader does not know it, or if asking could change anything.

    A loader over an iterable data set remembers that it was asked, and warns later if the length was wrong. A length of the
    program's own class may be dear, or count how often it is asked.
    """
    if type(loader) in (list, tuple, range):
        return len(loader)
    if not is_data_loader(loader) or isinstance(loader.dataset, _torch_data().IterableDataset):
        return None
    try:
        return len(loader) or None
    except Exception as error:  # the program's own sampler
        if is_of_a_signal(error):
            raise
        return None


def is_data_loader(thing: Any) -> bool:
    """Return True for a DataLoader of torch, which is looked up and not imported."""
    data = _torch_data()
    return data is not None and isinstance(thing, data.DataLoader)


def _torch_data() -> Any:
    return getattr(getattr(sys.modules.get("torch"), "utils", None), "data", None)
