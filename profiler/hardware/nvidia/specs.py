"""The metrics that only NVIDIA cards have. GPM is on Hopper and newer."""

from __future__ import annotations

from profiler.hardware.gpu import ENERGY, MEMORY_LIMIT, MEMORY_USAGE, POWER, TEMPERATURE, UTILIZATION
from profiler.records.readings import MetricSpec

CONTROLLER = MetricSpec(
    "epochmeter.gpu.memory.controller.utilization", "1", "gauge", "Share of time in which GPU memory was read or written."
)
MEMORY_RESERVED = MetricSpec("epochmeter.gpu.memory.reserved", "By", "updowncounter", "GPU memory that the driver keeps.")
POWER_INSTANT = MetricSpec(
    "epochmeter.gpu.power.instant", "W", "gauge", "Power draw at the moment, where it can be told apart."
)
POWER_SAMPLES = MetricSpec(
    "epochmeter.gpu.power.samples", "W", "histogram", "Power draw as the driver samples it, within seconds."
)
UTILIZATION_SAMPLES = MetricSpec(
    "epochmeter.gpu.utilization.samples", "1", "histogram", "Utilization as the driver samples it, within seconds."
)
CLOCK = MetricSpec("epochmeter.gpu.clock.frequency", "Hz", "gauge", "Clock of the multiprocessors, and of the memory.")
THROTTLED = MetricSpec("epochmeter.gpu.throttled_time", "s", "counter", "Time in which the clocks were held down, by reason.")
STATUS = MetricSpec(
    "hw.status", "1", "updowncounter", "1 for the state that the GPU is in; degraded: slowed by heat or a brake."
)
ERRORS = MetricSpec("hw.errors", "{error}", "counter", "ECC errors since the driver was loaded.")
REMAPPED = MetricSpec("epochmeter.gpu.memory.remapped_rows", "{row}", "updowncounter", "Rows of GPU memory that were replaced.")
IO = MetricSpec("hw.gpu.io", "By", "counter", "Bytes over PCIe.")
NVLINK_IO = MetricSpec("epochmeter.gpu.nvlink.io", "By", "counter", "Bytes over NVLink, all links together.")
SM_ACTIVITY = MetricSpec("epochmeter.gpu.sm.utilization", "1", "gauge", "Share of multiprocessors that were busy.")
SM_OCCUPANCY = MetricSpec("epochmeter.gpu.sm.occupancy", "1", "gauge", "Active warps, of those that there could be.")
TENSOR = MetricSpec("epochmeter.gpu.tensor.utilization", "1", "gauge", "Share of time in which tensor cores worked.")
DRAM = MetricSpec("epochmeter.gpu.dram.utilization", "1", "gauge", "GPU memory bandwidth in use, of what there is.")
PCIE_RATE = MetricSpec("epochmeter.gpu.pcie.throughput", "By/s", "gauge", "Bytes a second over PCIe.")
NVLINK_RATE = MetricSpec("epochmeter.gpu.nvlink.throughput", "By/s", "gauge", "Bytes a second over NVLink.")
GPM = (SM_ACTIVITY, SM_OCCUPANCY, TENSOR, DRAM, PCIE_RATE, NVLINK_RATE)
SPECS = (
    *(UTILIZATION, CONTROLLER, MEMORY_USAGE, MEMORY_LIMIT, MEMORY_RESERVED, POWER, POWER_INSTANT, POWER_SAMPLES),
    *(UTILIZATION_SAMPLES, TEMPERATURE, ENERGY, CLOCK, THROTTLED, STATUS, ERRORS, REMAPPED, IO, NVLINK_IO, *GPM),
)
