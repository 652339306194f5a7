"""The probes: what is read, what is absent, and what never spoils its neighbours."""

from __future__ import annotations

import math
import sys
import threading
import time
import types
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest

from profiler.errors import ProbeUnavailableError
from profiler.hardware import PROBES, load_probe
from profiler.hardware.cgroup import Cgroups
from profiler.hardware.host import HostProbe, cpu_family, size_class_gib
from profiler.hardware.process import ProcessProbe
from profiler.hardware.runtime import RuntimeProbe, short_version
from profiler.hardware.sampler import PATIENCE, Sampler
from profiler.hardware.torch_memory import TorchMemoryProbe
from profiler.records.reading_record import Readings
from profiler.records.readings import Fact, MetricSpec, Probe, Reading, Sample
from support.metric_catalog import probe_specs, units
from support.processes import wait_for


def facts(probe: Probe) -> dict[str, Any]:
    known = {}
    for fact in probe.facts():
        try:
            value = fact.read()
        except ProbeUnavailableError:
            continue
        if value is not None:
            known[fact.key if fact.device is None else f"{fact.device}.{fact.key}"] = value
    return known


def samples(probe: Probe) -> dict[str, Any]:
    found = {}
    for reading in probe.readings():
        try:
            for sample in reading.all():
                found[sample.spec.name] = sample.value
        except ProbeUnavailableError:
            continue
    return found


def started(probe: Any) -> Any:
    probe.start()
    return probe


# ---- host, process, runtime, torch ---------------------------------------------------------------------------------


def test_host_and_process_on_this_machine() -> None:
    for kind in (HostProbe, ProcessProbe):
        probe = started(kind())
        readings = probe.readings()
        before = time.process_time()
        while time.process_time() - before < 0.05:
            pass
        found = {s.spec.name: s.value for r in readings for s in r.all()}
        assert found
        for name, value in found.items():
            assert math.isfinite(value) and value >= 0, name
            assert not name.endswith("utilization") or value <= 1.5
    assert found["process.memory.usage"] > 10_000_000
    # Other processes may take most of the time in which this one works 50 ms.
    assert 0 < found["process.cpu.utilization"] * (Cgroups().available_cores() or 1) <= 1.3


def test_a_quota_is_told_and_its_throttling_read(tmp_path: Path) -> None:
    for name, text in {
        "proc/self/cgroup": "0::/\n",
        "proc/self/mountinfo": "30 23 0:26 / /cg rw - cgroup2 cgroup2 rw\n",
        "cg/cpu.max": "50000 100000\n",
        "cg/cpu.stat": "throttled_usec 1500000\n",
        "cg/memory.max": str(3 * 2**30),
        "cg/memory.current": "1000",
        "cg/memory.stat": "inactive_file 400\n",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    probe = started(HostProbe(Cgroups(tmp_path)))
    known, found = facts(probe), samples(probe)
    assert (known["quota_cores"], known["available_cores"], known["limit_class_gib"]) == (0.5, 0.5, 4)
    assert found["epochmeter.container.cpu.throttled_time"] == 1.5
    assert found["container.memory.working_set"] == 600
    assert found["container.memory.available"] == 3 * 2**30 - 600


@pytest.mark.parametrize(
    ("brand", "family"),
    [
        ("Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz", "Intel Xeon"),
        ("AMD EPYC 9B14 96-Core Processor", "AMD EPYC"),
        ("13th Gen Intel(R) Core(TM) i9-13900K", "Intel Core"),
        ("AMD Ryzen Threadripper PRO 7995WX", "AMD Ryzen Threadripper"),
        ("Apple M3 Max", "Apple M"),
        ("0x41", "ARM Neoverse"),
        ("Zhaoxin KaiXian", "other"),
        ("", None),
        (None, None),
    ],
)
def test_a_cpu_is_told_by_its_family(brand: str | None, family: str | None) -> None:
    assert cpu_family(brand) == family


def test_sizes_are_told_by_class() -> None:
    assert [size_class_gib(gib * 2**30) for gib in (1, 15, 16, 17, 31)] == [1, 16, 16, 32, 32]


@pytest.mark.parametrize(
    ("version", "short"),
    [("2.13.0+cpu", "2.13"), ("2.10.0a0+gitabc", "dev"), ("2.9.0.dev20250101+cu130", "dev"), ("13.0", "13.0"), (None, None)],
)
def test_versions_are_cut(version: str | None, short: str | None) -> None:
    assert short_version(version) == short


def test_places_come_from_variable_names_only(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CI", "GITHUB_ACTIONS", "KAGGLE_KERNEL_RUN_TYPE", "COLAB_RELEASE_TAG"):
        monkeypatch.delenv(name, raising=False)
    assert "kaggle" not in facts(RuntimeProbe())
    monkeypatch.setenv("KAGGLE_KERNEL_RUN_TYPE", "a secret")
    known = facts(RuntimeProbe())
    assert known["kaggle"] is True
    assert "a secret" not in str(known)


def test_allocator_is_read_only_with_cuda_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    class Cuda:
        initialized = False

        def is_initialized(self) -> bool:
            return self.initialized

        def device_count(self) -> int:
            assert self.initialized, "this call initialises CUDA"
            return 2

        def memory_allocated(self, index: int) -> int:
            return 100 + index

        memory_reserved = max_memory_allocated = memory_allocated

    fake = types.ModuleType("torch")
    fake.cuda = Cuda()  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch", fake)
    (reading,) = TorchMemoryProbe().readings()
    assert reading.all() == []
    fake.cuda.initialized = True
    found = reading.all()
    assert len(found) == 6
    assert {sample.attributes["epochmeter.torch.device"] for sample in found} == {"cuda:0", "cuda:1"}


# ---- the sampling thread -------------------------------------------------------------------------------------------

GAUGE = MetricSpec("test.gauge", "1", "gauge", "")
COUNTER = MetricSpec("test.counter", "s", "counter", "")


class Scripted:
    """A probe whose answers are written down; an exception is raised."""

    name = "scripted"

    def __init__(self, spec: MetricSpec, answers: Iterable[Any]) -> None:
        self.spec = spec
        self.answers = iter(answers)

    def start(self) -> None:
        pass

    def facts(self) -> Sequence[Fact]:
        return ()

    def close(self) -> None:
        pass

    def readings(self) -> Sequence[Reading]:
        return (Reading((self.spec,), self._next), Reading((GAUGE,), lambda: [Sample(GAUGE, 1, {"beside": "it"})]))

    def _next(self) -> Iterable[Sample]:
        answer = next(self.answers)
        if isinstance(answer, Exception):
            raise answer
        yield Sample(self.spec, answer)


def sampled(probe: Probe, ticks: int) -> Sampler:
    recorder = Sampler(1.0, probes=("it",), load=lambda name: probe)
    recorder.open("it")
    for _ in range(ticks):
        recorder.tick()
    return recorder


def of(readings: Readings, spec: MetricSpec) -> Any:
    return readings.get((spec.name, ()))


def test_raising_reading_is_counted_and_left_out() -> None:
    recorder = sampled(Scripted(GAUGE, [1.0, ValueError(), 3.0, float("nan"), 2.0]), ticks=5)
    taken = recorder.take()
    found = of(taken, GAUGE)
    assert (found.count, found.minimum, found.maximum, found.total, found.last) == (3, 1.0, 3.0, 6.0, 2.0)
    assert taken[("test.gauge", (("beside", "it"),))].count == 5
    assert recorder.notes == {"it: ValueError": 1}


def test_a_reading_that_keeps_failing_is_asked_less() -> None:
    recorder = sampled(Scripted(GAUGE, [RuntimeError()] * 100), ticks=60)
    assert recorder.notes == {"it: RuntimeError": PATIENCE}


def test_counters_are_told_as_what_they_grew_by(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("profiler.hardware.accumulator.RESET_AFTER_S", 0)
    recorder = sampled(Scripted(COUNTER, [1000, 1002, 1005, 3, 4]), ticks=5)
    assert of(recorder.take(), COUNTER).last == 2 + 3 + 3 + 1
    assert of(recorder.take(), COUNTER) is None


def test_a_counters_growth_goes_on_over_epochs() -> None:
    probe = Scripted(COUNTER, [10, 12, 17])
    recorder = sampled(probe, ticks=2)
    assert of(recorder.take(), COUNTER).last == 2
    recorder.tick()
    assert of(recorder.take(), COUNTER).last == 5


def test_a_hanging_call_does_not_delay_the_end() -> None:
    class Hanging(Scripted):
        def start(self) -> None:
            begun.set()
            time.sleep(30)

    begun = threading.Event()
    recorder = Sampler(0.05, probes=("it",), load=lambda name: Hanging(GAUGE, []))
    recorder.start()
    assert begun.wait(20)
    before = time.perf_counter()
    recorder.stop()
    assert not recorder.finish()
    assert time.perf_counter() - before < 1.0  # twice 0.05 s are given; the rest is this machine's noise


def test_failing_samples_leave_readings_alone() -> None:
    def fails(stop: threading.Event, seconds: float) -> bool:
        raise ValueError

    recorder = Sampler(0.01, probes=("process",))
    recorder.rest = fails
    recorder.start()
    try:
        wait_for(lambda: recorder.threads[0].ticks >= 3)
    finally:
        recorder.stop(5)
        recorder.finish(5)
    assert 2 <= recorder.notes["samples of the loop: ValueError"] <= recorder.threads[0].ticks


def test_slow_probe_delays_no_quick_probe() -> None:
    def load(name: str) -> Probe:
        if name == "nvml":
            time.sleep(30)
        return Scripted(GAUGE, [0.5] * 1000)

    prepared: list[str] = []
    recorder = Sampler(0.05, probes=("nvml", "process"), load=load, prepare=lambda: prepared.append("yes"))
    recorder.start()
    wait_for(lambda: prepared == ["yes"])


def test_every_probe_keeps_to_its_declared_metrics() -> None:
    for name in PROBES:
        probe = load_probe(name)
        try:
            probe.start()
        except ProbeUnavailableError:
            continue
        declared = {spec.name for spec in probe_specs()}
        for reading in probe.readings():
            assert {spec.name for spec in reading.specs} <= declared
            try:
                answers = reading.all()
            except ProbeUnavailableError:
                continue
            assert {sample.spec for sample in answers} <= set(reading.specs)


def test_metric_names_are_declared_once_with_a_unit() -> None:
    assert all(unit for unit in units().values())
