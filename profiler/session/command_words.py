"""The words with which a script was started, for the list of runs on this machine. They are in the run log alone.

The rule they keep: no folder, and nothing that looks like a secret.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import PurePosixPath, PureWindowsPath

MOST_LETTERS = 120
SECRET = re.compile(r"token|secret|passw|pwd|key|auth|credential|cookie|session|dsn", re.IGNORECASE)
RANDOM = re.compile(r"(?=[^a-z]*[a-z])(?=[^0-9]*[0-9])[a-z0-9_+=.-]{20,}", re.IGNORECASE)  # as keys and tokens look
HIDDEN = "..."


def command_words(target: str, arguments: Sequence[str]) -> str:
    """Return a script's name and its arguments as one text, at most `MOST_LETTERS` long."""
    words, hides_next = [_without_folder(target)], False
    for argument in arguments:
        if hides_next and not argument.startswith("-"):
            words.append(HIDDEN)
            hides_next = False
            continue
        name, sign, value = argument.partition("=")
        is_secret = bool(SECRET.search(name))
        hides_next = is_secret and not sign and name.startswith("-")
        if sign:
            words.append(f"{_shown(name)}={HIDDEN if is_secret else _shown(value)}")
        else:
            words.append(_shown(argument))
    text = " ".join(words)
    return text if len(text) <= MOST_LETTERS else f"{text[: MOST_LETTERS - len(HIDDEN)]}{HIDDEN}"


def _shown(word: str) -> str:
    bare = _without_folder(word)
    return HIDDEN if RANDOM.fullmatch(bare) else bare


def _without_folder(word: str) -> str:
    """Return the last part of a path or an address."""
    for kind in (PurePosixPath, PureWindowsPath):
        if len(kind(word).parts) > 1:
            word = kind(word).name
    return word
