"""GPUs that are not NVIDIA's: AMD's through recordings of amdsmi, Apple's through torch's MPS backend."""

from __future__ import annotations

import json
import sys
import types
from enum import Enum
from pathlib import Path
from typing import Any

import pytest

from profiler.errors import ProbeUnavailableError
from profiler.hardware import load_probe
from profiler.hardware.amd import AmdLibrary, AmdProbe
from profiler.hardware.apple import AppleProbe
from profiler.hardware.sampler import Sampler
from profiler.records.readings import EnergySource
from support.processes import wait_for

RECORDING = Path(__file__).parents[1] / "recordings" / "amd-two-cards.json"


class AmdSmiException(Exception):
    def __init__(self, err_code: int) -> None:
        super().__init__(f"Error code: {err_code}")
        self.err_code = err_code


class Sensor(Enum):
    HOTSPOT = 1
    EDGE = 0


class RecordedAmd:
    """The part of ``amdsmi`` that the probe uses, over a recording."""

    AmdSmiException: type[Exception] = AmdSmiException
    AmdSmiInitFlags = types.SimpleNamespace(INIT_AMD_GPUS=2)
    AmdSmiMemoryType = types.SimpleNamespace(VRAM=0)
    AmdSmiTemperatureType = Sensor
    AmdSmiTemperatureMetric = types.SimpleNamespace(CURRENT=0)

    def __init__(self, error: int | None = None) -> None:
        self.gpus: list[dict[str, Any]] = json.loads(RECORDING.read_text("utf-8"))["gpus"]
        self.error = error

    def amdsmi_init(self, flag: Any, /) -> None:
        if self.error is not None:
            raise AmdSmiException(self.error)

    def amdsmi_get_processor_handles(self) -> list[dict[str, Any]]:
        return self.gpus

    def amdsmi_get_gpu_activity(self, handle: Any, /) -> Any:
        return told(handle, "amdsmi_get_gpu_activity")

    def amdsmi_get_gpu_memory_total(self, handle: Any, kind: Any, /) -> Any:
        return told(handle, "amdsmi_get_gpu_memory_total")

    def amdsmi_get_gpu_memory_usage(self, handle: Any, kind: Any, /) -> Any:
        return told(handle, "amdsmi_get_gpu_memory_usage")

    def amdsmi_get_power_info(self, handle: Any, /) -> Any:
        return told(handle, "amdsmi_get_power_info")

    def amdsmi_get_temp_metric(self, handle: Any, sensor: Any, metric: Any, /) -> Any:
        return told(handle, f"amdsmi_get_temp_metric:{sensor.name}")

    def amdsmi_get_energy_count(self, handle: Any, /) -> Any:
        return told(handle, "amdsmi_get_energy_count")


def told(handle: dict[str, Any], call: str) -> Any:
    answer = handle[call]
    if isinstance(answer, dict) and "error" in answer:
        raise AmdSmiException(answer["error"])
    return answer


def _is_library(recorded: RecordedAmd) -> AmdLibrary:
    return recorded


def sampled(probe: Any, ticks: int = 2) -> tuple[Sampler, dict[tuple[str, str], Any]]:
    recorder = Sampler(1.0, probes=(probe.name,), load=lambda name: probe)
    recorder.open(probe.name)
    for _ in range(ticks):
        recorder.tick()
    return recorder, {(name, dict(at)["hw.id"]): record.last for (name, at), record in recorder.take().items()}


@pytest.fixture(autouse=True)
def all_visible(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)


def test_amd_cards_of_two_versions() -> None:
    recorder, found = sampled(AmdProbe(RecordedAmd))
    assert found == {
        ("hw.gpu.utilization", "gpu-0"): 0.87,
        ("hw.gpu.memory.usage", "gpu-0"): 41_943_040_000,
        ("hw.gpu.memory.limit", "gpu-0"): 206_141_652_992,
        ("hw.power", "gpu-0"): 540,
        ("hw.temperature", "gpu-0-die"): 61,
        ("hw.energy", "gpu-0"): 0,  # it did not move between the two readings
        ("hw.gpu.memory.usage", "gpu-1"): 0,
        ("hw.gpu.memory.limit", "gpu-1"): 17_163_091_968,
        ("hw.power", "gpu-1"): 31,
        ("hw.temperature", "gpu-1-die"): 38.0,
    }
    assert recorder.notes == {}
    assert recorder.hardware().gpus == {0: {"memory_class_gb": 192}, 1: {"memory_class_gb": 16}}


def test_amds_energy_is_joules() -> None:
    probe = AmdProbe(RecordedAmd)
    probe.start()
    assert isinstance(probe, EnergySource)
    assert probe.energy() == {"gpu-0": pytest.approx(1_200_000_000 * 15.259e-6)}


@pytest.mark.parametrize(
    ("variables", "device", "gpus"),
    [
        ({"HIP_VISIBLE_DEVICES": "1"}, None, {"gpu-1"}),
        ({"ROCR_VISIBLE_DEVICES": "0"}, None, {"gpu-0"}),
        ({"HIP_VISIBLE_DEVICES": "1", "CUDA_VISIBLE_DEVICES": "0"}, None, {"gpu-1"}),
        ({"HIP_VISIBLE_DEVICES": "1,0"}, "cuda:1", {"gpu-0"}),
        ({"HIP_VISIBLE_DEVICES": "1,7,0"}, None, {"gpu-1"}),
        ({"HIP_VISIBLE_DEVICES": ""}, None, set()),
        ({"HIP_VISIBLE_DEVICES": "GPU-abc"}, None, set()),
    ],
)
def test_amd_cards_that_are_visible(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], device: str | None, gpus: set[str]
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    recorder, found = sampled(AmdProbe(RecordedAmd, device=device))
    assert {gpu for name, gpu in found if name == "hw.power"} == gpus
    assert bool(recorder.missing) is not bool(gpus)


def broken() -> Any:
    raise OSError("libamd_smi.so: cannot open shared object file")


@pytest.mark.parametrize(
    ("load", "says"), [(broken, "does not start: OSError"), (lambda: RecordedAmd(error=34), "does not start: AmdSmiException")]
)
def test_why_there_is_no_amd_card(load: Any, says: str) -> None:
    with pytest.raises(ProbeUnavailableError, match=says):
        AmdProbe(load).start()


def test_without_rocm_it_is_said() -> None:
    with pytest.raises(ProbeUnavailableError, match="amdsmi"):
        load_probe("amd").start()


def on_a_mac(monkeypatch: pytest.MonkeyPatch, *, available: bool, **calls: int) -> None:
    fake = types.ModuleType("torch")
    fake.backends = types.SimpleNamespace(mps=types.SimpleNamespace(is_available=lambda: available))  # type: ignore[attr-defined]
    fake.mps = types.SimpleNamespace(**{name: (lambda value=value: value) for name, value in calls.items()})  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch", fake)
    monkeypatch.setattr(sys, "platform", "darwin")


def test_apples_gpu_tells_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    on_a_mac(monkeypatch, available=True, driver_allocated_memory=3 * 2**30, recommended_max_memory=24 * 2**30)
    recorder, found = sampled(AppleProbe())
    assert found == {("hw.gpu.memory.usage", "gpu-0"): 3 * 2**30, ("hw.gpu.memory.limit", "gpu-0"): 24 * 2**30}
    assert recorder.notes == {}


def test_apple_gpu_with_older_torch_or_unused(monkeypatch: pytest.MonkeyPatch) -> None:
    on_a_mac(monkeypatch, available=True, driver_allocated_memory=0)
    assert sampled(AppleProbe())[1] == {("hw.gpu.memory.usage", "gpu-0"): 0}
    on_a_mac(monkeypatch, available=False)
    assert sampled(AppleProbe())[1] == {}
    monkeypatch.delitem(sys.modules, "torch")
    assert sampled(AppleProbe())[1] == {}
    assert "cpu" in sampled(AppleProbe(device="cpu"))[0].missing["apple"]


def test_one_vendor_is_asked() -> None:
    class Silent:
        specs = ()

        def __init__(self, name: str) -> None:
            self.name = name

        def start(self) -> None:
            started.append(self.name)
            if self.name == "nvml":
                raise ProbeUnavailableError("none")

        def facts(self) -> Any:
            return ()

        def readings(self) -> Any:
            return ()

        def close(self) -> None:
            closed.append(self.name)

    started: list[str] = []
    closed: list[str] = []
    recorder = Sampler(0.01, probes=("nvml", "amd", "apple"), load=Silent)
    recorder.start()
    wait_for(lambda: len(started) == 2)
    recorder.stop(5)
    wait_for(lambda: closed)
    assert (started, closed) == (["nvml", "amd"], ["amd"])
