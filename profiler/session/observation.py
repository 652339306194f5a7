"""The hooks that one run has in torch."""

from __future__ import annotations

from profiler.measure.follow.observer import LoopObserver
from profiler.measure.follow.torch_hooks import TorchHooks
from profiler.measure.follow.torch_modules import in_foreign_backward

TYPE_CHECKING = False
if TYPE_CHECKING:
    from profiler.measure.follow.notes import RunControl
    from profiler.measure.timer import Timer


class Observation:
    """The observed loaders, modules and optimizers of one run; none until something is attached.

    Args:
        timer: the run's timer.
        control: the run, as the observer of its loop sees it.
    """

    def __init__(self, timer: Timer, control: RunControl) -> None:
        self._timer = timer
        self._control = control
        self._hooks: TorchHooks | None = None

    @property
    def hooks(self) -> TorchHooks:
        """The run's hooks, made at the first use."""
        if self._hooks is None:
            self._hooks = TorchHooks(self._observer(gaps=False))
        return self._hooks

    @property
    def is_in_place(self) -> bool:
        """True if anything was attached."""
        return self._hooks is not None

    def unused_hooks(self) -> TorchHooks:
        """Return hooks that are not in place, for an attachment after the run's end."""
        return TorchHooks(self._observer(gaps=False))

    def follow_loaders(self) -> None:
        """Observe all loaders and checkpoints, for a framework that makes them itself."""
        if self._hooks is None:
            self._hooks = TorchHooks(self._observer(gaps=False), all_loaders=True)
        else:
            self._hooks.listen_to_loaders()

    def follow_everything(self) -> None:
        """Observe all loaders, modules and optimizers, and the gaps between, for an unchanged script."""
        if self._hooks is None:
            self._hooks = TorchHooks(self._observer(gaps=True), everything=True)

    @property
    def fetched(self) -> int | None:
        """Samples of the last batch that a framework's loader handed out, or None."""
        return None if self._hooks is None else self._hooks.observer.fetched

    def epoch_ends(self) -> None:
        """End the inferred passes that no event ends."""
        if self._hooks is not None:
            self._hooks.observer.epoch_ends()

    def remove(self) -> None:
        """Remove all hooks."""
        if self._hooks is not None:
            self._hooks.remove()

    def forget(self) -> None:
        """Stop observing in a forked child."""
        if self._hooks is not None:
            self._hooks.observer.forget()

    def _observer(self, *, gaps: bool) -> LoopObserver:
        return LoopObserver(
            self._timer,
            self._control,
            gaps=gaps,
            in_backward=in_foreign_backward,
            expects_training=lambda: self._hooks is not None and self._hooks.expects_training(),
        )
