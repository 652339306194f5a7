"""The objects that `Profiler` hands to a loop: a timed loader, and the handle of `attach`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, Generic, TypeVar

TYPE_CHECKING = False
if TYPE_CHECKING:
    from profiler.measure.follow.torch_hooks import TorchHooks


T = TypeVar("T")


class Pass(Generic[T]):
    """A loader whose iteration is timed. It has the loader's length and attributes."""

    def __init__(self, items: Iterable[T], iterate: Callable[[], Iterator[T]]) -> None:
        self._items = items
        self._iterate = iterate

    def __iter__(self) -> Iterator[T]:
        return self._iterate()

    def __bool__(self) -> bool:
        return bool(self._items)

    def __len__(self) -> int:
        return len(self._items)  # type: ignore[arg-type]  # the loader's own TypeError if it has no length

    def __reduce__(self) -> tuple[Any, ...]:
        """Copy and pickle as a wrapped loader that is not timed."""
        return Pass, (self._items, partial(iter, self._items))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name in ("_items", "_iterate"):
            raise AttributeError(name)
        return getattr(self._items, name)  # loader.sampler, loader.dataset: as without the wrapper


class Attachment:
    """The hooks of one `Profiler.attach`. They are removed by `remove`, or at the end of a ``with``."""

    def __init__(self, hooks: TorchHooks | None, things: tuple[Any, ...], held: object = None) -> None:
        self._hooks = hooks  # None: of a copy, which has nothing to remove
        self._things = things
        self._held = held  # the Profiler, whose run goes on while anybody holds it or its handle

    def __reduce__(self) -> tuple[Any, ...]:
        """Copy and pickle without the hooks: a model may hold its own attachment."""
        return Attachment, (None, ())

    def remove(self) -> None:
        """Remove the hooks, except those that another attachment needs. A second call does nothing."""
        things, self._things = self._things, ()
        if self._hooks is not None:
            for thing in things:
                self._hooks.drop(thing)

    def __enter__(self) -> Attachment:
        return self

    def __exit__(self, *exc: object) -> None:
        self.remove()
