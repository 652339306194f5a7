"""A whole benchmark as a run: plan it, measure it, and add each result to the run as soon as it is known."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from profiler.bench import plan, runner
from profiler.bench.plan import Case, Machine, Method
from profiler.bench.results import CaseLedger
from profiler.session.profiler import Profiler


@dataclass(frozen=True)
class Request:
    """The request on the command line.

    Attributes:
        words: suites, cases, and the user's factories; none of them means all suites.
        device: None takes the best one.
        dtypes: empty takes the device's types, and for the models those that are faster.
        ranks: the number of processes that a launcher such as torchrun has started.
    """

    words: Sequence[str] = ()
    device: str | None = None
    dtypes: Sequence[str] = ()
    batch: int | None = None
    compiled: bool = False
    method: Method = plan.FULL
    ranks: int = 1


@dataclass(frozen=True)
class Progress:
    """Receives the progress of a benchmark."""

    expect: Callable[[int], None]  # so many steps more
    step: Callable[[str], None]  # one more is done, of this case


def check(machine: Machine, request: Request) -> None:
    """Check a request against the machine.

    Raises:
        ArgumentValueError: the device, a type of it, or a factory does not exist.
    """
    names, factories = plan.chosen(request.words)
    device = plan.device_of(machine, request.device)
    plan.check_dtypes(machine, device, request.dtypes)
    plan.check_there(device, names, request.ranks)
    if factories:
        runner.look(factories)


def measure(prof: Profiler, machine: Machine, request: Request, progress: Progress) -> None:
    """Measure a request that `check` has accepted."""
    names, factories = plan.chosen(request.words)
    device = plan.device_of(machine, request.device)
    prof.session.sampler.add_facts("runtime", machine.facts)
    ledger = CaseLedger()

    def run(cases: list[Case]) -> None:
        method = request.method
        progress.expect(runner.steps(cases, method))

        def add(group: list[runner.Raw]) -> None:
            ledger.add(group)
            prof.session.add_cases(ledger.records())  # in the log at once: the next group may take minutes

        runner.run(cases, method, lambda case: progress.step(str(case)), add)

    first = _limits(machine, device, request, names)
    if first:
        run(first)
    dtypes = list(request.dtypes) or plan.model_dtypes(ledger.speeds())
    nets = [name for name in plan.NETS if "models" in names or name in names]
    cases = plan.models(machine, device, nets, dtypes, request.method.quick, request.batch)
    for factory in factories:
        cases += plan.yours(device, factory, request.dtypes, request.batch)
    cases = plan.with_references(machine, [replace(case, compiled=request.compiled) for case in cases])
    if "loader" in names:
        cases += plan.loader(machine, request.method.quick, request.batch)
    if cases:
        run(cases)


def _limits(machine: Machine, device: str, request: Request, names: Sequence[str]) -> list[Case]:
    """Return the requested limits, and the matrix products if models need to know which types are faster."""
    every = plan.limits(machine, device, request.dtypes, request.method.quick, request.ranks)
    found = every if "limits" in names else [case for case in every if case.name in names]
    needs_speeds = not request.dtypes and bool({"models", *plan.NETS} & set(names)) and "limits" not in names
    if needs_speeds:
        products = [case for case in every if case.name == "matmul"]
        found = [*found, *(case for case in products if case not in found and len(products) > 1)]
    return found
