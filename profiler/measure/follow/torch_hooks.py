"""Where torch is listened to: hooks on modules and optimizers, and a few functions of torch that have no hooks.

What is in place, and only while something is attached:

- on each module that was named (for a script that runs unchanged: on each outermost one), a forward pre-hook and a
  forward hook. No backward hooks: they add nodes to the graph, and cost many times as much.
- on each optimizer that was named (or on all), a step pre-hook and post-hook.
- around ``torch.autograd.backward``, which ``Tensor.backward`` calls: a backward takes as long as that call.
- around ``DataLoader.__iter__`` and its iterators' ``__next__``, and around ``torch.save``; for a script that runs
  unchanged also around ``Module.__init__`` and ``Module.train``, to learn which modules there are.

The rules they keep: torch is looked up among what the program has imported; a copy or a pickle of a hooked module holds
nothing of ours; a hook that ``torch.compile`` traces compiles to nothing.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import sys
import threading
import weakref
from collections.abc import Callable, Hashable, Iterator
from typing import Any

from profiler.errors import ArgumentTypeError
from profiler.measure import timer
from profiler.measure.follow.follower import begin_event, end_event

TYPE_CHECKING = False
if TYPE_CHECKING:
    from profiler.measure.follow.follower import Feed, Follower, Lane


FEEDS = "_epochmeter_feeds"  # on a loader's iterator: who follows it, and as what
MAX_LOOKS = 8  # how deep modules are looked for that a loop calls


def find_torch() -> Any:
    """torch, where the program has imported it to its end; else None."""
    torch = sys.modules.get("torch")
    return torch if hasattr(torch, "optim") and hasattr(torch, "compiler") else None


def in_foreign_backward() -> bool:
    """Whether the calling thread is one of autograd's, or is inside a backward: what runs now is not the loop's."""
    found = getattr(getattr(find_torch(), "_C", None), "_current_graph_task_id", None)
    return found is not None and found() != -1


class Hooks:
    """What one run has in place.

    Args:
        follower: is told what happens.
        everything: listen to all modules, optimizers and loaders, not only to those that are named.
        all_loaders: to all loaders, and to what is saved.
    """

    def __init__(self, follower: Follower, *, everything: bool = False, all_loaders: bool = False) -> None:
        self.follower = follower
        self.everything = everything
        self.all_loaders = all_loaders or everything
        self.saw_forward = False
        self._held: dict[int, tuple[Any, int]] = {}  # what was named: its hooks, and how often it was named
        self._sets = Loaders()
        self._loaders: weakref.WeakSet[Any] = weakref.WeakSet()
        self._calls: list[Call] = []
        self._fresh: list[weakref.ref[Any]] = []  # modules that were made since the outermost ones were looked for
        self._looks = 0
        self._steps = 0
        self._handles: list[Any] = []
        self.before_step = begin_event(follower, self.step_begins)  # an optimizer's copy or pickle leaves its hooks behind
        self.after_step = end_event(follower, follower.optimizer_ends, ends_step=True)
        self.before_backward = begin_event(follower, follower.backward_begins)
        self.after_backward = end_event(follower, follower.backward_ends)
        if everything:
            optimizer = importlib.import_module("torch.optim.optimizer")
            self._handles = [
                optimizer.register_optimizer_step_pre_hook(self.before_step),
                optimizer.register_optimizer_step_post_hook(self.after_step),
            ]
        if self.all_loaders:
            PATCHES.add(self)

    def listen_to_loaders(self) -> None:
        self.all_loaders = True
        PATCHES.add(self)

    def add(self, thing: Any) -> None:
        """Listens to a module, an optimizer (or what wraps one) or a loader; to the same one only once.

        Raises:
            ArgumentTypeError: it is none of these.
        """
        held, times = self._held.get(id(thing), (None, 0))
        if held is None:
            held = self._hook(thing)
            PATCHES.add(self)
        self._held[id(thing)] = (held, times + 1)

    def drop(self, thing: Any) -> None:
        """Undoes one `add`."""
        held, times = self._held.get(id(thing), (None, 0))
        if times > 1:
            self._held[id(thing)] = (held, times - 1)
        elif times:
            del self._held[id(thing)]
            held.remove()
            if not self._held and not self.all_loaders:
                PATCHES.discard(self)

    def remove(self) -> None:
        """Nothing is listened to any more."""
        PATCHES.discard(self)
        self.follower.close()
        for held, _ in self._held.values():
            held.remove()
        for handle in self._handles:
            handle.remove()
        for call in self._calls:
            call.remove()
        self._held, self._handles, self._calls = {}, [], []

    def _hook(self, thing: Any) -> Any:
        torch = find_torch()
        if torch is not None and isinstance(thing, torch.nn.Module):
            return Call(self, thing)
        if torch is not None and isinstance(thing, torch.utils.data.DataLoader):
            asked = getattr(thing, "base_dataloader", thing)  # Accelerate's stands around the one that is iterated over
            self._loaders.add(asked)
            return _Loader(self._loaders, asked)
        optimizer = _optimizer(thing)
        if optimizer is None:
            raise ArgumentTypeError(
                f"attach takes modules, optimizers and DataLoaders, not {thing!r}; any other loader: prof.train(loader)"
            )
        return _Both(optimizer.register_step_pre_hook(self.before_step), optimizer.register_step_post_hook(self.after_step))

    # ---- what happens ----------------------------------------------------------------------------------------------

    def step_begins(self, lane: Lane) -> None:
        try:
            self._find_modules()
        except Exception as error:
            self.follower.fault(error)
        self.follower.optimizer_begins(lane)
        if not self.saw_forward and self._looks < MAX_LOOKS:
            lane.forget()  # it goes on being looked for

    def _find_modules(self) -> None:
        if not (self.saw_forward or self._fresh) and self._steps and self._looks < MAX_LOOKS:
            self._look_inside()
        self._steps += 1
        if self.everything:
            self.settle()
        for call in self.calls():
            call.look_for_compiled()

    def is_followed(self, loader: Any) -> bool:
        return self.all_loaders or loader in self._loaders

    def loader_begins(self, loader: Any) -> Feed | None:
        try:
            return self._loader_begins(loader)
        except Exception as error:
            self.follower.fault(error)
            return None

    def _loader_begins(self, loader: Any) -> Feed | None:
        if self.everything:
            self.settle()
        persistent = bool(getattr(loader, "persistent_workers", False))
        return self.follower.loader_begins(self._sets.key(loader), one_iterator=persistent)

    @property
    def has_loaders(self) -> bool:
        return self.all_loaders or bool(len(self._loaders))

    def calls(self) -> Iterator[Call]:
        yield from self._calls
        yield from (held for held, _ in self._held.values() if type(held) is Call)

    # ---- which modules are the outermost ones -----------------------------------------------------------------------

    def made(self, module: Any) -> None:
        self._fresh.append(weakref.ref(module))
        if self.follower.owned():
            self.follower.forget_lanes()  # so that `settle` is called again

    def module_switches(self) -> None:
        """A module goes into training or evaluation mode: models are complete by then."""
        try:
            self.settle()
        except Exception as error:
            self.follower.fault(error)

    def settle(self) -> None:
        """Hooks the outermost of the modules that were made meanwhile, and lets go of those that are inside of one now."""
        if self._fresh:
            fresh, self._fresh = self._fresh, []
            self._hook_outermost([module for ref in fresh if (module := ref()) is not None])

    def _hook_outermost(self, modules: list[Any]) -> None:
        inner = {id(part) for module in modules for part in module.modules() if part is not module}
        known = {id(call.module()) for call in self._calls}
        for module in modules:
            if id(module) not in inner and id(module) not in known and _has_parameters(module):
                self._calls.append(Call(self, module))
        for call in list(self._calls):
            if call.module() is None or id(call.module()) in inner:
                self._let_go(call)

    def _look_inside(self) -> None:
        """A step has gone by, and nothing was called that is hooked: a loop may call the parts of a model alone.

        The parts of those that were never called are hooked, too, and theirs at the next such step.
        """
        self._looks += 1
        for call in [call for call in self.calls() if not call.was_called and not call.parts]:
            module = call.module()
            call.parts = [Call(self, part) for part in ([] if module is None else module.children()) if _has_parameters(part)]
            self._calls += call.parts

    def was_called(self, call: Call) -> None:
        """A module is called itself: its parts are within that."""
        self.saw_forward = call.was_called = True
        while call.parts:
            part = call.parts.pop()
            self.was_called(part)
            self._let_go(part)

    def _let_go(self, call: Call) -> None:
        if call in self._calls:
            self._calls.remove(call)
        call.remove()


class Call:
    """The hooks of one module."""

    __slots__ = (
        *("_compiled", "_handles", "after", "before", "follower", "has_trained"),
        *("hooks", "module", "parts", "takes_gradients", "was_called"),
    )

    def __init__(self, hooks: Hooks, module: Any) -> None:
        self.hooks = hooks
        self.follower = hooks.follower
        self.module: weakref.ref[Any] = weakref.ref(module)
        self.has_trained = False
        self.was_called = False
        self.parts: list[Call] = []  # those of it that are hooked because it was not called itself
        self.takes_gradients: Callable[[], bool] = find_torch().is_grad_enabled
        self._compiled: Any = None  # what stands around the module's compiled call, while it has one
        self.before = _Hook(_before(self))
        self.after = _Hook(_after(self))
        self._handles: list[Any] = []
        self.put_back()
        self.look_for_compiled()

    def begins(self, lane: Lane) -> None:
        module = self.module()
        if module is not None:
            self.hooks.was_called(self)
            self.follower.forward_begins(lane, self, module.training, self.takes_gradients())

    def look_for_compiled(self) -> None:
        """``module.compile()`` puts a compiled function around the hooks, which it would trace: ours goes around that."""
        module = self.module()
        compiled = getattr(module, "_compiled_call_impl", None)
        if module is not None and compiled is not None and compiled is not self._compiled:
            self.take_away()  # with hooks inside of it, torch compiles something else
            self._compiled = module._compiled_call_impl = _around(self, compiled)

    def put_back(self) -> None:
        module = self.module()
        if module is not None and not self._handles and self._compiled is None:
            self._handles = [
                module.register_forward_pre_hook(self.before),
                module.register_forward_hook(self.after, always_call=True),
            ]

    def take_away(self) -> None:
        while self._handles:
            self._handles.pop().remove()

    def remove(self) -> None:
        self.take_away()
        module: Any = self.module()
        if self._compiled is not None and getattr(module, "_compiled_call_impl", None) is self._compiled:
            module._compiled_call_impl = vars(self._compiled)["__wrapped__"]


def _around(call: Call, compiled: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(compiled)
    def timed(*args: Any, **kwargs: Any) -> Any:
        call.before(call.module(), args)
        try:
            return compiled(*args, **kwargs)
        finally:
            call.after(call.module(), args, None)

    vars(timed)["__wrapped__"] = compiled  # whatever the compiled one says that it wraps
    return timed


class _Hook(functools.partial):  # type: ignore[type-arg]
    """A hook that stays behind when what it is on is copied or pickled: what goes along does nothing, and needs no us."""

    def __reduce__(self) -> tuple[Any, ...]:
        return getattr, (contextlib.nullcontext(), "__exit__")


def _before(call: Call) -> Callable[..., None]:
    """As `begin_event`, with a lane for each mode; written out once more, as calls are what is to be saved here."""
    follower, tell = call.follower, call.begins
    learning, other = follower.lane(), follower.lane()
    state, owned, now = follower.timer.owner, follower.owned, timer.now
    takes_gradients, is_compiling = call.takes_gradients, find_torch().compiler.is_dynamo_compiling

    def before(module: Any, args: Any) -> None:
        if is_compiling():
            return
        lane = learning if module.training and takes_gradients() else other
        current = state.current
        if not owned() or (current is not lane.expected and not lane.turn(current)):
            if module is call.module():  # not: a replica of DataParallel, which has our hooks
                tell(lane)
            return
        began = now()
        span = lane.span
        if current is not span.parent:  # a gap ends here
            try:
                current.buffer[current.n] = began - current.t0
                current.n += 1
            except IndexError:
                current.record(began - current.t0)
            if lane.is_on_device:
                current.mark_end()  # type: ignore[attr-defined]  # of the same kind as the one that begins
        state.current = span
        span.t0 = began
        if lane.is_on_device:
            span.mark_begin()

    return before


def _after(call: Call) -> Callable[..., None]:
    """As `end_event`, and written out once more for the same reason."""
    follower = call.follower
    lane, tell = follower.lane(), follower.forward_ends
    state, owned, now = follower.timer.owner, follower.owned, timer.now
    is_compiling = find_torch().compiler.is_dynamo_compiling

    def after(module: Any, args: Any, result: Any) -> None:
        if is_compiling():
            return
        end = now()
        current = state.current
        if not owned() or (current is not lane.expected and not lane.turn(current)):
            if module is call.module():
                tell(lane)
            return
        try:
            current.buffer[current.n] = end - current.t0
            current.n += 1
        except IndexError:
            current.record(end - current.t0)
        if lane.is_on_device:
            current.mark_end()  # type: ignore[attr-defined]
        if lane.segment is not None:
            lane.segment.handed_at = end
        state.current = span = lane.span
        span.t0 = end
        if lane.is_on_device and span is not current.parent:  # a gap begins
            span.mark_begin()

    return after


class _Both:
    def __init__(self, *handles: Any) -> None:
        self._handles = handles

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()


class _Loader:
    def __init__(self, loaders: weakref.WeakSet[Any], loader: Any) -> None:
        self._loaders = loaders
        self._loader = weakref.ref(loader)

    def remove(self) -> None:
        loader = self._loader()
        if loader is not None:
            self._loaders.discard(loader)


def _optimizer(thing: Any) -> Any:
    """The optimizer whose step has hooks: the thing itself, or the one that it wraps (Accelerate, Lightning, DDP)."""
    for _ in range(4):
        if hasattr(thing, "_optimizer_step_pre_hooks") and hasattr(thing, "register_step_pre_hook"):
            return thing
        thing = getattr(thing, "optimizer", None)
    return None


def _has_parameters(module: Any) -> bool:
    """Losses, activations and metrics have none; what ``torch.jit`` has made takes no hooks."""
    return not isinstance(module, find_torch().jit.ScriptModule) and next(module.parameters(), None) is not None


class Loaders:
    """Which loaders are the same: those that hold the same data, or data made anew in the place of others."""

    def __init__(self) -> None:
        self._known: list[tuple[Callable[[], Any], Hashable]] = []  # data sets, and of what kind and length they are

    def key(self, loader: Any) -> int:
        data = getattr(loader, "dataset", getattr(loader, "_dataset", loader))
        try:
            kind: Any = (type(data), len(data))
        except Exception:  # a data set that knows no length, in whatever way
            kind = type(data)
        for position, (reference, _) in enumerate(self._known):
            if reference() is data:
                return position
        entry = _reference(data), kind
        for position, (reference, known) in enumerate(self._known):
            if reference() is None and known == kind:
                self._known[position] = entry
                return position
        self._known.append(entry)
        return len(self._known) - 1


def _reference(thing: Any) -> Callable[[], Any]:
    try:
        return weakref.ref(thing)
    except TypeError:  # a list, say
        return lambda: thing


# ---- functions of torch that have no hooks -----------------------------------------------------------------------------


class Patches:
    """The functions of torch that are wrapped while anything is attached, and by whom they are listened to."""

    def __init__(self) -> None:
        self.listeners: tuple[Hooks, ...] = ()
        self._lock = threading.Lock()
        self._places: list[tuple[Any, str, Any, Any]] = []  # owner, name, what was there, what is there now

    def add(self, hooks: Hooks) -> None:
        with self._lock:
            if hooks not in self.listeners:
                self.listeners = (*self.listeners, hooks)
            self._put()

    def discard(self, hooks: Hooks) -> None:
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
        for owner, name, wrapper in (
            (torch.autograd, "backward", _backward),
            (torch.jit, "script", _script),
            *(((torch, "save", _save),) if any(hooks.all_loaders for hooks in self.listeners) else ()),
            *(((data.DataLoader, "__iter__", _iter), (data._BaseDataLoaderIter, "__next__", _next)) if loaders else ()),
            *(
                ((module, "__init__", _init), (module, "__setstate__", _setstate), (module, "train", _train))
                if everything
                else ()
            ),
        ):
            if any(place[:2] == (owner, name) for place in self._places):
                continue
            original = getattr(owner, name)
            wrapped = functools.wraps(original)(wrapper(original))
            setattr(owner, name, wrapped)
            self._places.append((owner, name, original, wrapped))

    def _take_away(self) -> None:
        for owner, name, original, wrapped in self._places:
            if getattr(owner, name) is wrapped:  # else another tool has wrapped ours, which now only passes on
                setattr(owner, name, original)
        self._places = []


PATCHES = Patches()


def _leave_out_this_frame(error: BaseException) -> None:
    """What the script prints of an exception is to be what it prints without us (before Python 3.11 it is not)."""
    if error.__traceback__ is not None:
        error.__traceback__ = error.__traceback__.tb_next


def _script(original: Callable[..., Any]) -> Callable[..., Any]:
    """``torch.jit.script`` compiles a module's hooks, too, and cannot compile ours: they are away meanwhile."""

    def script(*args: Any, **kwargs: Any) -> Any:
        calls = [call for hooks in PATCHES.listeners for call in hooks.calls()]
        for call in calls:
            call.take_away()
        try:
            return original(*args, **kwargs)
        except BaseException as error:
            _leave_out_this_frame(error)
            raise
        finally:
            for call in calls:
                call.put_back()

    return script


def _backward(original: Callable[..., Any]) -> Callable[..., Any]:
    def backward(*args: Any, **kwargs: Any) -> Any:
        listeners = PATCHES.listeners
        for hooks in listeners:
            hooks.before_backward()
        try:
            return original(*args, **kwargs)
        except BaseException as error:
            _leave_out_this_frame(error)
            raise
        finally:
            for hooks in listeners:
                hooks.after_backward()

    return backward


def _save(original: Callable[..., Any]) -> Callable[..., Any]:
    def save(*args: Any, **kwargs: Any) -> Any:
        told = [(hooks.follower, hooks.follower.checkpoint_begins()) for hooks in PATCHES.listeners]
        try:
            return original(*args, **kwargs)
        except BaseException as error:
            _leave_out_this_frame(error)
            raise
        finally:
            for follower, gap in told:
                if gap is not None:
                    follower.checkpoint_ends(gap)

    return save


def _iter(original: Callable[..., Any]) -> Callable[..., Any]:
    def __iter__(self: Any) -> Any:
        feeds = [
            (hooks.follower, feed)
            for hooks in PATCHES.listeners
            if hooks.is_followed(self) and (feed := hooks.loader_begins(self)) is not None
        ]
        waits = [follower.start_begins(feed) for follower, feed in feeds]
        try:
            iterator = original(self)
        finally:
            for wait in waits:
                if wait is not None:
                    wait.end_without_count()
        with contextlib.suppress(AttributeError, TypeError):  # an iterator that takes no attributes is not followed
            setattr(iterator, FEEDS, feeds)
            for follower, feed in feeds:
                feed.watch = weakref.ref(iterator, functools.partial(_dropped, follower, feed))
        return iterator

    return __iter__


def _feeds_of_known(iterator: Any) -> list[tuple[Follower, Feed]]:
    """For an iterator that was there before we were: one that begins anew inside of itself, over and over."""
    return [
        (hooks.follower, feed)
        for hooks in PATCHES.listeners
        if hooks.all_loaders and (feed := hooks.loader_begins(iterator)) is not None
    ]


def _dropped(follower: Follower, feed: Feed, _: object) -> None:
    follower.loader_is_dropped(feed)


def _next(original: Callable[..., Any]) -> Callable[..., Any]:
    def __next__(self: Any) -> Any:
        feeds: list[tuple[Follower, Feed]] | None = self.__dict__.get(FEEDS)
        if feeds is None:
            feeds = self.__dict__[FEEDS] = _feeds_of_known(self)
        if not feeds:
            return original(self)
        if len(feeds) > 1:
            return _followed_by_several(original, self, feeds)
        ((follower, feed),) = feeds
        wait = follower.fetch_begins(feed)
        try:
            item = original(self)
        except BaseException as error:
            if wait is not None:
                follower.fetch_fails(feed, wait, at_end=isinstance(error, StopIteration))
            _leave_out_this_frame(error)
            raise
        if wait is not None:
            follower.fetch_ends(feed, wait, item)
        return item

    return __next__


def _followed_by_several(original: Callable[..., Any], iterator: Any, feeds: list[tuple[Follower, Feed]]) -> Any:
    waits = [(follower, feed, follower.fetch_begins(feed)) for follower, feed in feeds]
    try:
        item = original(iterator)
    except BaseException as error:
        for follower, feed, wait in waits:
            if wait is not None:
                follower.fetch_fails(feed, wait, at_end=isinstance(error, StopIteration))
        raise
    for follower, feed, wait in waits:
        if wait is not None:
            follower.fetch_ends(feed, wait, item)
    return item


def _init(original: Callable[..., Any]) -> Callable[..., Any]:
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        _tell_made(self)

    return __init__


def _setstate(original: Callable[..., Any]) -> Callable[..., Any]:
    def __setstate__(self: Any, state: Any) -> None:
        original(self, state)
        _tell_made(self)

    return __setstate__


def _tell_made(module: Any) -> None:
    for hooks in PATCHES.listeners:
        if hooks.everything:
            hooks.made(module)


def _train(original: Callable[..., Any]) -> Callable[..., Any]:
    def train(self: Any, *args: Any, **kwargs: Any) -> Any:
        for hooks in PATCHES.listeners:
            if hooks.everything:
                hooks.module_switches()
        return original(self, *args, **kwargs)

    return train
