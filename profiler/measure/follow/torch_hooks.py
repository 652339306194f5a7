"""Listen to torch: hooks on modules and optimizers, and a few functions of torch that have no hooks.

In place only while something is attached:

- on each module that the loop calls itself, a forward pre-hook and a forward hook. The first calls are watched to find
  them (`torch_calls`). No backward hooks: they add nodes to the graph, and cost many times as much.
- on each named optimizer (or on all), a step pre-hook and post-hook.
- around the call into autograd's engine, which every backward ends in: a backward lasts as long as that call.
- around ``DataLoader.__iter__``, its iterators' ``__next__``, ``torch.save`` and ``Module.train``; for an unchanged script
  also around ``Module.__init__``, because a new module may be called soon (`torch_patches`).

The rules it keeps: torch is looked up among the modules that the program has imported. A copy or pickle of a hooked module
holds nothing of ours. A hook that ``torch.compile`` traces compiles to nothing.
"""

from __future__ import annotations

import importlib
import weakref
from collections.abc import Iterator
from typing import Any

from profiler.errors import ArgumentTypeError
from profiler.measure.follow.phases import FORWARD
from profiler.measure.follow.torch_calls import CALLS
from profiler.measure.follow.torch_copies import PlacedHooks
from profiler.measure.follow.torch_loaders import LoaderKeys
from profiler.measure.follow.torch_modules import HookedModule, find_torch, has_optimizer, has_parameters
from profiler.measure.follow.torch_patches import PATCHES
from profiler.measure.hot_path import phase_begins, phase_ends
from profiler.measure.lengths import known_length
from profiler.records.faults import is_of_a_signal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from profiler.measure.follow.notes import LoaderFeed
    from profiler.measure.follow.observer import LoopObserver
    from profiler.measure.hot_path import FastPath


MAX_LOOKS = 8  # changes of mode at which the calls are watched again
MAX_QUIET_CALLS = 16  # calls of the loop's that show no new module, and then nobody watches
MAX_TIMES_INSIDE = 64  # calls in a row within another module's


class TorchHooks:
    """Everything that one run has in place in torch.

    Args:
        observer: receives the events.
        everything: listen to all modules, optimizers and loaders, not only to named ones.
        all_loaders: listen to all loaders, and to ``torch.save``.
    """

    def __init__(self, observer: LoopObserver, *, everything: bool = False, all_loaders: bool = False) -> None:
        self.observer = observer
        self.everything = everything
        self.all_loaders = all_loaders or everything
        self._held: dict[int, tuple[Any, int]] = {}  # by id of a named thing: its hooks, and how often it was named
        self._keys = LoaderKeys()
        self._loaders: weakref.WeakSet[Any] = weakref.WeakSet()
        self._modules: list[HookedModule] = []
        self.has_backward = False  # a backward that adds to the gradients was seen
        self._quiet_calls = 0  # calls of known modules since the last new one
        self._looks = 0
        self._placed: PlacedHooks | None = None  # the global ones
        state, fast = observer.timer.owner, observer.phases.fast_path
        self.before_step = phase_begins(fast(), state, self.step_begins)  # a copy of an optimizer leaves its hooks behind
        self.after_step = phase_ends(fast(), state, observer.optimizer_ends, ends_step=True)
        self.before_backward = phase_begins(fast(), state, self.backward_begins)
        self.after_backward = phase_ends(fast(), state, observer.backward_ends)
        if everything:
            optimizer = importlib.import_module("torch.optim.optimizer")
            self._placed = PlacedHooks(
                (optimizer._global_optimizer_pre_hooks, self.before_step),
                (optimizer._global_optimizer_post_hooks, self.after_step),
            )
        if self.all_loaders:
            PATCHES.add(self)

    def listen_to_loaders(self) -> None:
        """Listen to all loaders from now on."""
        self.all_loaders = True
        PATCHES.add(self)

    def add(self, thing: Any) -> None:
        """Listen to a module, an optimizer (or a wrapper of one) or a loader. The same thing is hooked only once.

        Raises:
            ArgumentTypeError: it is none of these.
        """
        held, times = self._held.get(id(thing), (None, 0))
        if held is None:
            held = self._hook(thing)
            PATCHES.add(self)
        self._held[id(thing)] = (held, times + 1)

    def drop(self, thing: Any) -> None:
        """Undo one `add`."""
        held, times = self._held.get(id(thing), (None, 0))
        if times > 1:
            self._held[id(thing)] = (held, times - 1)
        elif times:
            del self._held[id(thing)]
            held.remove()
            if type(held) is HookedModule:
                held.drop_passed_on()
                self._drop_parts(held)
            if not self._held and not self.all_loaders:
                PATCHES.discard(self)

    def remove(self) -> None:
        """Remove everything."""
        PATCHES.discard(self)
        CALLS.ignore(self._module_called)
        self.observer.close()
        for held, _ in self._held.values():
            held.remove()
        if self._placed is not None:
            self._placed.remove()
        for hooked in self._modules:
            hooked.remove()
        for hooked in self.hooked_modules():
            hooked.drop_passed_on()
        self._held, self._placed, self._modules = {}, None, []

    def _drop_parts(self, named: HookedModule) -> None:
        """Unhook the modules that were found inside a named one, unless we follow everything."""
        module = named.module()
        parts = {id(part) for part in module.modules()} if module is not None and not self.everything else set()
        for hooked in [hooked for hooked in self._modules if id(hooked.module()) in parts]:
            self._unhook(hooked)

    def _hook(self, thing: Any) -> Any:
        torch = find_torch()
        if torch is not None and isinstance(thing, torch.nn.Module):
            if isinstance(thing, torch.jit.ScriptModule):
                raise ArgumentTypeError(
                    "attach cannot follow a scripted module, which takes no hooks; attach the module before torch.jit.script, "
                    'or time its call yourself: with prof.phase("forward")'
                )
            self.look_out()
            return HookedModule(self, thing)
        if torch is not None and isinstance(thing, torch.utils.data.DataLoader):
            inner = getattr(thing, "base_dataloader", thing)  # Accelerate wraps the loader that is iterated over
            self._loaders.add(inner)
            return _LoaderHandle(self._loaders, inner)
        optimizer = _optimizer_of(thing)
        if optimizer is None:
            raise ArgumentTypeError(
                f"attach takes modules, optimizers and DataLoaders, not {thing!r}; any other loader: prof.train(loader)"
            )
        return PlacedHooks(
            (optimizer._optimizer_step_pre_hooks, self.before_step), (optimizer._optimizer_step_post_hooks, self.after_step)
        )

    # ---- events ----------------------------------------------------------------------------------------------------

    def step_begins(self, fast: FastPath) -> None:
        """Report the begin of an optimizer's step, after a look for modules that were compiled since."""
        try:
            for hooked in self.hooked_modules():
                hooked.look_for_compiled()
        except Exception as error:
            if is_of_a_signal(error):
                raise
            self.observer.fault(error)
        self.observer.optimizer_begins(fast)

    def backward_begins(self, fast: FastPath) -> None:
        """Report the begin of a backward, unless it is of a model that another thread trains without us."""
        observer = self.observer
        if observer.is_mine() or self.last_forward() is not None or not any(self.hooked_modules()):
            observer.backward_begins(fast)

    def last_forward(self) -> tuple[int, int] | None:
        """Return the begin and the end of the last forward in the calling thread (ns), or None if there was none."""
        following = self.observer.known()
        return None if following is None else following.last(FORWARD)

    def trains_by_grad(self) -> bool:
        """Return True if the calling thread's loop has used no other backward than ``torch.autograd.grad``."""
        following = self.observer.known()
        return following is not None and following.learns and not self.has_backward

    def expects_training(self) -> bool:
        """Return True if the program has an optimizer: one that was named or, if we follow everything, any."""
        return any(type(held) is PlacedHooks for held, _ in self._held.values()) or (self.everything and has_optimizer())

    def is_followed(self, loader: Any) -> bool:
        """Return True if this loader's batches are observed."""
        return self.all_loaders or loader in self._loaders

    def loader_begins(self, loader: Any) -> LoaderFeed | None:
        """Report the begin of an iteration, and return the feed for its iterator."""
        try:
            is_persistent = bool(getattr(loader, "persistent_workers", False))
            key, batches = self._keys.key(loader), known_length(loader)
            return self.observer.loader_begins(key, batches=batches, one_iterator=is_persistent)
        except Exception as error:
            if is_of_a_signal(error):
                raise
            self.observer.fault(error)
            return None

    @property
    def has_loaders(self) -> bool:
        """True if any loader is observed."""
        return self.all_loaders or bool(len(self._loaders))

    def hooked_modules(self) -> Iterator[HookedModule]:
        """Yield every hooked module, found or named."""
        yield from self._modules
        yield from (held for held, _ in self._held.values() if type(held) is HookedModule)

    # ---- finding the modules that the loop calls -------------------------------------------------------------------

    def look_out(self) -> None:
        """Watch the calls of modules until a number of them has shown nothing new."""
        self._quiet_calls = 0
        CALLS.watch(self._module_called)

    def module_switches(self) -> None:
        """Look again when a module goes into training or evaluation mode: the loop may call another one now."""
        if self._looks < MAX_LOOKS:
            self._looks += 1
            self.look_out()

    def module_compiled(self, module: Any) -> None:
        """Put our hooks around the compiled call of a hooked module."""
        for hooked in self.hooked_modules():
            if hooked.module() is module:
                hooked.look_for_compiled()

    def is_unused(self, hooked: HookedModule) -> bool:
        """Unhook a module that was found because the loop called it, and is now called by other modules only."""
        if hooked.times_inside < MAX_TIMES_INSIDE or hooked not in self._modules:
            return False
        self._unhook(hooked)
        return True

    def _module_called(self, module: Any) -> None:
        """Register hooks on a module that the loop calls itself, just before the call."""
        try:
            if self.observer.is_inside_call():
                return
            self._quiet_calls += 1
            if self._is_new(module):
                self._quiet_calls = 0
                for hooked in [hooked for hooked in self._modules if hooked.module() is None]:
                    self._unhook(hooked)
                self._modules.append(HookedModule(self, module))
            elif self._quiet_calls > MAX_QUIET_CALLS:
                CALLS.ignore(self._module_called)
        except Exception as error:
            if is_of_a_signal(error):
                raise
            CALLS.ignore(self._module_called)
            self.observer.fault(error)

    def _is_new(self, module: Any) -> bool:
        """Return True if a module is to be followed and has no hooks: any, or one inside a module that was named."""
        if not has_parameters(module) or any(hooked.module() is module for hooked in self.hooked_modules()):
            return False
        named = (held.module() for held, _ in self._held.values() if type(held) is HookedModule)
        return self.everything or any(part is module for root in named if root is not None for part in root.modules())

    def _unhook(self, hooked: HookedModule) -> None:
        self._modules.remove(hooked)
        self.observer.phases.forget(hooked.fast_paths)
        hooked.remove()


class _LoaderHandle:
    def __init__(self, loaders: weakref.WeakSet[Any], loader: Any) -> None:
        self._loaders = loaders
        self._loader = weakref.ref(loader)

    def remove(self) -> None:
        loader = self._loader()
        if loader is not None:
            self._loaders.discard(loader)


def _optimizer_of(thing: Any) -> Any:
    """Return the optimizer whose step has hooks: the thing itself, or the one it wraps (Accelerate, Lightning, DDP)."""
    for _ in range(4):
        if hasattr(thing, "_optimizer_step_pre_hooks") and hasattr(thing, "register_step_pre_hook"):
            return thing
        thing = getattr(thing, "optimizer", None)
    return None
