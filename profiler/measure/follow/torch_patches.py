"""Wrap the functions of torch that have no hooks, while anything is attached."""

from __future__ import annotations

import contextlib
import functools
import importlib
import threading
import weakref
from collections.abc import Callable, Sequence
from typing import Any

from profiler.measure.follow.torch_modules import find_torch
from profiler.measure.frames import drop_own_frame

TYPE_CHECKING = False
if TYPE_CHECKING:
    from profiler.measure.follow.notes import LoaderFeed
    from profiler.measure.follow.observer import LoopObserver
    from profiler.measure.follow.torch_hooks import TorchHooks


FEEDS = "_epochmeter_feeds"  # attribute of a loader's iterator: its observers, each with its feed


class Patches:
    """The wrapped functions of torch, and the hooks of the runs that listen to them."""

    def __init__(self) -> None:
        self.listeners: tuple[TorchHooks, ...] = ()
        self.is_switching = False  # a module, and its parts, go into training or evaluation mode
        self._lock = threading.Lock()
        self._places: list[tuple[Any, str, Any, Any]] = []  # owner, name, original, our wrapper

    def add(self, hooks: TorchHooks) -> None:
        """Wrap the functions that these hooks listen to."""
        with self._lock:
            if hooks not in self.listeners:
                self.listeners = (*self.listeners, hooks)
            self._put()

    def discard(self, hooks: TorchHooks) -> None:
        """Stop reporting to these hooks. The last one restores the original functions."""
        with self._lock:
            self.listeners = tuple(other for other in self.listeners if other is not hooks)
            if not self.listeners:
                self._take_away()

    def _put(self) -> None:
        torch = find_torch()
        data = importlib.import_module("torch.utils.data.dataloader")
        module = torch.nn.Module
        everything = any(hooks.everything for hooks in self.listeners)
        loaders = everything or any(hooks.has_loaders for hooks in self.listeners)
        # A program may have imported a function before it was wrapped, and may pickle it, which looks it up. So ``torch.save``
        # stays as it is at its home, and what every backward and every script ends in is wrapped instead: private functions,
        # which nobody holds.
        engine = hasattr(torch.autograd, "_engine_run_backward")
        for owner, name, wrapper in (
            (torch.autograd, "_engine_run_backward" if engine else "backward", _backward),
            (importlib.import_module("torch.jit._recursive"), "create_script_module", _create_script_module),
            (module, "train", _train),
            (module, "compile", _compile),
            *(((torch, "save", _save),) if any(hooks.all_loaders for hooks in self.listeners) else ()),
            *(((data.DataLoader, "__iter__", _iter), (data._BaseDataLoaderIter, "__next__", _next)) if loaders else ()),
            *(((module, "__init__", _init), (module, "__setstate__", _setstate)) if everything else ()),
        ):
            if any(place[:2] == (owner, name) for place in self._places):
                continue
            original = getattr(owner, name)
            wrapped = functools.wraps(original)(wrapper(original))
            if owner is torch:
                wrapped.__module__, wrapped.__qualname__ = "torch", name
            setattr(owner, name, wrapped)
            self._places.append((owner, name, original, wrapped))

    def _take_away(self) -> None:
        # Another tool may have wrapped our wrapper since. Restoring the original would then throw the other tool's wrapper
        # away, so ours stays inside it and only passes on.
        for owner, name, original, wrapped in self._places:
            if getattr(owner, name) is wrapped:
                setattr(owner, name, original)
        self._places = []


PATCHES = Patches()


def _create_script_module(original: Callable[..., Any]) -> Callable[..., Any]:
    """Remove our hooks while torch turns a module into a script: it would compile them, and cannot."""

    def create_script_module(*args: Any, **kwargs: Any) -> Any:
        modules = [hooked for hooks in PATCHES.listeners for hooked in hooks.hooked_modules()]
        for hooked in modules:
            hooked.take_away()
            hooked.drop_passed_on()
        try:
            return original(*args, **kwargs)
        except BaseException as error:
            drop_own_frame(error)
            raise
        finally:
            for hooked in modules:
                hooked.put_back()

    return create_script_module


def _backward(original: Callable[..., Any]) -> Callable[..., Any]:
    def backward(*args: Any, **kwargs: Any) -> Any:
        is_grad = kwargs.get("accumulate_grad") is False
        listeners = PATCHES.listeners if len(PATCHES.listeners) < 2 and not is_grad else _concerned(is_grad)
        for hooks in listeners:
            hooks.has_backward |= not is_grad
            hooks.before_backward()
        try:
            return original(*args, **kwargs)
        except BaseException as error:
            drop_own_frame(error)
            raise
        finally:
            for hooks in listeners:
                hooks.after_backward()

    return backward


def _concerned(is_grad: bool) -> Sequence[TorchHooks]:
    """Return the hooks that a backward of this thread concerns: those of the model that was called last.

    ``torch.autograd.grad`` (``is_grad``) is the backward of a loop that has no other. Elsewhere it is a part of the loss.
    """
    listeners = [hooks for hooks in PATCHES.listeners if not is_grad or hooks.trains_by_grad()]
    calls = {hooks: hooks.last_forward() for hooks in listeners}
    newest = max((call[0] for call in calls.values() if call is not None), default=None)
    if newest is None:
        return [hooks for hooks in listeners if hooks.observer.is_mine()]
    return [hooks for hooks, call in calls.items() if call is not None and call[1] >= newest]


def _save(original: Callable[..., Any]) -> Callable[..., Any]:
    def save(*args: Any, **kwargs: Any) -> Any:
        open_checkpoints = [(hooks.observer, hooks.observer.checkpoint_begins()) for hooks in PATCHES.listeners]
        try:
            return original(*args, **kwargs)
        except BaseException as error:
            drop_own_frame(error)
            raise
        finally:
            for observer, gap in open_checkpoints:
                if gap is not None:
                    observer.checkpoint_ends(gap)

    return save


def _iter(original: Callable[..., Any]) -> Callable[..., Any]:
    def __iter__(self: Any) -> Any:
        feeds = [
            (hooks.observer, feed)
            for hooks in PATCHES.listeners
            if hooks.is_followed(self) and (feed := hooks.loader_begins(self)) is not None
        ]
        waits = [observer.start_begins(feed) for observer, feed in feeds]
        try:
            iterator = original(self)
        except BaseException as error:
            drop_own_frame(error)
            raise
        finally:
            for (observer, feed), wait in zip(feeds, waits, strict=True):
                if wait is not None:
                    feed.start_ns = wait.end_unrecorded()
                    observer.start_ends(feed)
        with contextlib.suppress(AttributeError, TypeError):  # an iterator that takes no attributes is not observed
            setattr(iterator, FEEDS, feeds)
            for observer, feed in feeds:
                feed.note_first = functools.partial(_note_first, observer, weakref.ref(self), weakref.ref(iterator))
                feed.watch = weakref.ref(iterator, functools.partial(_dropped, observer, feed))
        return iterator

    return __iter__


def _note_first(observer: LoopObserver, loader: weakref.ref[Any], iterator: weakref.ref[Any], *first: Any) -> None:
    segment, waited_ns = first
    observer.timer.causes.loaders.note(segment, loader(), iterator(), waited_ns)


def _feeds_of_known(iterator: Any) -> list[tuple[LoopObserver, LoaderFeed]]:
    """Make the feeds of an iterator that is older than our wrapper, and restarts inside itself."""
    return [
        (hooks.observer, feed)
        for hooks in PATCHES.listeners
        if hooks.all_loaders and (feed := hooks.loader_begins(iterator)) is not None
    ]


def _dropped(observer: LoopObserver, feed: LoaderFeed, _: object) -> None:
    observer.loader_is_dropped(feed)


def _next(original: Callable[..., Any]) -> Callable[..., Any]:
    def __next__(self: Any) -> Any:
        feeds: list[tuple[LoopObserver, LoaderFeed]] | None = self.__dict__.get(FEEDS)
        if feeds is None:
            feeds = self.__dict__[FEEDS] = _feeds_of_known(self)
        if not feeds:
            return original(self)
        if len(feeds) > 1:
            return _followed_by_several(original, self, feeds)
        ((observer, feed),) = feeds
        wait = feed.fetch_begins()
        try:
            item = original(self)
        except BaseException as error:
            if wait is not None:
                observer.fetch_fails(feed, wait, at_end=isinstance(error, StopIteration))
            drop_own_frame(error)
            raise
        if wait is not None:
            feed.fetch_ends(wait, item)
        return item

    return __next__


def _followed_by_several(original: Callable[..., Any], iterator: Any, feeds: list[tuple[LoopObserver, LoaderFeed]]) -> Any:
    waits = [(observer, feed, feed.fetch_begins()) for observer, feed in feeds]
    try:
        item = original(iterator)
    except BaseException as error:
        for observer, feed, wait in waits:
            if wait is not None:
                observer.fetch_fails(feed, wait, at_end=isinstance(error, StopIteration))
        drop_own_frame(error)
        raise
    for _, feed, wait in waits:
        if wait is not None:
            feed.fetch_ends(wait, item)
    return item


def _init(original: Callable[..., Any]) -> Callable[..., Any]:
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        try:
            original(self, *args, **kwargs)
        except BaseException as error:
            drop_own_frame(error)
            raise
        _look_out()

    return __init__


def _setstate(original: Callable[..., Any]) -> Callable[..., Any]:
    def __setstate__(self: Any, state: Any) -> None:
        try:
            original(self, state)
        except BaseException as error:
            drop_own_frame(error)
            raise
        _look_out()

    return __setstate__


def _look_out() -> None:
    for hooks in PATCHES.listeners:
        if hooks.everything:
            hooks.look_out()


def _train(original: Callable[..., Any]) -> Callable[..., Any]:
    def train(self: Any, *args: Any, **kwargs: Any) -> Any:
        before, is_outermost = self.training, not PATCHES.is_switching
        PATCHES.is_switching = True
        try:
            switched = original(self, *args, **kwargs)  # which calls the same of its parts
        except BaseException as error:
            drop_own_frame(error)
            raise
        finally:
            if is_outermost:
                PATCHES.is_switching = False
        if is_outermost and self.training is not before:
            for hooks in PATCHES.listeners:
                hooks.module_switches()
        return switched

    return train


def _compile(original: Callable[..., Any]) -> Callable[..., Any]:
    def compile_module(self: Any, *args: Any, **kwargs: Any) -> None:
        try:
            original(self, *args, **kwargs)
        except BaseException as error:
            drop_own_frame(error)
            raise
        for hooks in PATCHES.listeners:
            hooks.module_compiled(self)

    return compile_module
