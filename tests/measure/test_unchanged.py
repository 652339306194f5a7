"""What a program sees of us: its pickles, its tracebacks, and what torch makes of its modules."""

from __future__ import annotations

import asyncio
import copy
import multiprocessing
import pickle
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402
from torch.utils.data import DataLoader  # noqa: E402

from profiler import Profiler  # noqa: E402
from profiler.errors import ArgumentTypeError  # noqa: E402
from profiler.measure.follow.loader_events import NO_OPTIMIZER  # noqa: E402

ORIGINALS = {"save": torch.save, "script": torch.jit.script, "backward": torch.autograd.backward}  # as a program imported them
X = torch.ones(2, 8)


class Net(nn.Module):  # type: ignore[misc,name-defined]
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 8)
        self.second = nn.Sequential(nn.Linear(8, 4), nn.ReLU())

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # type: ignore[name-defined]
        return self.second(self.first(x)).sum(1)


@pytest.fixture(params=["attached", "followed"])
def prof(request: Any) -> Any:
    with Profiler("unchanged") as made:
        if request.param == "followed":
            made.session.observation.follow_everything()
        else:
            made.session.observation.follow_loaders()
            made.attach(nn.Linear(2, 2), torch.optim.SGD([torch.ones(1, requires_grad=True)], 0.1))
        yield made
    assert set(made.session.run.notes) <= {NO_OPTIMIZER}


# ---- pickles -------------------------------------------------------------------------------------------------------

PATCHED: dict[str, Callable[[], Any]] = {
    "torch.save": lambda: torch.save,
    "torch.serialization.save": lambda: torch.serialization.save,
    "torch.jit.script": lambda: torch.jit.script,
    "create_script_module": lambda: torch.jit._recursive.create_script_module,
    "torch.autograd.backward": lambda: torch.autograd.backward,
    "torch.autograd.grad": lambda: torch.autograd.grad,
    "DataLoader.__iter__": lambda: DataLoader.__iter__,
    "Module.train": lambda: nn.Module.train,
    "Module.__call__": lambda: nn.Module.__call__,
    **{f"imported {name}": lambda name=name: ORIGINALS[name] for name in ORIGINALS},  # type: ignore[misc]
}


@pytest.mark.parametrize("name", PATCHED)
def test_patched_functions_are_found_again(prof: Any, name: str) -> None:
    function = PATCHED[name]()
    assert pickle.loads(pickle.dumps(function)) is function
    assert b"profiler" not in pickle.dumps(function)
    assert copy.deepcopy(function) is function


@pytest.mark.slow
def test_another_process_saves_a_checkpoint(prof: Any, tmp_path: Path) -> None:
    """As programs do that write their checkpoints in the background."""
    for number, save in enumerate((torch.save, ORIGINALS["save"])):
        process = multiprocessing.get_context("spawn").Process(target=save, args=({"a": 1}, str(tmp_path / f"{number}.pt")))
        process.start()
        process.join(60)
        assert process.exitcode == 0 and torch.load(tmp_path / f"{number}.pt") == {"a": 1}


# ---- tracebacks ----------------------------------------------------------------------------------------------------


def fails(*_: Any, **__: Any) -> Any:
    raise KeyError("of the program")


class Fails(nn.Module):  # type: ignore[misc,name-defined]
    def __init__(self, at: str) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.at = at

    def forward(self, x: Any) -> Any:
        return fails() if self.at == "forward" else x * self.weight

    def train(self, mode: bool = True) -> Any:
        return fails() if self.at == "train" else super().train(mode)


class FailsBackward(torch.autograd.Function):  # type: ignore[misc,name-defined]
    @staticmethod
    def forward(ctx: Any, x: Any) -> Any:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return fails()


class FailingLoader(DataLoader):  # type: ignore[misc,type-arg]
    def _get_iterator(self) -> Any:
        return fails()


async def fails_later() -> None:
    fails()


FAILING: dict[str, Callable[[Any], Any]] = {
    "a module's call": lambda prof: Fails("forward")(X),
    "a call within a call": lambda prof: nn.Sequential(nn.Sequential(Fails("forward")))(X),
    "a change of mode": lambda prof: nn.Sequential(Fails("train")).train(),
    "a backward": lambda prof: FailsBackward.apply(X.requires_grad_()).sum().backward(),
    "the start of a loader": lambda prof: iter(FailingLoader(X)),
    "a batch": lambda prof: next(iter(DataLoader(X, collate_fn=fails))),
    "a file": lambda prof: torch.save(X, fails),
    "a script": lambda prof: torch.jit.script(Fails("forward")),
    "a pass": lambda prof: list(prof.train(map(fails, [1]))),
    "epochs": lambda prof: list(prof.epochs(map(fails, [1]))),
    "a call of inference": lambda prof: prof.inference(fails)(),
    "a coroutine of inference": lambda prof: asyncio.run(prof.inference(fails_later)()),
    "a phase": lambda prof: prof.phase("x")(fails)(),
    "a coroutine's phase": lambda prof: asyncio.run(prof.phase("x")(fails_later)()),
}


@pytest.mark.skipif(sys.version_info < (3, 11), reason="a frame cannot be taken out of a traceback that goes on")
@pytest.mark.parametrize("what", FAILING)
def test_tracebacks_show_no_frame_of_ours(prof: Any, what: str) -> None:
    with pytest.raises(Exception) as caught:
        FAILING[what](prof)
    files = [frame.filename for frame in traceback.extract_tb(caught.value.__traceback__)]
    ours = str(Path(sys.modules["profiler"].__file__ or "").parent)
    assert not [name for name in files if name.startswith(ours)]


# ---- what torch makes of modules -----------------------------------------------------------------------------------


def frozen(model: Any) -> Any:
    return torch.jit.freeze(torch.jit.script(model.eval()))


def quantized(model: Any) -> Any:
    return torch.jit.script(torch.ao.quantization.quantize_dynamic(model, {nn.Linear}))


def compiled(model: Any) -> Any:
    model.compile(backend="eager", fullgraph=True)
    return model(X)


MADE: dict[str, Callable[[Any], Any]] = {
    "script": torch.jit.script,
    "script of a part": lambda model: torch.jit.script(model.second),
    "trace": lambda model: torch.jit.trace(model, X),
    "trace_module": lambda model: torch.jit.trace_module(model, {"forward": X}),
    "freeze": frozen,
    "symbolic trace": torch.fx.symbolic_trace,
    "export": lambda model: torch.export.export(model, (X,)),
    "strict export": lambda model: torch.export.export(model, (X,), strict=True),
    "quantized": quantized,
    "functional call": lambda model: torch.func.functional_call(model, dict(model.named_parameters()), (X,)),
    "torch.compile": lambda model: torch.compile(model, backend="eager")(X),
    "torch.compile of a function": lambda model: torch.compile(lambda x: model(x), backend="eager", fullgraph=True)(X),
    "Module.compile": compiled,
    "parallel": lambda model: nn.DataParallel(model)(X),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("what", MADE)
@pytest.mark.parametrize("when", ["before a call", "after a call"])
def test_torch_makes_of_modules_what_it_makes(prof: Any, what: str, when: str) -> None:
    model = Net()
    prof.attach(model)
    if when == "after a call":
        model(X)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*hooks.*")  # such as torch.compile's, of hooks on all modules
        MADE[what](model)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_scripted_module_cannot_be_attached() -> None:
    with Profiler("scripted") as prof, pytest.raises(ArgumentTypeError, match=r"before torch\.jit\.script"):
        prof.attach(torch.jit.script(Net()))


def test_calls_are_watched_for_a_while_only() -> None:
    before = nn.Module.__call__
    with Profiler("watched") as prof:
        model = Net()
        prof.attach(model)
        assert nn.Module.__call__ is not before
        for _ in range(20):
            model(X)
        assert nn.Module.__call__ is before
    assert nn.Module.__call__ is before


def test_hooks_of_ours_have_a_name() -> None:
    """Programs list the hooks of their modules by name."""
    with Profiler("named") as prof:
        model = Net()
        prof.attach(model)
        model(X)
        assert [hook.__name__ for hook in model._forward_hooks.values()] == ["hook"]
