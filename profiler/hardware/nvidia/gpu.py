"""One NVIDIA card, as far as the run may use it."""

from __future__ import annotations

from typing import Any

from profiler.hardware.gpu import FIRST_BACKOFF_S


class Gpu:
    """One card, or the run's MIG instance on it.

    Attributes:
        index: NVML's number of the card.
        handle: the card's handle; None while the run may not use it.
        instance: the handle of the MIG instance, or None. Memory and multiprocessors are the instance's; power, heat and
            clocks are the card's.
        instance_id: the number of the MIG instance.
        cuda_index: CUDA's number of the device.
        chosen: the handle of the MIG instance to take, also while the card is lost.
        remap_trouble: True if rows of memory wait to be replaced, or could not be; None if unknown.
        has_fields: the numbers of the field values that were answered.
        lost_until: the end of the back-off of a lost card (s), or None.
        backoff_s: the length of the next back-off.
    """

    def __init__(self, index: int) -> None:
        self.index = index
        self.handle: Any = None
        self.instance: Any = None
        self.instance_id: int | None = None
        self.cuda_index: int | None = None
        self.chosen: Any = None
        self.remap_trouble: bool | None = None
        self.has_fields: set[int] = set()
        self.lost_until: float | None = None
        self.backoff_s = FIRST_BACKOFF_S
        self.card: dict[str, str] = {"hw.id": f"gpu-{index}"}
        self.typed = {**self.card, "hw.type": "gpu"}
        self.own: dict[str, str] = dict(self.card)  # attributes of readings that belong to the instance, if there is one
        self.general = {**self.card, "hw.gpu.task": "general"}
        self.states = {state: {**self.typed, "hw.state": state} for state in ("ok", "degraded", "failed", "predicted_failure")}

    @property
    def is_ours(self) -> bool:
        """True if the run may use it, lost or not."""
        return self.handle is not None or self.lost_until is not None

    @property
    def is_asked(self) -> bool:
        """True if it can be asked now."""
        return self.handle is not None and self.lost_until is None

    def take(self, handle: Any, instance: Any, instance_id: int | None) -> None:
        """Use this handle, and this MIG instance if it is not None."""
        self.handle, self.instance, self.instance_id = handle, instance, instance_id
        self.own["hw.id"] = self.card["hw.id"] if instance_id is None else f"{self.card['hw.id']}/mig-{instance_id}"

    def sensor(self, part: str, location: str) -> dict[str, str]:
        """Return the attributes of one sensor on the card."""
        return {"hw.id": f"gpu-{self.index}-{part}", "hw.parent": f"gpu-{self.index}", "hw.sensor_location": location}
