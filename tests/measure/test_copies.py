"""Copies, pickles and files of what is measured: byte for byte what they are without us, and nothing is measured in them."""

from __future__ import annotations

import copy
import copyreg
import gc
import io
import multiprocessing
import pickle
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from profiler import Profiler
from support.processes import Answer, epochmeter, python, wait_for

torch = pytest.importorskip("torch")
nn = torch.nn


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    yield
    assert OrderedDict not in copyreg.dispatch_table


def net() -> Any:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))


def file_of(thing: Any, **options: Any) -> bytes:
    file = io.BytesIO()
    torch.save(thing, file, **options)
    return file.getvalue()


def users_hook(module: Any, *_: Any) -> None:
    module.calls = getattr(module, "calls", 0) + 1


AS_BYTES: dict[str, Callable[[Any], bytes]] = {
    **{f"pickle {n}": lambda thing, n=n: pickle.dumps(thing, n) for n in range(pickle.HIGHEST_PROTOCOL + 1)},  # type: ignore[misc]
    "python's pickler": lambda thing: pickle._dumps(thing),  # type: ignore[attr-defined]
    "torch.save": file_of,
    "old torch.save": lambda thing: file_of(thing, _use_new_zipfile_serialization=False),
}


@pytest.mark.parametrize("as_bytes", AS_BYTES.values(), ids=list(AS_BYTES))
def test_bytes_are_the_same_as_without_us(as_bytes: Callable[[Any], bytes]) -> None:
    model = net()
    optimizer = torch.optim.Adam(model.parameters())
    things = [model, optimizer, [model, model, model.state_dict()]]
    plain = [as_bytes(thing) for thing in things]
    with Profiler("bytes") as prof, Profiler("other") as other:
        prof.attach(model, optimizer)
        other.attach(model, optimizer)
        assert [as_bytes(thing) for thing in things] == plain


@pytest.mark.parametrize("when", ["before", "after"])
def test_the_users_own_hooks_stay(when: str) -> None:
    model = net()
    first = torch.utils.hooks.RemovableHandle.next_id
    with model.register_forward_hook(users_hook):
        plain = pickle.dumps(model)
    torch.utils.hooks.RemovableHandle.next_id = first  # as in a program of its own: the numbers are saved, too
    with Profiler("hooks") as prof:
        if when == "before":
            handle = model.register_forward_hook(users_hook)
        prof.attach(model, torch.optim.SGD(model.parameters(), lr=0.1))
        if when == "after":
            handle = model.register_forward_hook(users_hook)
        assert handle.id == first
        assert pickle.dumps(model) == plain
        twin = copy.deepcopy(model)
        twin(torch.ones(1, 4))
        model(torch.ones(1, 4))
        assert (twin.calls, model.calls) == (1, 1)
        handle.remove()
        model(torch.ones(1, 4))
        assert model.calls == 1
    assert not model._forward_hooks and not model._forward_pre_hooks and not model._forward_hooks_always_called


def test_keys_of_the_users_own_dicts_stay() -> None:
    numbers = OrderedDict((number, str(number)) for number in range(-20_000, 50))
    with Profiler("dicts") as prof:
        model = net()
        prof.attach(model)
        (key,) = model._forward_hooks
        assert key in numbers
        assert pickle.loads(pickle.dumps(numbers)) == copy.deepcopy(numbers) == numbers


def test_a_reduction_of_the_users_own_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def reduced(hooks: OrderedDict[Any, Any]) -> Any:
        seen.append(len(hooks))
        return hooks.__reduce__()

    with monkeypatch.context() as patched:
        patched.setitem(copyreg.dispatch_table, OrderedDict, reduced)
        with Profiler("reduced") as prof:
            model = net()
            prof.attach(model)
            copy.deepcopy(model)
        assert seen and max(seen) == 0
        assert copyreg.dispatch_table[OrderedDict] is reduced


def test_whole_modules_load_with_weights_only() -> None:
    with Profiler("safe") as prof:
        model = nn.Linear(4, 2)
        prof.attach(model)
        file = io.BytesIO(file_of(model))
    with torch.serialization.safe_globals([nn.Linear]):
        assert torch.equal(torch.load(file).weight, model.weight)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_copies_can_be_scripted_traced_and_exported() -> None:
    with Profiler("compiled") as prof:
        model = net()
        prof.attach(model)
        for twin in (
            copy.deepcopy(model),
            pickle.loads(pickle.dumps(model)),
            torch.optim.swa_utils.AveragedModel(model).module,
        ):
            example = torch.ones(1, 4)
            torch.jit.script(twin)
            torch.jit.trace(twin, example)
            torch.fx.symbolic_trace(twin)
            torch.export.export(twin, (example,))
            assert torch.equal(twin(example), model(example))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_what_is_quantised_in_place_is_free() -> None:
    quantize = torch.ao.quantization.quantize_dynamic
    if not torch.backends.quantized.supported_engines[1:]:
        pytest.skip("this torch cannot quantise")
    with Profiler("quantised") as prof:
        during, after = net(), net()
        prof.attach(during, during[0], after, after[0])
        quantize(during, {nn.Linear}, inplace=True)
        torch.jit.script(during)
        quantize(after, {nn.Linear}, inplace=True)
    torch.jit.script(after)
    assert not any(part._forward_hooks or part._forward_pre_hooks for model in (during, after) for part in model.modules())


def test_module_and_hooks_are_not_kept_alive() -> None:
    with Profiler("freed") as prof:
        model = net()
        prof.attach(model)
        held = [weakref.ref(model), weakref.ref(model._forward_hooks)]
        del model
        # The sampling thread may be collecting at this moment, and a second collection does nothing then.
        wait_for(lambda: gc.collect() >= 0 and [reference() for reference in held] == [None, None])


class Holder(nn.Module):  # type: ignore[misc,name-defined]
    """A model that holds what the profiler handed out."""

    def __init__(self, prof: Profiler) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 2)
        self.prof = prof
        self.span = prof.phase("attention")
        self.loader = prof.train([torch.ones(1, 4)])
        self.handle = prof.attach(self)

    def forward(self, x: Any) -> Any:
        with self.span, self.prof.phase("inner"):
            return self.linear(x)


@pytest.mark.parametrize("how", ["deepcopy", "pickle", "torch.save", "averaged"])
def test_held_objects_are_copied_and_measure_nothing(how: str) -> None:
    copied: dict[str, Callable[[Any], Any]] = {
        "deepcopy": copy.deepcopy,
        "pickle": lambda model: pickle.loads(pickle.dumps(model)),
        "torch.save": lambda model: torch.load(io.BytesIO(file_of(model)), weights_only=False),
        "averaged": lambda model: torch.optim.swa_utils.AveragedModel(model).module,
    }
    with Profiler("held") as prof:
        model = Holder(prof)
        twin = copied[how](model)
        for x in twin.loader:
            assert torch.equal(twin(x), nn.functional.linear(x, model.linear.weight, model.linear.bias))
        assert twin.span(len) is len
        assert len(twin.loader) == 1
        twin.handle.remove()
        assert len(model._forward_hooks) == 1
        for _ in prof.train(range(10)):
            twin(torch.ones(1, 4))
        with model.span:
            pass
    told = prof.summary.to_dict()
    assert told["stages"]["train"]["passes"] == 1
    assert "attention" not in told["stages"]["train"]["phases"] and told["phases"]["attention"]["count"] == 1


def _length(batches: Any) -> int:
    return sum(1 for _ in batches)


def test_a_wrapped_loader_goes_to_another_process() -> None:
    with Profiler("sent") as prof, multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(_length, (prof.train([1, 2, 3]),)) == 3


SCRIPT = """
import copy, torch
torch.manual_seed(0)
net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 2))
averaged = torch.optim.swa_utils.AveragedModel(net)
optimizer = torch.optim.Adam(net.parameters())
data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.rand(40, 4)), batch_size=4)
for epoch in range(2):
    for (x,) in data:
        optimizer.zero_grad()
        net(x).square().sum().backward()
        optimizer.step()
        averaged.update_parameters(net)
net.register_forward_hook(print)
torch.save(copy.deepcopy(net), "net.pt")
torch.save({"net": net, "averaged": averaged, "optimizer": optimizer, "state": net.state_dict()}, "all.pt")
"""


@pytest.mark.slow
def test_files_of_a_script_are_the_same(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = []
    for run in (python, lambda script: epochmeter("run", "-q", script)):
        folder = tmp_path / str(len(files))
        folder.mkdir()
        (folder / "train.py").write_text(SCRIPT)
        monkeypatch.chdir(folder)
        assert run("train.py") == Answer(0, "", "")
        files.append({path.name: path.read_bytes() for path in folder.glob("*.pt")})
    assert len(files[0]) == 2
    assert files[0] == files[1]
