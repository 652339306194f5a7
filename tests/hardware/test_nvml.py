"""NVIDIA GPUs: the compiled stand-in for NVML plays machines, recordings replay real ones, `-m gpu` asks a real one."""

from __future__ import annotations

import math
import re
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from profiler import Profiler
from profiler.errors import ProbeUnavailableError
from profiler.hardware.gpu import memory_class_gb
from profiler.hardware.nvidia.probe import FIRST_BACKOFF_S, SLOW_TICKS, NvmlProbe
from profiler.hardware.nvidia.specs import SPECS
from profiler.hardware.sampler import FACT_TICKS, Sampler
from profiler.hardware.visible import ordinals, parse
from profiler.records.reading_record import ReadingRecord
from profiler.records.readings import Sample, Samples
from profiler.testing import Driver, FakeGpu, FakeNvml
from support.nvml_library import Machine, build_fake_nvml
from support.processes import python, wait_for, wait_for_ticks
from support.sinks import Sink

RECORDINGS = sorted((Path(__file__).parents[1] / "recordings").glob("nvidia-*.json"))
SLOW_MACHINE_S = 0.25  # what else a run's end takes on a machine that has other things to do; benchmarks measure it
H100 = "NVIDIA H100 80GB HBM3"


class Watched:
    """A probe under a recorder whose ticks a test makes, with a clock of its own for what has to lie apart."""

    def __init__(self, load: Callable[[], Any] | None = None, device: str | None = None) -> None:
        self.now = 1000.0
        arguments: dict[str, Any] = {} if load is None else {"load": load}
        self.probe = NvmlProbe(device=device, clock=lambda: self.now, **arguments)
        self.recorder = Sampler(1.0, probes=("nvml",), load=lambda name: self.probe)
        self.opened = self.recorder.open("nvml")

    def ticks(self, times: int = 1, apart: float = 1.0) -> dict[tuple[str, str], ReadingRecord]:
        for _ in range(times):
            self.now += apart
            pass_s(apart)
            self.recorder.tick()
        return self.taken()

    def taken(self) -> dict[tuple[str, str], ReadingRecord]:
        """By the metric's name and the attribute that tells readings of one GPU apart, or else the GPU."""
        found = {}
        for (name, _), record in self.recorder.take().items():
            at = dict(record.attributes)
            own = {key: value for key, value in at.items() if key not in ("hw.id", "hw.type", "hw.parent", "hw.gpu.task")}
            found[name, next(iter(own.values()), at["hw.id"])] = record
        return found

    def gpus(self) -> set[str]:
        return {dict(attributes)["hw.id"] for name, attributes in self.recorder.take() if name == "hw.gpu.memory.usage"}


def pass_s(seconds: float) -> None:
    """On the stand-in's own clock; a real driver's passes by itself."""
    import pynvml

    if hasattr(pynvml.nvmlLib, "fake_nvml_pass"):
        pynvml.nvmlLib.fake_nvml_pass(round(seconds * 1000))
    else:
        time.sleep(min(seconds, 0.11))


def last(found: dict[tuple[str, str], ReadingRecord], name: str, which: str = "gpu-0") -> Any:
    return found[name, which].last


# ---- what is read --------------------------------------------------------------------------------------------------


def test_everything_that_a_hopper_tells(machine: Machine) -> None:
    machine.plays("energy=1000000", "field:74=2000000000", "field:138=1024")
    it = Watched()
    it.ticks()
    machine.plays("energy=1600000", "field:74=2500000000", "field:138=3072", "field:197=1099511628000")
    found = it.ticks(SLOW_TICKS)
    assert it.recorder.notes == {}
    assert last(found, "hw.gpu.utilization") == 1.0
    assert last(found, "epochmeter.gpu.memory.controller.utilization") == 0.11
    assert last(found, "hw.gpu.memory.usage") == 4 * 2**30
    assert last(found, "hw.gpu.memory.limit") == 81_559 * 2**20
    assert last(found, "epochmeter.gpu.memory.reserved") == 479 * 2**20
    assert last(found, "hw.power") == 631.95
    assert last(found, "epochmeter.gpu.power.instant") == 625.68
    assert last(found, "hw.energy") == 600.0
    assert last(found, "epochmeter.gpu.throttled_time", "power_cap") == 0.5
    assert last(found, "epochmeter.gpu.throttled_time", "thermal") == 0
    assert last(found, "epochmeter.gpu.nvlink.io", "transmit") == 2048 * 1024
    assert last(found, "hw.gpu.io", "transmit") == 1099511628000 - 2**40
    assert last(found, "hw.temperature", "hbm") == 54
    assert last(found, "epochmeter.gpu.sm.utilization") == 0.9
    assert last(found, "epochmeter.gpu.sm.occupancy") == 0.45
    assert last(found, "epochmeter.gpu.tensor.utilization") == 0.6
    assert last(found, "epochmeter.gpu.dram.utilization") == 0.35
    assert last(found, "epochmeter.gpu.pcie.throughput", "receive") == 3400 * 2**20
    assert last(found, "epochmeter.gpu.nvlink.throughput", "receive") == 0
    assert (last(found, "hw.status", "ok"), last(found, "hw.status", "failed")) == (1, 0)
    assert last(found, "hw.temperature", "gpu_die") == 59
    assert last(found, "epochmeter.gpu.clock.frequency", "sm") == 1_980_000_000
    assert last(found, "epochmeter.gpu.clock.frequency", "memory") == 2_619_000_000
    assert last(found, "hw.errors", "uncorrected") == 0
    assert last(found, "epochmeter.gpu.memory.remapped_rows", "corrected") == 0
    assert last(found, "hw.status", "predicted_failure") == 0
    # CUDA's number of the card is told once CUDA is in use: until then it would be a guess.
    assert it.recorder.hardware().gpus == {0: {"name": H100, "memory_class_gb": 80, "power_limit_w": 700.0}}


def test_each_call_comes_at_its_pace(machine: Machine) -> None:
    machine.plays("gpus=2")
    it = Watched()
    it.ticks(2 * SLOW_TICKS)
    assert machine.calls("nvmlInitWithFlags") == 1
    assert machine.calls("nvmlDeviceGetHandleByIndex_v2") == 2
    assert machine.calls("nvmlDeviceGetFieldValues") == 2 * 2 * SLOW_TICKS
    assert machine.calls("nvmlGpmSampleGet") == 2 * SLOW_TICKS  # an average since the call before: nothing is lost
    assert machine.calls("nvmlDeviceGetTemperatureV") == 2 * 2
    assert machine.calls("nvmlDeviceGetPcieThroughput") == machine.calls("nvmlDeviceGetComputeRunningProcesses_v3") == 0
    Watched().ticks()
    assert machine.calls("nvmlInitWithFlags") == 1  # another run of the same process
    for probe in it.recorder._drivers.probes:
        probe.close()
    assert machine.calls("nvmlGpmSampleFree") == 4


def test_driver_samples_show_peaks_within_a_second(machine: Machine) -> None:
    it = Watched()
    assert ("epochmeter.gpu.power.samples", "gpu-0") not in it.ticks()  # what was before the run
    found = it.ticks(SLOW_TICKS, apart=0.05)
    power = found["epochmeter.gpu.power.samples", "gpu-0"]
    assert 20 <= power.count <= 100  # one in 20 ms, of the half second that passed here, and of what passed meanwhile
    median, high = power.histogram.percentile(0.5), power.histogram.percentile(0.99)
    assert median is not None and high is not None
    assert 609 <= power.histogram.min_ns / 1e9 < median < high <= 655  # type: ignore[operator]
    assert power.histogram.sum_ns / 1e9 / power.count == pytest.approx(632, abs=15)
    busy = found["epochmeter.gpu.utilization.samples", "gpu-0"].histogram
    assert (busy.min_ns, busy.max_ns) == (500_000_000, 1_000_000_000)


def test_zero_is_a_reading(machine: Machine) -> None:
    machine.plays("util=0", "used=0", "power=0", "temperature=0")
    found = Watched().ticks()
    for name in ("hw.gpu.utilization", "hw.gpu.memory.usage", "hw.power"):
        assert last(found, name) == 0
    assert last(found, "hw.temperature", "gpu_die") == 0


def test_heat_degrades_and_a_power_cap_does_not(machine: Machine) -> None:
    it = Watched()
    for reasons, degraded in ((0x1, 0), (0x4, 0), (0x20, 1), (0x44, 1), (0x8, 1), (0x80, 1)):
        machine.plays(f"reasons={reasons}")
        assert last(it.ticks(), "hw.status", "degraded") == degraded
        found = it.ticks(SLOW_TICKS)
        assert (last(found, "hw.status", "degraded"), last(found, "hw.status", "ok")) == (degraded, 1 - degraded)


def test_unremapped_rows_predict_a_failure(machine: Machine) -> None:
    machine.plays("field:144=1")
    assert last(Watched().ticks(2), "hw.status", "predicted_failure") == 1


def test_gpm_samples_lie_apart(machine: Machine) -> None:
    it = Watched()
    it.ticks()
    found = it.ticks(10, apart=0.015)
    assert found["epochmeter.gpu.sm.utilization", "gpu-0"].count == 1  # 0.12 s
    machine.plays("gpm:2=nan", "gpm:3!3")
    found = it.ticks(2)
    names = {name for name, _ in found}
    assert "epochmeter.gpu.sm.utilization" not in names and "epochmeter.gpu.sm.occupancy" not in names
    machine.plays("")
    names = {name for name, _ in it.ticks(2)}
    assert "epochmeter.gpu.sm.utilization" in names and "epochmeter.gpu.sm.occupancy" not in names


def test_wrapping_32_bit_counter_is_dropped() -> None:
    class Narrow(Driver):
        def nvmlDeviceGetFieldValues(self, handle: Any, count: int, array: Any, /) -> int:
            code = super().nvmlDeviceGetFieldValues(handle, count, array)
            for value in array:
                value.valueType = 1
            return code

    card = FakeGpu({"field:197": 5, "field:198": 5})
    wide, narrow = FakeNvml(card), FakeNvml(card)
    narrow.nvmlLib = Narrow()
    assert "hw.gpu.io" not in {name for name, _ in Watched(lambda: narrow).ticks(2)}
    assert "hw.gpu.io" in {name for name, _ in Watched(lambda: wide).ticks(2)}


# ---- what is absent ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [3, 4, 13])
@pytest.mark.parametrize(
    ("call", "metric"),
    [
        ("nvmlDeviceGetUtilizationRates", "hw.gpu.utilization"),
        ("nvmlDeviceGetFieldValues", "epochmeter.gpu.throttled_time"),
        ("nvmlGpmSampleGet", "epochmeter.gpu.sm.utilization"),
        ("nvmlGpmQueryDeviceSupport", "epochmeter.gpu.sm.utilization"),
        ("nvmlDeviceGetSamples", "epochmeter.gpu.power.samples"),
        ("nvmlDeviceGetClockInfo", "epochmeter.gpu.clock.frequency"),
        ("field:82", "hw.temperature"),
    ],
)
def test_what_a_card_does_not_support_disappears_alone(machine: Machine, call: str, metric: str, code: int) -> None:
    machine.plays(f"{call}!{code}")
    it = Watched()
    it.ticks()
    found = it.ticks(2)
    names = {name for name, _ in found}
    assert metric not in names
    assert {"hw.power", "hw.energy", "hw.gpu.memory.usage", "hw.status"} <= names
    assert it.recorder.notes == {}


def test_a_refused_field_is_not_asked_again(machine: Machine) -> None:
    machine.plays("field:186!3", "field:75!2")
    it = Watched()
    found = it.ticks(3)
    names = {which for name, which in found if name == "epochmeter.gpu.throttled_time"}
    assert "thermal" not in names
    assert {"power_cap", "sync_boost", "board_limit", "reliability"} <= names
    assert ("epochmeter.gpu.power.instant", "gpu-0") not in found
    machine.plays("")
    assert ("epochmeter.gpu.power.instant", "gpu-0") not in it.ticks(3)


@pytest.mark.parametrize(
    ("scenario", "field"),
    [
        (["held_at=269"], 270),
        (["held_at=269", "smoothing=1"], 270),
        (["held_at=251"], 252),
        (["held_at=251", "smoothing=1"], 252),  # a driver 580
    ],
)
def test_throttle_times_are_found_in_either_numbering(machine: Machine, scenario: list[str], field: int) -> None:
    machine.plays(*scenario)
    it = Watched()
    it.ticks()
    machine.plays(*scenario, f"field:{field}=2500000000")
    found = it.ticks(SLOW_TICKS)
    told = {which: record.last for (name, which), record in found.items() if name == "epochmeter.gpu.throttled_time"}
    assert told == {
        **dict.fromkeys(("power_cap", "thermal", "sync_boost", "board_limit", "reliability", "sw_thermal", "power_brake"), 0),
        "hw_thermal": 2.5,
    }
    assert it.recorder.notes == {}


@pytest.mark.parametrize("scenario", [["held_at=251", "field:252!3", "smoothing=1"], ["held_at=999"]])
def test_throttle_times_are_absent_if_numbering_unsure(machine: Machine, scenario: list[str]) -> None:
    machine.plays(*scenario)
    found = Watched().ticks(SLOW_TICKS + 1)
    told = {which for name, which in found if name == "epochmeter.gpu.throttled_time"}
    assert told == {"power_cap", "thermal", "sync_boost", "board_limit", "reliability"}


def test_instant_power_is_reported_once(machine: Machine) -> None:
    machine.plays("field:185!3", "power=250000")
    found = Watched().ticks(3)
    assert last(found, "hw.power") == 250
    assert ("epochmeter.gpu.power.instant", "gpu-0") not in found


def test_a_field_that_fails_now_and_then_stays(machine: Machine) -> None:
    it = Watched()
    machine.plays("field:186!999")
    assert ("epochmeter.gpu.power.instant", "gpu-0") not in it.ticks()
    machine.plays("")
    assert last(it.ticks(), "epochmeter.gpu.power.instant") == 625.68
    assert it.recorder.notes == {}


def test_memory_shared_with_host_is_absent(machine: Machine) -> None:
    for told in ("total=0", "nvmlDeviceGetMemoryInfo_v2!3"):
        machine.plays(told)
        it = Watched()
        names = {name for name, _ in it.ticks(2)}
        assert not {"hw.gpu.memory.usage", "hw.gpu.memory.limit", "epochmeter.gpu.memory.reserved"} & names
        assert "memory_class_gb" not in it.recorder.hardware().gpus[0]
        assert it.recorder.notes == {}


def test_before_hopper_there_is_no_gpm(machine: Machine) -> None:
    machine.plays("architecture=8", "name=NVIDIA A100-SXM4-80GB")
    it = Watched()
    it.ticks()
    assert not any(name.startswith("epochmeter.gpu.sm") for name, _ in it.ticks(2))
    assert machine.calls("nvmlGpmSampleAlloc") == 0


@pytest.mark.slow
def test_an_old_driver_lacks_the_newer_calls(tmp_path: Path) -> None:
    build_fake_nvml(tmp_path / "old", "-DOLD_DRIVER")
    code = """
from profiler.hardware.sampler import Sampler
recorder = Sampler(1.0, probes=("nvml",))
recorder.open("nvml"); recorder.tick(); recorder.tick()
for (name, attributes), record in recorder.take().items():
    print(name, record.last, *[v for k, v in attributes if k != "hw.id"])
print(recorder.notes)
"""
    told = python(
        "-c", code, LD_LIBRARY_PATH=str(tmp_path / "old"), FAKE_NVML="field:185!3;field:186!3;reasons=32;name=Tesla T4"
    )
    assert told.code == 0, told.err
    assert f"hw.gpu.memory.usage {4 * 2**30 + 479 * 2**20}" in told.out  # version 1 counts the driver's own
    assert "epochmeter.gpu.memory.reserved" not in told.out
    assert "hw.temperature 59" in told.out
    assert "hw.status 1 degraded gpu" in told.out
    assert told.out.endswith("{}\n")


def no_pynvml() -> Any:
    raise ImportError


@pytest.mark.parametrize(
    ("told", "says"),
    [
        ("gpus=0", "no NVIDIA GPU is visible to this process"),
        ("nvmlInitWithFlags!12", "no NVIDIA driver library"),
        ("nvmlInitWithFlags!9", "not loaded"),
        ("nvmlInitWithFlags!18", "reboot"),
        ("nvmlInitWithFlags!999", "restart the container"),
        ("nvmlInitWithFlags!20", "does not start"),
        ("nvmlDeviceGetCount_v2!999", "restart the container"),
        ("nvmlDeviceGetHandleByIndex_v2!4", "no NVIDIA GPU is visible to this process, of 1 that there are"),
    ],
)
def test_why_there_is_no_gpu(machine: Machine, told: str, says: str) -> None:
    machine.plays(told)
    it = Watched()
    assert says in it.recorder.missing["nvml"]
    assert it.ticks() == {}
    is_trouble = not says.startswith("no NVIDIA")  # a machine without a GPU is none
    assert list(it.recorder.notes) == ([f"nvml: {it.recorder.missing['nvml']}"] if is_trouble else [])


def test_missing_binding_names_the_cure() -> None:
    with pytest.raises(ProbeUnavailableError, match="pip install nvidia-ml-py"):
        NvmlProbe(no_pynvml).start()


def test_where_there_is_no_driver_it_is_said() -> None:
    told = python(
        "-c",
        "from profiler.hardware.sampler import Sampler; r = Sampler(1.0, probes=('nvml',)); r.open('nvml'); print(r.missing)",
    )
    assert "nvml" in told.out and "Traceback" not in told.err


# ---- failing -------------------------------------------------------------------------------------------------------

ALL_CODES = [*range(1, 31), 999]


@pytest.mark.parametrize("code", ALL_CODES)
def test_whatever_a_call_answers_the_rest_is_read(machine: Machine, code: int) -> None:
    machine.plays("gpus=2", f"nvmlDeviceGetUtilizationRates@0!{code}")
    it = Watched()
    found = it.ticks(3)
    assert last(found, "hw.gpu.utilization", "gpu-1") == 1.0
    assert ("hw.gpu.utilization", "gpu-0") not in found
    assert last(found, "hw.gpu.memory.usage", "gpu-1") == 4 * 2**30


def lost(gpu: int, code: int = 15) -> list[str]:
    calls = ("GetUtilizationRates", "GetMemoryInfo_v2", "GetFieldValues", "GetCurrentClocksEventReasons", "GetName")
    return [f"nvmlDevice{call}@{gpu}!{code}" for call in calls]


@pytest.mark.parametrize("code", [1, 15, 16, 28, 999])
def test_a_lost_gpu_stops_alone_and_comes_back(machine: Machine, code: int) -> None:
    machine.plays("gpus=2")
    it = Watched()
    it.ticks()
    machine.plays("gpus=2", *lost(1, code))
    it.ticks()
    asked = machine.calls("nvmlDeviceGetUtilizationRates")
    found = it.ticks(12)
    assert machine.calls("nvmlDeviceGetUtilizationRates") == asked + 12  # those of GPU 0
    assert last(found, "hw.gpu.utilization", "gpu-0") == 1.0
    assert ("hw.gpu.utilization", "gpu-1") not in found
    failed = [r for r in it.recorder.take().values() if r.spec.name == "hw.status"]
    assert failed == []
    it.ticks(1)
    assert sum(it.recorder.notes.values()) <= 2
    machine.plays("gpus=2")
    found = it.ticks(40)
    assert last(found, "hw.gpu.utilization", "gpu-1") == 1.0
    assert machine.calls("nvmlInitWithFlags") == 1  # the other card's handle stays as it is


def test_the_status_of_a_lost_gpu_is_failed(machine: Machine) -> None:
    it = Watched()
    machine.plays(*lost(0))
    found = it.ticks(2)
    assert (last(found, "hw.status", "failed"), last(found, "hw.status", "ok")) == (1, 0)
    states = {which: record.count for (name, which), record in found.items() if name == "hw.status"}
    assert states == {"ok": 2, "degraded": 2, "failed": 2}  # so that their means can be compared
    machine.plays("")
    found = it.ticks(5)
    assert (last(found, "hw.status", "failed"), last(found, "hw.status", "ok")) == (0, 1)
    assert machine.calls("nvmlInitWithFlags") == machine.calls("nvmlShutdown") + 1 > 1  # no other card was in use


def test_a_lost_gpu_is_asked_less_and_less(machine: Machine) -> None:
    it = Watched()
    machine.plays(*lost(0))
    it.ticks(1)
    before = machine.calls("nvmlDeviceGetName")
    it.ticks(1000, apart=FIRST_BACKOFF_S / 4)
    assert 8 <= machine.calls("nvmlDeviceGetName") - before <= 16  # after 1, 2, 4, 8, 16, 30, 30 ... of 250 s


def test_gpu_lost_at_start_comes_back(machine: Machine) -> None:
    machine.plays("gpus=2", "nvmlDeviceGetHandleByIndex_v2@1!15")
    it = Watched()
    it.recorder.tick()
    failed = {at["hw.id"]: r.last for r in it.recorder.take().values() if (at := r.attributes).get("hw.state") == "failed"}
    assert failed == {"gpu-0": 0, "gpu-1": 1}
    machine.plays("gpus=2")
    assert last(it.ticks(5), "hw.gpu.memory.usage", "gpu-1") == 4 * 2**30


@pytest.mark.slow
@pytest.mark.parametrize("call", ["nvmlInitWithFlags!999", "nvmlDeviceGetCount_v2!15"])
def test_failing_driver_is_tried_again(machine: Machine, call: str) -> None:
    machine.plays(call)
    with Profiler("late", interval=0.05) as prof:
        wait_for(lambda: prof.summary.to_dict().get("notes"))
        machine.plays("")
        wait_for(lambda: "nvml" not in prof.session.sampler.missing)
    found = prof.summary.to_dict()
    (note,) = found["notes"]
    assert note.startswith("nvml: ")
    assert "hw.power" in {reading["metric"] for reading in found["readings"]}


@pytest.mark.parametrize("device", ["cpu", "mps"])
def test_a_run_on_another_device_reads_no_gpu(machine: Machine, device: str) -> None:
    it = Watched(device=device)
    assert it.ticks() == {} and it.recorder.missing == {"nvml": f"the run's device is {device}"}
    assert machine.calls("nvmlInitWithFlags") == 0


def test_answered_reading_is_retried_after_refusals(machine: Machine) -> None:
    it = Watched()
    it.ticks()
    machine.plays("field:185!3", "field:83!3", "nvmlDeviceGetUtilizationRates!4")
    found = it.ticks(3)
    assert last(found, "hw.power") == 631.95 and ("hw.energy", "gpu-0") in found  # by calls of their own
    assert ("hw.gpu.utilization", "gpu-0") not in found
    machine.plays("")
    found = it.ticks(2)
    assert found["hw.power", "gpu-0"].count == found["hw.gpu.utilization", "gpu-0"].count == 2
    machine.plays("field:186!3")
    it.ticks(10)
    machine.plays("")
    assert ("epochmeter.gpu.power.instant", "gpu-0") not in it.ticks(2)  # refused for long: not asked any more


def test_one_low_counter_answer_is_no_reset(machine: Machine) -> None:
    it = Watched()
    for energy in (100_000_000, 100_200_000, 0, 100_400_000):
        machine.plays(f"energy={energy}")
        it.recorder.tick()
    assert last(it.taken(), "hw.energy") == 400


def test_an_energy_counter_that_falls_back_was_reset(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("profiler.hardware.accumulator.RESET_AFTER_S", 0)  # it stays there
    it = Watched()
    total = 0.0
    for energy in (5_000_000, 5_400_000, 100_000, 300_000):
        machine.plays(f"energy={energy}")
        total += last(it.ticks(), "hw.energy")
    assert total == 400 + 100 + 200


# ---- which GPUs ----------------------------------------------------------------------------------------------------


def visible(*entries: str) -> str:
    return ",".join(entries)


@pytest.mark.parametrize(
    ("named", "gpus"),
    [
        (None, {"gpu-0", "gpu-1", "gpu-2", "gpu-3"}),
        ("2", {"gpu-2"}),
        ("1gpu2, 3", {"gpu-1", "gpu-3"}),
        ("1,1", set()),
        ("0,-1,2", {"gpu-0"}),
        ("0,9,2", {"gpu-0"}),
        ("", set()),
        ("-1", set()),
        ("NoDevFiles", set()),
        ("GPU-a2", {"gpu-2"}),
        ("GPU-a200", {"gpu-2"}),
        ("GPU-a3000000-1111-2222-3333-444455556666,GPU-a0", {"gpu-3", "gpu-0"}),
        ("GPU-a1,GPU-a,GPU-a2", {"gpu-1"}),
        ("GPU-a1,GPU-a10", set()),
        ("GPU-ff", set()),
    ],
)
def test_the_runs_gpus_by_the_environment(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, named: str | None, gpus: set[str]
) -> None:
    machine.plays("gpus=4")
    if named is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
    it = Watched()
    it.recorder.tick()
    assert it.gpus() == gpus
    if not gpus:
        assert "no NVIDIA GPU is visible" in it.recorder.missing["nvml"]
    assert sorted(it.recorder.hardware().gpus) == sorted(int(gpu[4:]) for gpu in gpus)


def test_the_grammar_is_torchs_own(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = pytest.importorskip("torch").cuda
    entries = ("0", "1", "2", "1gpu2", "-1", "", "GPU-a", "GPU-ab", "MIG-x", "NoDevFiles", " 1", "+2", "2 ", "GPU-a ")
    for first in entries:
        for second in entries:
            for third in (None, "0", "GPU-a", "3"):
                text = ",".join(entry for entry in (first, second, third) if entry is not None)
                monkeypatch.setenv("CUDA_VISIBLE_DEVICES", text)
                assert parse(text) == cuda._parse_visible_devices(), text
    uuids = ["GPU-ab12", "GPU-ab34", "GPU-cd"]
    for named in (["GPU-ab1"], ["GPU-ab"], ["GPU-cd", "GPU-c"], ["GPU-ab12", "GPU-x", "GPU-cd"], ["GPU-cd", "GPU-ab34"]):
        assert ordinals(named, uuids) == cuda._transform_uuid_to_ordinals(named, uuids)


def test_cuda_shows_one_mig_instance_only(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.plays("gpus=3", "mig@1=1,5", "mig@2=2")
    for named, gpus in ((None, {"gpu-1/mig-1"}), ("0,2,1", {"gpu-2/mig-2"}), ("0", {"gpu-0"})):
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        if named is not None:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
        it = Watched()
        it.recorder.tick()
        assert it.gpus() == gpus


def test_mixed_machine_numbers_are_not_guessed(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.plays("gpus=2", "name@0=Tesla T4")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")  # CUDA's fastest: which one that is, NVML does not say
    it = Watched()
    it.recorder.tick()
    assert it.gpus() == set() and it.recorder.missing == {}
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    it = Watched()
    it.recorder.tick()
    assert it.gpus() == {"gpu-0"}


class Cuda:
    """torch.cuda, of a process that has initialised it: devices by UUID."""

    def __init__(self, *uuids: str, reserved: tuple[int, ...] = ()) -> None:
        self.uuids = uuids
        self.reserved = reserved
        self.in_use = False

    def is_initialized(self) -> bool:
        return self.in_use

    def device_count(self) -> int:
        assert self.in_use, "this call initialises CUDA"
        return len(self.uuids)

    def get_device_properties(self, index: int) -> Any:
        assert self.in_use, "this call initialises CUDA"
        return types.SimpleNamespace(uuid=self.uuids[index])

    def memory_reserved(self, index: int) -> int:
        return self.reserved[index] if self.reserved else 0


def with_torch(monkeypatch: pytest.MonkeyPatch, cuda: Cuda) -> None:
    fake = types.ModuleType("torch")
    fake.cuda = cuda  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch", fake)


UUIDS = [f"a{index}000000-1111-2222-3333-444455556666" for index in range(4)]


def test_torch_devices_confirm_the_gpus(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.plays("gpus=4", "name@0=Tesla T4")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    cuda = Cuda(UUIDS[3], UUIDS[1])
    with_torch(monkeypatch, cuda)
    it = Watched()
    it.recorder.tick()
    assert it.gpus() == set()
    cuda.in_use = True
    it.recorder.tick()
    it.recorder.tick()
    assert it.gpus() == {"gpu-1", "gpu-3"}
    it.ticks(FACT_TICKS)
    gpus = it.recorder.hardware().gpus
    assert {index: gpu["cuda_index"] for index, gpu in gpus.items()} == {3: 0, 1: 1}
    assert not any(uuid in str(it.recorder.__dict__) for uuid in UUIDS)


def test_one_device_of_several(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.plays("gpus=4")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,2")
    it = Watched(device="cuda:1")
    it.recorder.tick()
    assert it.gpus() == {"gpu-2"}
    assert machine.calls("nvmlDeviceGetHandleByIndex_v2") == 4  # to see that they are alike


def test_a_rank_sees_all_and_uses_its_own(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.plays("gpus=4")
    cuda = Cuda(*UUIDS, reserved=(0, 0, 2**30, 0))
    cuda.in_use = True
    with_torch(monkeypatch, cuda)
    it = Watched()
    it.recorder.tick()
    assert len(it.gpus()) == 4
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    cuda.in_use, cuda.reserved = False, (0, 0, 0, 0)
    it = Watched()
    it.recorder.tick()
    assert it.gpus() == set() and it.recorder.missing == {}
    cuda.in_use = True
    it.recorder.tick()
    assert it.gpus() == set()  # it has not shown yet which one is its own
    cuda.reserved = (0, 0, 2**30, 0)
    it.recorder.tick()
    assert it.gpus() == {"gpu-2"}
    it.ticks(FACT_TICKS)
    assert it.recorder.hardware().gpus[2]["cuda_index"] == 2
    it = Watched(device="cuda:3")  # said by hand
    it.recorder.tick()
    it.recorder.tick()
    assert it.gpus() == {"gpu-3"}


@pytest.mark.parametrize("named", [None, "0", "MIG-00000000-0000-0000-0000-000000000005"])
def test_mig_instance_has_own_memory_card_power(machine: Machine, monkeypatch: pytest.MonkeyPatch, named: str | None) -> None:
    machine.plays("mig@0=3,5")
    if named is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
    it = Watched()
    it.ticks()
    found = it.ticks(SLOW_TICKS)
    instance = f"gpu-0/mig-{5 if named and named.startswith('MIG') else 3}"
    assert last(found, "hw.gpu.memory.limit", instance) == 81_559 * 2**20 // 4
    assert last(found, "epochmeter.gpu.sm.utilization", instance) == 0.9
    assert last(found, "hw.power", "gpu-0") == 631.95
    assert ("hw.gpu.utilization", "gpu-0") not in found
    assert machine.calls("nvmlGpmMigSampleGet") and not machine.calls("nvmlGpmSampleGet")
    assert it.recorder.hardware().gpus[0]["mig_instance"] == int(instance[-1])
    assert it.recorder.notes == {}


def test_lost_mig_instance_returns_as_the_same(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.plays("mig@0=3,5")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-00000000-0000-0000-0000-000000000005")
    it = Watched()
    it.ticks()
    machine.plays("mig@0=3,5", *lost(0))
    it.ticks(2)
    machine.plays("mig@0=3,5")
    it.ticks(5)
    found = it.ticks(2)
    assert last(found, "hw.gpu.memory.usage", "gpu-0/mig-5") == 2**30
    assert ("hw.gpu.memory.usage", "gpu-0/mig-3") not in found
    machine.plays("mig@0=3", *lost(0))
    it.ticks(2)
    machine.plays("mig@0=3")  # the instance is gone: another one on the card is somebody else's
    it.ticks(5)
    assert not any(name == "hw.gpu.memory.usage" for name, _ in it.ticks(40))


def test_sizes_of_cards_are_told_by_class() -> None:
    assert [memory_class_gb(mib * 2**20) for mib in (81_559, 143_771, 24_564, 15_360)] == [80, 141, 24, 16]


# ---- the contract, which every source of answers keeps -------------------------------------------------------------

SHARES = tuple(spec.name for spec in SPECS if spec.unit == "1" and spec.kind in ("gauge", "histogram"))
ATTRIBUTES = {
    "hw.id": r"gpu-\d+(/mig-\d+|-die|-hbm)?",
    "hw.parent": r"gpu-\d+",
    "hw.type": "gpu",
    "hw.gpu.task": "general",
    "hw.sensor_location": "gpu_die|hbm",
    "hw.state": "ok|degraded|failed|predicted_failure",
    "error.type": "corrected|uncorrected",
    "network.io.direction": "transmit|receive",
    "epochmeter.gpu.clock": "sm|memory",
    "epochmeter.gpu.throttle_reason": "power_cap|thermal|sync_boost|board_limit|reliability|sw_thermal|hw_thermal|power_brake",
}


def keeps_the_contract(probe: NvmlProbe) -> set[str]:
    """Two rounds of every row: known metrics, closed attributes, values that can be."""
    probe.start()
    seen = set()
    rows = probe.readings()
    for _ in range(2):
        for row in rows:
            try:
                answers = row.all()
            except ProbeUnavailableError:
                continue
            for answer in answers:
                assert answer.spec in row.specs
                values = [v / answer.per for v in answer.values] if isinstance(answer, Samples) else [answer.value]
                assert isinstance(answer, (Sample, Samples)) and (answer.spec.kind == "histogram") is isinstance(
                    answer, Samples
                )
                for key, value in answer.attributes.items():
                    assert re.fullmatch(ATTRIBUTES[key], value), (answer.spec.name, key, value)
                for value in values:
                    assert math.isfinite(value) and value >= 0, answer
                    assert answer.spec.name not in SHARES or value <= 1, answer
                seen.add(answer.spec.name)
        pass_s(0.2)
        time.sleep(0.11)
    probe.close()
    for fact in probe.facts():
        assert fact.key in ("name", "memory_class_gb", "power_limit_w", "cuda_index", "mig_instance")
    return seen


def test_the_stand_in_keeps_the_contract(machine: Machine) -> None:
    machine.plays("gpus=8")
    assert keeps_the_contract(NvmlProbe()) == {spec.name for spec in SPECS}
    machine.plays("gpus=8", "mig@3=1")
    of_the_whole = {"hw.gpu.utilization", "epochmeter.gpu.memory.controller.utilization", "epochmeter.gpu.utilization.samples"}
    assert keeps_the_contract(NvmlProbe()) == {spec.name for spec in SPECS} - of_the_whole


@pytest.mark.parametrize("path", RECORDINGS, ids=lambda path: path.stem)
def test_a_recording_keeps_the_contract(path: Path) -> None:
    seen = keeps_the_contract(NvmlProbe(lambda: FakeNvml.recorded(path)))
    assert {"hw.gpu.utilization", "hw.gpu.memory.usage", "hw.power", "hw.temperature"} <= seen


@pytest.mark.slow
def test_what_make_record_nvml_writes_can_be_replayed(fake_nvml_folder: Path, tmp_path: Path) -> None:
    script = Path(__file__).parents[1] / "support" / "record_nvml.py"
    path = tmp_path / "recorded.json"
    # A pause is longer than the stand-in takes for a sample of its own, so that each tick has one.
    pause = "time.sleep = lambda s, sleep=time.sleep: sleep(0.2)"
    code = f"import sys, runpy; sys.argv[1:] = [{str(path)!r}]; import time; {pause}"
    told = python(
        "-c",
        f"{code}; runpy.run_path({str(script)!r}, run_name='__main__')",
        LD_LIBRARY_PATH=str(fake_nvml_folder),
        FAKE_NVML="gpus=2;name@1=Tesla T4;field:82@1!3;nvmlDeviceGetSamples@1!3;uuid=GPU-canary-7f3a",
    )
    assert told.code == 0, told.err
    assert "2 GPU(s)" in told.out
    written = path.read_text()
    assert "canary" not in written and "GPU-" not in written and "driver 590" in written
    seen = keeps_the_contract(NvmlProbe(lambda: FakeNvml.recorded(path)))
    assert seen == {spec.name for spec in SPECS}
    none = python(str(script), LD_LIBRARY_PATH=str(fake_nvml_folder), FAKE_NVML="gpus=0")
    assert none.code == 1 and "nothing to record" in none.err


@pytest.mark.gpu
def test_a_real_gpu_keeps_the_contract() -> None:
    seen = keeps_the_contract(NvmlProbe())
    assert {"hw.gpu.memory.usage", "hw.power", "hw.temperature", "hw.status"} <= seen


# ---- hanging, forking, ending --------------------------------------------------------------------------------------


def test_hanging_call_delays_no_other_reading(machine: Machine, home: Path) -> None:
    machine.plays("nvmlDeviceGetFieldValues~3000")
    with Profiler("hung", interval=0.05) as prof:
        wait_for_ticks(prof, 6)
        began = time.monotonic()
    assert time.monotonic() - began < 0.05 + SLOW_MACHINE_S
    found = {reading["metric"]: reading for reading in prof.summary.to_dict()["readings"]}
    assert found["process.memory.usage"]["count"] >= 5
    assert "hw.power" not in found
    assert prof.summary.to_dict()["notes"] == {"no answer from the GPU's driver at the end of the run": 1}


def test_a_driver_that_does_not_answer_is_counted(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("profiler.hardware.sampler.OPEN_DEADLINE_S", 0.2)
    machine.plays("nvmlInitWithFlags~1500")
    with Profiler("hung", interval=0.05) as prof:
        late = "no answer from the GPU's driver within 0.2 s"
        wait_for(lambda: late in prof.summary.to_dict().get("notes", ()))
        wait_for_ticks(prof, 2, drivers=True)  # it has answered: all is as usual
    assert "hw.power" in {reading["metric"] for reading in prof.summary.to_dict()["readings"]}


HANGS = """
import time
from profiler import Profiler
with Profiler("hung", interval=0.05):
    time.sleep(0.5)
    began = time.monotonic()
print("stopped in", time.monotonic() - began)
"""


@pytest.mark.slow
@pytest.mark.parametrize("call", ["nvmlInitWithFlags", "nvmlDeviceGetHandleByIndex_v2", "nvmlDeviceGetMemoryInfo_v2"])
def test_a_process_ends_though_a_call_hangs(fake_nvml_folder: Path, call: str) -> None:
    began = time.monotonic()
    told = python("-c", HANGS, LD_LIBRARY_PATH=str(fake_nvml_folder), FAKE_NVML=f"{call}~60000")
    assert told.code == 0 and told.err == "", told.err
    assert float(told.out.split()[-1]) < 0.05 + SLOW_MACHINE_S
    assert time.monotonic() - began < 30


DOCTOR = """
import sys
import profiler.hardware.sampler as recorder
from profiler.cli import main
recorder.OPEN_DEADLINE_S = 0.5
sys.argv[1:] = ["doctor"]
main()
"""


@pytest.mark.slow
def test_doctor_says_that_a_driver_hangs(fake_nvml_folder: Path) -> None:
    hung = python("-c", DOCTOR, LD_LIBRARY_PATH=str(fake_nvml_folder), FAKE_NVML="nvmlInitWithFlags~60000", COLUMNS="200")
    assert "the driver does not answer within 0.5 s" in hung.out, hung.err
    well = python("-c", DOCTOR, LD_LIBRARY_PATH=str(fake_nvml_folder), FAKE_NVML="gpus=2", COLUMNS="200")
    assert re.search(r"probe nvml.* 6 facts, \d+ readings", well.out), well.out


FORKS = """
import os, sys, time
from profiler import Profiler
with Profiler("parent", interval=0.02) as prof:
    time.sleep(0.3)
    child = os.fork()
    if child == 0:
        assert list(prof.train([1, 2])) == [1, 2]  # passes through
        with Profiler("child", interval=0.02) as own:
            time.sleep(0.4)
        told = {reading["metric"] for reading in own.summary.to_dict()["readings"]}
        os._exit(0 if "hw.power" in told and "hw.gpu.memory.usage" in told else 3)
    assert os.waitpid(child, 0)[1] == 0
assert "hw.power" in {reading["metric"] for reading in prof.summary.to_dict()["readings"]}
"""

SPAWNS = """
import multiprocessing, time
from profiler import Profiler
def work():
    with Profiler("child", interval=0.02) as own:
        time.sleep(0.4)
    assert "hw.power" in {reading["metric"] for reading in own.summary.to_dict()["readings"]}
if __name__ == "__main__":
    with Profiler("parent", interval=0.02) as prof:
        time.sleep(0.3)
        child = multiprocessing.get_context("spawn").Process(target=work)
        child.start()
        child.join()
        assert child.exitcode == 0
"""


@pytest.mark.slow
@pytest.mark.parametrize("program", [FORKS, SPAWNS], ids=["fork", "spawn"])
def test_children_have_readings_of_their_own(fake_nvml_folder: Path, tmp_path: Path, program: str) -> None:
    (tmp_path / "program.py").write_text(program)
    told = python(str(tmp_path / "program.py"), LD_LIBRARY_PATH=str(fake_nvml_folder), FAKE_NVML="gpus=2")
    assert told.code == 0, told.err


@pytest.mark.slow
def test_no_uuid_is_kept_or_sent(fake_nvml_folder: Path, home: Path, sink: Sink) -> None:
    code = f"""
import time
from profiler import Profiler
with Profiler("run", exporter="otlp", settings={{"otlp_endpoint": {sink.url!r}}}, interval=0.05) as prof:
    for _ in prof.epochs(1):
        for _ in prof.train(range(3)):
            time.sleep(0.2)
"""
    told = python(
        *("-c", code),
        LD_LIBRARY_PATH=str(fake_nvml_folder),
        FAKE_NVML="gpus=2;mig@1=1,3;uuid@0=GPU-canary-7f3a",
        CUDA_VISIBLE_DEVICES="GPU-canary",
    )
    assert told.code == 0, told.err
    sent = b"".join(received.content for received in sink.received)
    kept = b"".join(path.read_bytes() for path in home.rglob("*") if path.is_file())
    for name in (b"hw.power", b"hw.status", b"epochmeter.gpu.energy.used", b"epochmeter.gpu.sm.utilization"):
        assert name in sent and name in kept, name
    assert b"canary" not in sent + kept and b"GPU-" not in sent + kept and b"MIG-" not in sent + kept
