"""Watch the calls of all modules for a while, to find those that a loop calls itself.

The rule it keeps: nothing is put on a module, so that no copy, file, trace or compiled form of it has anything of ours.
``Module.__call__`` is wrapped only while somebody watches, because the wrapper costs each call of each part.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import Any

from profiler.measure.follow.torch_modules import find_torch
from profiler.measure.frames import drop_own_frame

Watcher = Callable[[Any], None]


class Calls:
    """The watchers of ``Module.__call__``, and its wrapper while there are any."""

    def __init__(self) -> None:
        self.watchers: tuple[Watcher, ...] = ()
        self._lock = threading.Lock()
        self._original: Any = None
        self._wrapper: Any = None  # the only one: it stays inside another tool's wrapper if that came later

    def watch(self, watcher: Watcher) -> None:
        """Call this function with each module that is called, before the call."""
        with self._lock:
            if watcher in self.watchers:
                return
            self.watchers = (*self.watchers, watcher)
            module = find_torch().nn.Module
            if self._wrapper is None or self._original is module.__call__:
                self._original = module.__call__
                self._wrapper = self._wrapper or _watched(self._original)
                module.__call__ = self._wrapper

    def ignore(self, watcher: Watcher) -> None:
        """Undo `watch`. The last one restores the original."""
        with self._lock:
            self.watchers = tuple(other for other in self.watchers if other != watcher)
            module = find_torch().nn.Module
            if not self.watchers and module.__call__ is self._wrapper:
                module.__call__ = self._original


CALLS = Calls()


def _watched(original: Callable[..., Any]) -> Callable[..., Any]:
    torch = find_torch()
    is_compiling = torch.compiler.is_compiling
    is_tracing = torch.jit.is_tracing

    @functools.wraps(original)
    def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:
        if is_compiling():
            return original(self, *args, **kwargs)
        for watcher in () if is_tracing() else CALLS.watchers:
            watcher(self)
        try:
            return original(self, *args, **kwargs)
        except BaseException as error:
            drop_own_frame(error)
            raise

    __call__.__qualname__ = "Module.__call__"  # where a pickle looks it up
    _keep_from_compiler(torch, __call__)
    return __call__


def _keep_from_compiler(torch: Any, wrapper: Callable[..., Any]) -> None:
    """Let ``torch.compile`` pass over our wrapper's frame, as over torch's own call, to the module's ``forward``."""
    skip = getattr(torch._C._dynamo.eval_frame, "skip_code", None)
    if skip is not None:
        skip(wrapper.__code__)
