"""Listen to torch: hooks on modules and optimizers, and a few functions of torch that have no hooks.

In place only while something is attached:

- on each named module (for an unchanged script: on each outermost one), a forward pre-hook and a forward hook. No backward
  hooks: they add nodes to the graph, and cost many times as much.
- on each named optimizer (or on all), a step pre-hook and post-hook.
- around ``torch.autograd.backward``, which ``Tensor.backward`` calls: a backward lasts as long as that call.
- around ``DataLoader.__iter__``, its iterators' ``__next__`` and ``torch.save``; for an unchanged script also around
  ``Module.__init__`` and ``Module.train``, to find its modules (`torch_patches`).

The rules it keeps: torch is looked up among the modules that the program has imported. A copy or pickle of a hooked module
holds nothing of ours. A hook that ``torch.compile`` traces compiles to nothing.
"""

from __future__ import annotations

import importlib
import weakref
from collections.abc import Iterator
from typing import Any

from profiler.errors import ArgumentTypeError
from profiler.measure.follow.torch_copies import PlacedHooks
from profiler.measure.follow.torch_loaders import LoaderKeys
from profiler.measure.follow.torch_modules import HookedModule, find_torch, has_parameters
from profiler.measure.follow.torch_patches import PATCHES
from profiler.measure.hot_path import phase_begins, phase_ends

TYPE_CHECKING = False
if TYPE_CHECKING:
    from profiler.measure.follow.inferred import LoaderFeed
    from profiler.measure.follow.observer import LoopObserver
    from profiler.measure.hot_path import FastPath


MAX_LOOKS = 8  # levels of submodules that are searched for the ones a loop calls


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
        self.saw_forward = False
        self._held: dict[int, tuple[Any, int]] = {}  # by id of a named thing: its hooks, and how often it was named
        self._keys = LoaderKeys()
        self._loaders: weakref.WeakSet[Any] = weakref.WeakSet()
        self._modules: list[HookedModule] = []
        self._fresh: list[weakref.ref[Any]] = []  # modules made since the last search for outermost ones
        self._looks = 0
        self._steps = 0
        self._placed: PlacedHooks | None = None  # the global ones
        state, fast = observer.timer.owner, observer.phases.fast_path
        self.before_step = phase_begins(fast(), state, self.step_begins)  # a copy of an optimizer leaves its hooks behind
        self.after_step = phase_ends(fast(), state, observer.optimizer_ends, ends_step=True)
        self.before_backward = phase_begins(fast(), state, observer.backward_begins)
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
            if not self._held and not self.all_loaders:
                PATCHES.discard(self)

    def remove(self) -> None:
        """Remove everything."""
        PATCHES.discard(self)
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

    def _hook(self, thing: Any) -> Any:
        torch = find_torch()
        if torch is not None and isinstance(thing, torch.nn.Module):
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
        """Report the begin of an optimizer's step, after a look for modules that are not hooked yet."""
        try:
            self._find_modules()
        except Exception as error:
            self.observer.fault(error)
        self.observer.optimizer_begins(fast)
        if not self.saw_forward and self._looks < MAX_LOOKS:
            fast.clear()  # so that the next step searches again

    def _find_modules(self) -> None:
        if not (self.saw_forward or self._fresh) and self._steps and self._looks < MAX_LOOKS:
            self._look_inside()
        self._steps += 1
        if self.everything:
            self.hook_outermost()
        for hooked in self.hooked_modules():
            hooked.look_for_compiled()

    def is_followed(self, loader: Any) -> bool:
        """Return True if this loader's batches are observed."""
        return self.all_loaders or loader in self._loaders

    def loader_begins(self, loader: Any) -> LoaderFeed | None:
        """Report the begin of an iteration, and return the feed for its iterator."""
        try:
            if self.everything:
                self.hook_outermost()
            is_persistent = bool(getattr(loader, "persistent_workers", False))
            return self.observer.loader_begins(self._keys.key(loader), one_iterator=is_persistent)
        except Exception as error:
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

    # ---- finding the outermost modules -----------------------------------------------------------------------------

    def module_made(self, module: Any) -> None:
        """Remember a new module for the next search."""
        self._fresh.append(weakref.ref(module))
        if self.observer.is_mine():
            self.observer.phases.clear_fast_paths()  # so that `hook_outermost` is called again

    def module_switches(self) -> None:
        """Search when a module goes into training or evaluation mode: models are complete by then."""
        try:
            self.hook_outermost()
        except Exception as error:
            self.observer.fault(error)

    def hook_outermost(self) -> None:
        """Register hooks on the outermost of the new modules, and remove them from modules inside these."""
        if not self._fresh:
            return
        fresh, self._fresh = self._fresh, []
        modules = [module for reference in fresh if (module := reference()) is not None]
        inner = {id(part) for module in modules for part in module.modules() if part is not module}
        known = {id(hooked.module()) for hooked in self._modules}
        for module in modules:
            if id(module) not in inner and id(module) not in known and has_parameters(module):
                self._modules.append(HookedModule(self, module))
        for hooked in list(self._modules):
            if hooked.module() is None or id(hooked.module()) in inner:
                self._unhook(hooked)

    def _look_inside(self) -> None:
        """Register hooks on the children of modules that no step has called: a loop may call those alone.

        Their children follow at the next such step, at most `MAX_LOOKS` levels deep.
        """
        self._looks += 1
        for hooked in [hooked for hooked in self.hooked_modules() if not hooked.was_called and not hooked.parts]:
            module = hooked.module()
            children = [] if module is None else module.children()
            hooked.parts = [HookedModule(self, part) for part in children if has_parameters(part)]
            self._modules += hooked.parts

    def module_called(self, hooked: HookedModule) -> None:
        """Note that a module is called itself, and unhook its parts, which are within that call."""
        self.saw_forward = hooked.was_called = True
        while hooked.parts:
            part = hooked.parts.pop()
            self.module_called(part)
            self._unhook(part)

    def _unhook(self, hooked: HookedModule) -> None:
        if hooked in self._modules:
            self._modules.remove(hooked)
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
