"""The texts in a protobuf message."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from google.protobuf.message import Message


def texts(message: Message) -> Iterator[str]:
    """Every text in a message, whatever its fields are called."""
    for field, value in message.ListFields():
        for entry in [value] if not isinstance(value, Iterable) or isinstance(value, (str, bytes)) else value:
            if isinstance(entry, Message):
                yield from texts(entry)
            elif isinstance(entry, str):
                yield entry
            else:
                assert not isinstance(entry, bytes), field.full_name
