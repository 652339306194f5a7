"""Records what this machine's NVIDIA GPUs answer, for tests to replay: ``make record-nvml``.

Only the calls written here are made: no UUID, serial number, PCI address or process is asked for, so none can be written.
The file is read by `profiler.testing.FakeNvml.recorded`.
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pynvml

from profiler.hardware.nvidia.fields import QUICK, SLOW
from profiler.hardware.nvidia.gpm import Gpm

FOLDER = Path(__file__).parents[1] / "recordings"
TICKS, APART_S = 5, 1.0
UNSUPPORTED = 3


def told(read: Callable[[], Any]) -> Any:
    try:
        return read()
    except pynvml.NVMLError as error:
        return {"error": error.value}


def calls(handle: Any) -> dict[str, Callable[[], Any]]:
    def memory() -> dict[str, int]:
        info = pynvml.nvmlDeviceGetMemoryInfo(handle, version=pynvml.nvmlMemory_v2)
        return {"total": info.total, "reserved": info.reserved, "used": info.used}

    def rates() -> dict[str, int]:
        found = pynvml.nvmlDeviceGetUtilizationRates(handle)
        return {"gpu": found.gpu, "memory": found.memory}

    def temperature() -> int:
        newer = getattr(pynvml, "nvmlDeviceGetTemperatureV", None)
        return newer(handle, 0) if newer else pynvml.nvmlDeviceGetTemperature(handle, 0)

    return {
        "nvmlDeviceGetUtilizationRates": rates,
        "nvmlDeviceGetMemoryInfo": memory,
        "nvmlDeviceGetPowerUsage": lambda: pynvml.nvmlDeviceGetPowerUsage(handle),
        "nvmlDeviceGetTotalEnergyConsumption": lambda: pynvml.nvmlDeviceGetTotalEnergyConsumption(handle),
        "nvmlDeviceGetTemperature": temperature,
        "nvmlDeviceGetClockInfo:1": lambda: pynvml.nvmlDeviceGetClockInfo(handle, 1),
        "nvmlDeviceGetClockInfo:2": lambda: pynvml.nvmlDeviceGetClockInfo(handle, 2),
        "nvmlDeviceGetCurrentClocksEventReasons": lambda: pynvml.nvmlDeviceGetCurrentClocksEventReasons(handle),
    }


def fields(handle: Any) -> dict[str, Any]:
    asked = [(field.id, field.scope) for field in (*QUICK, *SLOW)]
    found = told(lambda: pynvml.nvmlDeviceGetFieldValues(handle, asked))
    if isinstance(found, dict):
        return {f"field:{number}": found for number, _ in asked}
    names = ("dVal", "uiVal", "ulVal", "ullVal", "sllVal", "siVal", "usVal")
    return {
        f"field:{answer.fieldId}": {"error": answer.nvmlReturn}
        if answer.nvmlReturn
        else getattr(answer.value, names[answer.valueType])
        for answer in found
    }


class Sampled:
    """GPM, and the driver's own samples, since the tick before."""

    def __init__(self, handle: Any) -> None:
        self.handle = handle
        self.since = {0: 0, 1: 0}
        self.gpm: list[Any] = []
        support = told(lambda: pynvml.nvmlGpmQueryDeviceSupport(handle))
        if not isinstance(support, dict) and support.isSupportedDevice:
            self.gpm = [pynvml.nvmlGpmSampleAlloc(), pynvml.nvmlGpmSampleAlloc()]
            pynvml.nvmlGpmSampleGet(handle, self.gpm[0])

    def take(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for kind in self.since:
            answer = told(lambda kind=kind: pynvml.nvmlDeviceGetSamples(self.handle, kind, self.since[kind]))
            if isinstance(answer, dict):
                found[f"samples:{kind}"] = answer
                continue
            self.since[kind] = max(sample.timeStamp for sample in answer[1])
            found[f"samples:{kind}"] = [sample.sampleValue.uiVal for sample in answer[1]]
        if self.gpm:
            found.update(self._metrics())
        return found

    def _metrics(self) -> dict[str, Any]:
        pynvml.nvmlGpmSampleGet(self.handle, self.gpm[1])
        query = pynvml.c_nvmlGpmMetricsGet_t()
        query.version, query.numMetrics = pynvml.NVML_GPM_METRICS_GET_VERSION, len(Gpm.METRICS)
        query.sample1, query.sample2 = self.gpm
        for position, metric in enumerate(Gpm.METRICS):
            query.metrics[position].metricId = metric[0]
        pynvml.nvmlGpmMetricsGet(query)
        self.gpm.reverse()
        return {
            f"gpm:{metric[0]}": {"error": answer.nvmlReturn} if answer.nvmlReturn else answer.value
            for metric, answer in zip(Gpm.METRICS, query.metrics, strict=False)
        }


def record() -> dict[str, Any]:
    """Every GPU's answers over some seconds."""
    pynvml.nvmlInit()
    handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
    sampled = [Sampled(handle) for handle in handles]
    gpus: list[dict[str, Any]] = [
        {
            "nvmlDeviceGetName": told(lambda handle=handle: pynvml.nvmlDeviceGetName(handle)),
            "nvmlDeviceGetMigMode": [told(lambda handle=handle: list(pynvml.nvmlDeviceGetMigMode(handle)))],
            "nvmlDeviceGetEnforcedPowerLimit": told(lambda handle=handle: pynvml.nvmlDeviceGetEnforcedPowerLimit(handle)),
        }
        for handle in handles
    ]
    for _ in range(TICKS):
        time.sleep(APART_S)
        for gpu, handle, buffers in zip(gpus, handles, sampled, strict=True):
            answers = {name: told(read) for name, read in calls(handle).items()}
            for name, answer in {**answers, **fields(handle), **buffers.take()}.items():
                gpu.setdefault(name, []).append(answer)
    driver = str(pynvml.nvmlSystemGetDriverVersion()).split(".")[0]
    return {"source": f"make record-nvml, driver {driver}", "gpus": gpus}


def as_text(recording: dict[str, Any]) -> str:
    """One line for each call."""
    gpus = ",\n ".join(
        "{" + ",\n  ".join(f"{json.dumps(name)}: {json.dumps(answers)}" for name, answers in gpu.items()) + "}"
        for gpu in recording["gpus"]
    )
    return f'{{"source": {json.dumps(recording["source"])},\n"gpus": [\n {gpus}\n]}}\n'


def main() -> None:
    recording = record()
    if not recording["gpus"]:
        raise SystemExit("no NVIDIA GPU is visible: there is nothing to record")
    model = re.sub(r"[^a-z0-9]+", "-", str(recording["gpus"][0]["nvmlDeviceGetName"]).lower().removeprefix("nvidia ")).strip(
        "-"
    )
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER / f"nvidia-{model}.json"
    path.write_text(as_text(recording), "utf-8")
    sys.stdout.write(f"{path}: {len(recording['gpus'])} GPU(s), {TICKS} ticks\n")


if __name__ == "__main__":
    try:
        main()
    except pynvml.NVMLError as error:
        raise SystemExit(f"NVML does not start: {error}. A recording needs a machine with an NVIDIA GPU.") from None
