"""The hooks of one module, and the look-up of torch."""

from __future__ import annotations

import functools
import sys
import weakref
from collections.abc import Callable
from typing import Any

from profiler.measure.follow.torch_copies import Hook, PlacedHooks, drop_passed_on
from profiler.measure.frames import drop_own_frame
from profiler.measure.hot_path import forward_begins, forward_ends

TYPE_CHECKING = False
if TYPE_CHECKING:
    from profiler.measure.follow.torch_hooks import TorchHooks
    from profiler.measure.hot_path import FastPath


def find_torch() -> Any:
    """Return torch if the program has imported it completely, else None."""
    torch = sys.modules.get("torch")
    return torch if hasattr(torch, "optim") and hasattr(torch, "compiler") else None


def in_foreign_backward() -> bool:
    """Return True if the calling thread belongs to autograd or is inside a backward: then its calls are not the loop's."""
    found = getattr(getattr(find_torch(), "_C", None), "_current_graph_task_id", None)
    return found is not None and found() != -1


def has_parameters(module: Any) -> bool:
    """Return True if a module can be hooked and has parameters. Losses, activations and metrics have none."""
    return not isinstance(module, find_torch().jit.ScriptModule) and next(module.parameters(), None) is not None


def has_optimizer() -> bool:
    """Return True if the program has made an optimizer of torch: the first of each class prepares the class's ``step``."""
    classes = [find_torch().optim.Optimizer]
    for kind in classes:
        classes += kind.__subclasses__()
    return any(hasattr(vars(kind).get("step"), "hooked") for kind in classes)


class HookedModule:
    """The hooks of one module."""

    __slots__ = (
        *("_compiled", "_placed", "_unshared", "after", "before", "fast_paths"),
        *("has_trained", "hooks", "module", "takes_gradients", "times_inside"),
    )

    def __init__(self, hooks: TorchHooks, module: Any) -> None:
        torch, observer = find_torch(), hooks.observer
        state, fast = observer.timer.owner, observer.phases.fast_path
        self.hooks = hooks
        self.module: weakref.ref[Any] = weakref.ref(module)
        self.has_trained = False
        self.times_inside = 0  # its last calls that were within another module's
        self.takes_gradients: Callable[[], bool] = torch.is_grad_enabled
        self._compiled: Any = None  # our wrapper of the module's compiled call, while it has one
        is_compiling = torch.compiler.is_dynamo_compiling
        self.fast_paths = learning, other, end = [fast(), fast(), fast()]
        self.before = Hook(
            forward_begins(
                *(learning, other, state, self.call_begins),
                hooked=self.module,
                takes_gradients=self.takes_gradients,
                is_compiling=is_compiling,
            )
        )
        self.after = Hook(forward_ends(end, state, observer.forward_ends, hooked=self.module, is_compiling=is_compiling))
        self._placed: PlacedHooks | None = None
        self._unshared = max(self._holders())
        self.put_back()
        self.look_for_compiled()

    def call_begins(self, fast: FastPath) -> None:
        """Report the begin of a call."""
        module, hooks = self.module(), self.hooks
        if module is None:
            return
        self.times_inside = self.times_inside + 1 if hooks.observer.is_inside_call() else 0
        if not hooks.is_unused(self):
            hooks.observer.forward_begins(fast, self, module.training, self.takes_gradients())

    def look_for_compiled(self) -> None:
        """Wrap the compiled function that ``module.compile()`` puts around the hooks, which it would otherwise trace."""
        module = self.module()
        compiled = getattr(module, "_compiled_call_impl", None)
        if module is not None and compiled is not None and compiled is not self._compiled:
            self.take_away()  # with hooks inside it, torch compiles something else
            self._compiled = module._compiled_call_impl = _around(self, compiled)

    def put_back(self) -> None:
        """Register the hooks, unless they are registered or the module is compiled."""
        module = self.module()
        if module is not None and self._placed is None and self._compiled is None:
            self._placed = PlacedHooks(
                (module._forward_pre_hooks, self.before),
                (module._forward_hooks, self.after),
                (module._forward_hooks_always_called, True),
            )

    def take_away(self) -> None:
        """Remove the hooks for now."""
        placed, self._placed = self._placed, None
        if placed is not None:
            placed.remove()

    def drop_passed_on(self) -> None:
        """Remove the hooks from where torch has copied them to. May take a while, so it is not called in a loop."""
        holders = self._holders()
        for hook, number in zip((self.before, self.after), holders, strict=True):
            if number > self._unshared:
                drop_passed_on(hook)

    def _holders(self) -> list[int]:
        return [sys.getrefcount(hook) for hook in (self.before, self.after)]

    def remove(self) -> None:
        """Remove the hooks and the wrapper of a compiled call."""
        self.take_away()
        module: Any = self.module()
        if self._compiled is not None and getattr(module, "_compiled_call_impl", None) is self._compiled:
            module._compiled_call_impl = vars(self._compiled)["__wrapped__"]


def _around(hooked: HookedModule, compiled: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(compiled)
    def timed(*args: Any, **kwargs: Any) -> Any:
        hooked.before(hooked.module(), args)
        try:
            return compiled(*args, **kwargs)
        except BaseException as error:
            drop_own_frame(error)
            raise
        finally:
            hooked.after(hooked.module(), args, None)

    vars(timed)["__wrapped__"] = compiled  # functools.wraps copies the compiled function's own __wrapped__
    return timed
