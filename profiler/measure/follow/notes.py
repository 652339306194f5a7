"""The notes of an observer: on a loader's iteration, on a pass that was inferred, and on a thread."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, Protocol

from profiler.measure.batch_size import batch_size
from profiler.measure.hot_path import HotFeed
from profiler.records.timing import GAPS
from profiler.records.vocabulary import Stage

TYPE_CHECKING = False
if TYPE_CHECKING:
    from profiler.measure.hot_path import FastPath, Span
    from profiler.measure.passes import Segment, ThreadState


class RunControl(Protocol):
    """The part of a run that the observer of its loop needs."""

    def is_running(self) -> bool:
        """Return True if anything is to be measured. The first call starts the run, if nobody else did."""
        ...

    def begin_inferred_epoch(self, started: int | None, *, is_first: bool) -> None:
        """Begin an epoch now, or (``started``, in the clock's ns) at the start of a pass whose stage is known only now.

        Passes without a known stage go on in it. Nothing happens if the loop names its epochs itself, or (``is_first``) if
        another thread has begun one meanwhile.
        """
        ...

    def has_epoch(self) -> bool:
        """Return True if an epoch is open."""
        ...

    def after_pass(self) -> None:
        """Note that a pass has ended."""
        ...

    def note(self, text: str) -> None:
        """Note something for the report."""
        ...

    def count_fault(self, error: Exception) -> None:
        """Count an error of our own."""
        ...


class Called(Protocol):
    """A module whose calls are observed."""

    has_trained: bool  # True once it was called in training mode with gradients
    fast_paths: list[FastPath]  # of its begins and its end


class Fetches(Protocol):
    """The part of an observer that a feed reports its batches to."""

    def fetch_begins(self, feed: LoaderFeed) -> Span | None:
        """Begin the wait for a batch."""
        ...

    def fetch_ends(self, feed: LoaderFeed, wait: Span, item: Any) -> None:
        """End the wait for a batch."""
        ...


class LoaderFeed(HotFeed):
    """One iteration over a loader: the iterator's side of a pass."""

    __slots__ = (
        *("__weakref__", "following", "goes_along", "inferred", "key", "length"),
        *("note_first", "observer", "start_ns", "watch"),
    )

    def __init__(self, observer: Fetches, following: ThreadFollowing, key: Hashable, batches: int | None = None) -> None:
        super().__init__()
        self.notable = 1
        self.ignored, self.size = following.ignored, batch_size
        self.observer = observer
        self.following = following
        self.key = key
        self.length = batches  # how many it will hand out, or None if nobody knows
        self.note_first: Callable[[Segment, int], None] | None = None  # called with the pass and its first wait (ns)
        self.inferred: InferredPass | None = None  # the pass that it feeds, while that is open
        self.goes_along = False  # True if the next batch belongs to a pass that another loader feeds
        self.start_ns = 0  # how long its loader took to start, until the first wait has it
        self.watch: object = None  # a weak reference that reports when the iterator is gone

    def fetch_begins_slowly(self) -> Span | None:
        """Begin the wait for a batch, in every case that is not the usual one."""
        return self.observer.fetch_begins(self)

    def fetch_ends_slowly(self, wait: Span, item: Any) -> None:
        """End the wait for a batch, in every case that is not the usual one."""
        self.observer.fetch_ends(self, wait, item)

    def clear(self) -> None:
        """Forget the way of the last batch."""
        self.segment = self.before = self.gap = None


class InferredPass:
    """A pass that was inferred.

    A pass without a loader, or with an exhausted one, has no event at its end. Then ``handed_at`` of its segment is the
    end of the last thing measured in it.
    """

    __slots__ = ("feed", "fetched_before", "has_backward", "has_forward", "is_ahead", "is_exhausted", "segment", "stage")

    def __init__(self, segment: Segment, stage: Stage | None, feed: LoaderFeed | None) -> None:
        self.segment = segment
        self.stage = stage
        self.feed = feed
        self.has_forward = False
        self.has_backward = False  # in the current step
        self.fetched_before = 0  # batches that it had when the last training inside it began
        self.is_ahead = False  # the loop fetches a batch before it uses the one before
        self.is_exhausted = False  # its loader has no more batches; the loop may still work on the last one

    @property
    def is_steady(self) -> bool:
        """True if its stage is known and it goes on."""
        return self.stage is not None and not self.is_exhausted and self.segment.state.is_owner

    @property
    def is_open_ended(self) -> bool:
        """True if no event marks its end."""
        return self.feed is None or self.is_exhausted

    @property
    def is_fresh(self) -> bool:
        """True if it has a batch, and nothing was done with it yet."""
        segment = self.segment
        phases = (span for name, span in segment.tree.root.children.items() if name not in GAPS)
        return self.feed is not None and segment.in_step and all(span.t0 <= segment.wait.t0 for span in phases)

    @property
    def is_worked_off(self) -> bool:
        """True if its last batch was handed out, and used."""
        return self.is_exhausted and not (self.is_fresh or self.is_ahead)

    @property
    def is_trial(self) -> bool:
        """True if it has only called a model in training mode: to see a shape, or to warm up."""
        tree = self.segment.tree
        return self.feed is None and not (self.has_backward or tree.steps or tree.record.passes)

    @property
    def has_work(self) -> bool:
        """True if something was done with its batches."""
        return self.has_forward or self.stage is Stage.TRAIN

    @property
    def is_in_step(self) -> bool:
        """True if a step has begun. Without a loader, a step begins with the first thing measured in it."""
        return self.segment.in_step if self.feed else self.segment.handed_at > self.segment.step_started


class ThreadFollowing:
    """The observer's notes on one thread."""

    __slots__ = ("__weakref__", "ignored", "is_interrupted", "learns", "passes", "spent_ns", "state")

    def __init__(self, state: ThreadState) -> None:
        self.state = state
        self.passes: list[InferredPass] = []  # the open ones, the innermost last
        self.learns = False  # the last forward did, by its module's mode and with gradients on
        self.is_interrupted = False  # an optimizer's step, by the forward and backward of its closure
        self.spent_ns = 0  # the time of that step before the interruption
        self.ignored: list[str] = []  # phases that were not begun, because one of the same name was open

    @property
    def top(self) -> InferredPass | None:
        """The innermost open pass that was inferred, or None."""
        return self.passes[-1] if self.passes else None

    def is_inside(self, *names: str) -> bool:
        """Return True if a phase of one of these names is open."""
        span: Span | None = self.state.current
        while span is not None and span.name not in names:
            span = span.parent
        return span is not None

    def last(self, name: str) -> tuple[int, int] | None:
        """Return the begin and the end of the last phase of that name (ns), or None if there was none."""
        trees = (*self.state.trees, self.state.outside)
        spans = [span for tree in trees for _, span in tree.spans() if span.name == name and span.t0]
        latest = max(spans, key=lambda span: span.t0, default=None)
        return None if latest is None else (latest.t0, latest.t0 + latest.recent_ns(1))

    def is_in_named_pass(self) -> bool:
        """Return True if the innermost pass is one that the loop named itself."""
        segments = self.state.segments
        if not self.passes or not segments:
            return bool(segments)
        return all(inferred.segment is not segments[-1] for inferred in self.passes)
