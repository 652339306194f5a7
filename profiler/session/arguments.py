"""Check the arguments of `Profiler`, and say what was wrong, what was expected and what to do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from profiler.config.schema import check_exporter, check_settings
from profiler.errors import ArgumentTypeError, ArgumentValueError
from profiler.measure.batch_size import batch_size, told_size
from profiler.records.vocabulary import printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from profiler.measure.passes import SampleCount


def checked_name(name: Any) -> str:
    """Return the run's name as text that every encoder takes."""
    if not isinstance(name, str):
        raise ArgumentTypeError(f"a run needs a name, such as Profiler('digits-mlp'), not {name!r}")
    if not name.strip() or len(name) > 200:
        raise ArgumentValueError(f"a run's name has 1 to 200 characters, unlike {name[:220]!r}")
    return printable(name)


def checked_count(what: str, value: Any) -> int | None:
    """Return a whole number above 0, or None."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int):
        raise ArgumentTypeError(f"{what} is a whole number, not {value!r}")
    if value < 1:
        raise ArgumentValueError(f"{what} is a whole number above 0, not {value!r}")
    return value


def checked_interval(value: Any) -> float:
    """Return the seconds between two readings."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ArgumentTypeError(f"interval is a number of seconds, not {value!r}")
    if not 0.01 <= value <= 3600:
        raise ArgumentValueError(f"interval is between 0.01 and 3600 seconds, not {value!r}")
    return float(value)


def checked_device(value: Any) -> str | None:
    """Return the device's name, or None."""
    if value is None:
        return None
    text = str(value)  # a torch.device prints as its name
    kind, _, index = text.partition(":")
    if kind not in ("cuda", "cpu", "mps", "xpu") or (index and not index.isdigit()):
        raise ArgumentValueError(f"device is 'cuda', 'cuda:0', 'cpu' or 'mps', not {value!r}")
    return text


def checked_iterable(what: str, value: Any) -> Any:
    """Return the value if it can be iterated over."""
    if not hasattr(value, "__iter__") and not hasattr(value, "__getitem__"):
        raise ArgumentTypeError(f"{what}: something to iterate over was expected, such as a DataLoader, not {value!r}")
    return value


def checked_settings(settings: Any, exporter: Any) -> dict[str, Any]:
    """Return the settings given in code, the exporter's name included."""
    check_exporter(exporter)
    named = {"exporter": exporter} if isinstance(exporter, str) else {}
    checked = check_settings(settings)
    if checked.get("exporter") == "none":  # any "off" wins
        named = {}
    return {**checked, **check_settings(named)}


def sample_count(samples: Any, note: Callable[[str], None]) -> SampleCount:
    """Return a function that gives the number of samples in an item. ``note`` receives each fault of a user's function."""
    if samples is None:
        return batch_size
    if isinstance(samples, bool) or not (isinstance(samples, int) or callable(samples)):
        raise ArgumentTypeError(f"samples is a whole number or a function of a batch, not {samples!r}")
    if not isinstance(samples, int):
        return told_size(samples, note)
    if samples < 0:
        raise ArgumentValueError(f"samples is a number of samples in a batch, not {samples!r}")
    return lambda _: samples


def checked_distributed(value: Any) -> bool:
    """Return True if ranks are to exchange the times of their epochs."""
    if value not in ("auto", True, False):
        raise ArgumentValueError(f"distributed is 'auto', True or False, not {value!r}")
    return value is not False
