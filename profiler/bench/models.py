"""The models: nets of `nets` and the user's own, in training, in validation, and in single inferences."""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.nn import functional

from profiler.bench import nets
from profiler.bench.plan import Case
from profiler.bench.work import NothingToDoError, Work, clock_for, dtype_of, tensors
from profiler.errors import ArgumentValueError

RATE = 1e-6  # learning so slowly that the numbers stay ordinary ones, however often the same batch is learnt
CONTRACT = "it returns (model, inputs) or (model, inputs, loss): an nn.Module, inputs(batch) and loss(output)"


class Task(NamedTuple):
    model: Any
    inputs: Callable[[int], Any]  # by the size of the batch
    loss: Callable[[Any], Any]  # of the model's output
    optimizer: Callable[[Any], Any]  # of the parameters


def build(case: Case) -> Work:
    """Build a case of a net or of the user's factory.

    Raises:
        ArgumentValueError: the user's factory returns nothing that can be measured.
    """
    torch.manual_seed(0)
    task = _of_yours(case) if case.suite == "yours" else NETS[case.name](case)
    batch = case.batch or 1
    model = task.model.to(case.device)
    inputs = _moved(_inputs(task, case, batch), case.device)
    if case.dtype == "float64":
        model, inputs = model.double(), _doubled(inputs)
    return STAGES[case.stage or "train"](case, task, model, inputs, batch)


# ---- stages --------------------------------------------------------------------------------------------------------


def _train(case: Case, task: Task, model: Any, inputs: Any, batch: int) -> Work:
    """Build forward, loss, backward and optimizer, with the gradients set to None before."""
    model.train()
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not parameters:
        raise NothingToDoError("the model has no parameters to train")
    optimizer = task.optimizer(parameters)
    scaler = torch.amp.GradScaler(case.device.split(":")[0]) if case.dtype == "float16" else None

    def made(forward: Any) -> Callable[[], object]:
        def step() -> None:
            optimizer.zero_grad(set_to_none=True)
            with _precision(case):
                loss = task.loss(_called(forward, inputs))
            if scaler is None:
                loss.backward()
                optimizer.step()
            else:
                scaler.scale(loss).backward()
                scaler.step(optimizer)
                scaler.update()

        return step

    return _work(case, model, made, batch)


def _val(case: Case, task: Task, model: Any, inputs: Any, batch: int) -> Work:
    """Build forward and loss without gradients."""
    model.eval()

    def made(forward: Any) -> Callable[[], object]:
        def step() -> None:
            with torch.no_grad(), _precision(case):
                task.loss(_called(forward, inputs))

        return step

    return _work(case, model, made, batch)


def _inference(case: Case, task: Task, model: Any, inputs: Any, batch: int) -> Work:
    """Build the forward alone, with each call waited for."""
    model.eval()

    def made(forward: Any) -> Callable[[], object]:
        def step() -> None:
            with torch.inference_mode(), _precision(case):
                _called(forward, inputs)

        return step

    work = _work(case, model, made, batch)
    work.each = True
    return work


STAGES = {"train": _train, "val": _val, "inference": _inference}


def _work(case: Case, model: Any, made: Callable[[Any], Callable[[], object]], batch: int) -> Work:
    work = Work(made(model), clock_for(case.device), samples=batch, counted=True)
    if case.compiled:
        work.compile = lambda: made(torch.compile(model))
    return work


def _precision(case: Case) -> Any:
    """Return autocast for narrow types, as in training. The weights stay float32."""
    if case.dtype in ("bfloat16", "float16"):
        return torch.autocast(case.device.split(":")[0], dtype_of(case.dtype))
    return contextlib.nullcontext()


def _called(forward: Any, inputs: Any) -> Any:
    if isinstance(inputs, Mapping):
        return forward(**inputs)
    return forward(*inputs) if isinstance(inputs, (tuple, list)) else forward(inputs)


# ---- the nets ------------------------------------------------------------------------------------------------------


def _sgd(parameters: Any) -> Any:
    return torch.optim.SGD(parameters, RATE, momentum=0.9)


def _adamw(parameters: Any) -> Any:
    return torch.optim.AdamW(parameters, RATE)


def _classifier(model: Any, shape: tuple[int, ...], optimizer: Callable[[Any], Any]) -> Task:
    def loss(logits: Any) -> Any:
        return functional.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long, device=logits.device))

    return Task(model, lambda batch: torch.randn(batch, *shape), loss, optimizer)


def _gpt(case: Case) -> Task:
    width, heads, tokens = case.size
    model = nets.Block(width, heads, causal=True)
    return Task(model, lambda batch: torch.randn(batch, tokens, width), _mean_square, _adamw)


def _mean_square(output: Any) -> Any:
    return output.float().square().mean()


NETS: dict[str, Callable[[Case], Task]] = {
    "convnet": lambda case: _classifier(nets.lenet5(), (1, 32, 32), _sgd),
    "resnet50": lambda case: _classifier(nets.resnet50(), (3, 224, 224), _sgd),
    "vit": lambda case: _classifier(nets.VisionTransformer(*case.size), (3, 224, 224), _adamw),
    "gpt": _gpt,
}


# ---- yours ---------------------------------------------------------------------------------------------------------


def _of_yours(case: Case) -> Task:
    made = factory(case.name)()
    parts = made if isinstance(made, tuple) else ()
    if len(parts) not in (2, 3) or not isinstance(parts[0], torch.nn.Module) or not all(map(callable, parts[1:])):
        given = ", ".join(type(part).__name__ for part in parts) if parts else type(made).__name__
        raise ArgumentValueError(f"{case.name} returned {given}; {CONTRACT}")
    return Task(parts[0], parts[1], parts[2] if len(parts) == 3 else _any_loss, _adamw)


def factory(name: str) -> Any:
    """Return the function with a name like ``package.module:function``, with the working folder on the path.

    Raises:
        ArgumentValueError: there is no such function.
    """
    module_name, _, function = name.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise
        raise ArgumentValueError(
            f"there is no module {error.name!r} in this folder or among the installed ones; {name!r} is read as"
            " package.module:factory"
        ) from None
    found = getattr(module, function, None)
    if not callable(found):
        raise ArgumentValueError(f"the module {module_name!r} has no function {function!r}")
    return found


def _inputs(task: Task, case: Case, batch: int) -> Any:
    inputs = task.inputs(batch)
    if not isinstance(inputs, (torch.Tensor, tuple, list, Mapping)):
        raise ArgumentValueError(f"inputs({batch}) of {case.name} is {type(inputs).__name__}, not tensors; {CONTRACT}")
    return inputs


def _any_loss(output: Any) -> Any:
    """Return the ``loss`` of an output if it has one, else the mean square of its numbers."""
    if isinstance(getattr(output, "loss", None), torch.Tensor):
        return output.loss
    numbers = [tensor for tensor in tensors(output) if tensor.is_floating_point()]
    if not numbers:
        raise ArgumentValueError("the model's output holds no numbers to train by; give a loss as the third part")
    return sum(_mean_square(tensor) for tensor in numbers)


def _moved(value: Any, device: str) -> Any:
    return _mapped(value, lambda tensor: tensor.to(device))


def _doubled(value: Any) -> Any:
    return _mapped(value, lambda tensor: tensor.double() if tensor.is_floating_point() else tensor)


def _mapped(value: Any, change: Callable[[Any], Any]) -> Any:
    if isinstance(value, torch.Tensor):
        return change(value)
    if isinstance(value, Mapping):
        return {key: _mapped(part, change) for key, part in value.items()}
    return [_mapped(part, change) for part in value] if isinstance(value, (tuple, list)) else value
