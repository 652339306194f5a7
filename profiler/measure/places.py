"""The places of threads and of tasks of asyncio: which `ThreadState` belongs to whom, and when another may have it."""

from __future__ import annotations

import contextlib
import functools
import threading
import weakref
from collections.abc import Callable
from contextvars import ContextVar
from threading import get_ident
from typing import Any, cast

from profiler.measure.passes import SMALL_BUFFER_SIZE, ThreadState, current_task

TYPE_CHECKING = False
if TYPE_CHECKING:
    from profiler.measure.timer import Timer


class TaskPlace:
    """The place of a task of asyncio while it is in a pass of its own; empty once that pass has ended."""

    __slots__ = ("state",)

    def __init__(self, state: ThreadState | None) -> None:
        self.state = state


class Alive:
    """An object that lives as long as a thread, or as a loop."""

    __slots__ = ("__weakref__",)


class Places:
    """All places of one run. A place whose thread or task has ended is used again: a service may have one for each request.

    Args:
        timer: the run's timer, whose lock guards the places.
        owner: the place of the calling thread.
    """

    def __init__(self, timer: Timer, owner: ThreadState) -> None:
        self._timer = timer
        self.all = [owner]
        self.on_tasks: Callable[[], None] = lambda: None  # called when the first task gets a place of its own
        self._task_place: ContextVar[TaskPlace] | None = None
        self._idle: list[ThreadState] = []  # places that no thread and no task uses any more
        self._watches: dict[ThreadState, object] = {}  # weak references that report the end of a place's thread
        self._local = threading.local()
        self._local.state = owner

    @property
    def are_tasks_apart(self) -> bool:
        """True if any task of asyncio has had a place of its own."""
        return self._task_place is not None

    def state(self) -> ThreadState:
        """Return the place of the calling thread or task."""
        if self._task_place is not None:
            place = self._task_place.get(None)
            if place is not None and place.state is not None:
                return place.state
        try:
            return cast(ThreadState, self._local.state)
        except AttributeError:
            return self._enter_thread()

    def is_shared(self) -> bool:
        """Return True if another asyncio task of this thread has an open pass, which the calling task would disturb."""
        segments = self.state().segments
        return bool(segments) and segments[-1].task is not current_task()

    def enter_task(self) -> tuple[TaskPlace, Any]:
        """Give the calling task of asyncio a place of its own, because tasks of one thread interleave their phases."""
        if self._task_place is None:
            self._task_place = ContextVar("epochmeter.call")
            self.on_tasks()
        place = TaskPlace(self._free())
        return place, self._task_place.set(place)

    def leave_task(self, place: TaskPlace, token: Any) -> None:
        """Release a task's place, so that another task can have it. Phases left open go on outside of it."""
        state, place.state = place.state, None
        with self._timer.lock:
            if state is not None and not state.segments:
                self._idle.append(state)
        try:
            if self._task_place is not None:
                self._task_place.reset(token)
        except ValueError:  # a generator closed in another context: its place is empty anyway
            pass

    def _enter_thread(self) -> ThreadState:
        """Give the calling thread a place until it ends."""
        state = self._free()
        thread = Alive()  # the thread's local data holds the only reference, and dies with it
        self._watches[state] = weakref.ref(thread, functools.partial(self._thread_ends, state))
        self._local.state, self._local.thread = state, thread
        return state

    def _thread_ends(self, state: ThreadState, _: object) -> None:
        with contextlib.suppress(Exception), self._timer.lock:  # a weak reference's callback has nobody to raise to
            for segment in reversed(list(state.segments)):
                segment.close(partial=True)
            state.current = state.outside.root  # a phase left open has no end
            state.too_deep = 0
            self._watches.pop(state, None)
            self._idle.append(state)

    def _free(self) -> ThreadState:
        """Return a place that nobody uses, for the calling thread."""
        with self._timer.lock:
            if self._idle:
                state = self._idle.pop()
                state.thread = get_ident()
            else:
                state = ThreadState(self._timer, is_owner=False, buffer_size=SMALL_BUFFER_SIZE)
                self.all.append(state)
        return state
