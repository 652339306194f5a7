"""Every error that reaches a user, in one tree.

    ProfilerError
    ├── ArgumentTypeError   (also a TypeError)   an argument of the wrong type
    ├── ArgumentValueError  (also a ValueError)  an argument with a value that cannot be used
    ├── SettingsError       (also a ValueError)  a setting that does not exist, or a value it cannot take
    ├── RunNotFoundError    (also a LookupError) no recorded run fits the request
    ├── RunLogError                              a run log that cannot be read or written
    └── ProbeUnavailableError                    a source of readings that is not available, with the cure

The rule: a text says what was wrong, what was expected and what to do.
"""

from __future__ import annotations

from collections.abc import Iterable


class ProfilerError(Exception):
    """The root: ``except ProfilerError`` catches every error that this package raises on purpose."""


class ArgumentTypeError(ProfilerError, TypeError):
    """An argument of the wrong type."""


class ArgumentValueError(ProfilerError, ValueError):
    """An argument of the right type with a value that cannot be used."""


class SettingsError(ProfilerError, ValueError):
    """A setting that does not exist, or a value it cannot take."""


class NoFolderError(SettingsError, RuntimeError):
    """The folder in which everything is kept is not known."""


class RunNotFoundError(ProfilerError, LookupError):
    """No recorded run fits the request."""


class RunLogError(ProfilerError):
    """A run log that cannot be read or written."""


class ProbeUnavailableError(ProfilerError):
    """A source of readings is not available. The text says why, and what to do about it.

    Attributes:
        is_trouble: it should be available, so the report mentions it once.
        may_come: it may become available later in the run.
    """

    def __init__(self, text: str, *, is_trouble: bool = False, may_come: bool = False) -> None:
        super().__init__(text)
        self.is_trouble = is_trouble
        self.may_come = may_come


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return `` Did you mean 'sync'?``, or "" if no known word is close."""
    import difflib  # it is only needed for people who have mistyped something

    close = difflib.get_close_matches(word.lower(), list(known), n=3, cutoff=0.5)
    return f" Did you mean {' or '.join(repr(match) for match in close)}?" if close else ""
