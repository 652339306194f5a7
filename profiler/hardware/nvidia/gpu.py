"""Part of `profiler.hardware.nvidia.probe`."""

from __future__ import annotations

from typing import Any

from profiler.hardware.gpu import FIRST_BACKOFF_S


class Gpu:
    """One card, or the MIG instance on it that the run has.

    ``handle`` is the card's, None while the run may not use it; ``instance`` the MIG instance's, which knows its memory
    and its multiprocessors, while power, heat and clocks are the card's.
    """

    def __init__(self, index: int) -> None:
        self.index = index
        self.handle: Any = None
        self.instance: Any = None
        self.instance_id: int | None = None
        self.cuda_index: int | None = None
        self.chosen: Any = None  # the handle of the MIG instance that it is to be taken with
        self.remap_trouble: bool | None = None
        self.has_fields: set[int] = set()  # those that were answered
        self.lost_until: float | None = None
        self.backoff_s = FIRST_BACKOFF_S
        self.card: dict[str, str] = {"hw.id": f"gpu-{index}"}
        self.typed = {**self.card, "hw.type": "gpu"}
        self.own: dict[str, str] = dict(self.card)  # what is of the instance, where there is one
        self.general = {**self.card, "hw.gpu.task": "general"}
        self.states = {state: {**self.typed, "hw.state": state} for state in ("ok", "degraded", "failed", "predicted_failure")}

    @property
    def is_ours(self) -> bool:
        """Whether the run may use it, lost or not."""
        return self.handle is not None or self.lost_until is not None

    @property
    def is_asked(self) -> bool:
        return self.handle is not None and self.lost_until is None

    def take(self, handle: Any, instance: Any, instance_id: int | None) -> None:
        self.handle, self.instance, self.instance_id = handle, instance, instance_id
        self.own["hw.id"] = self.card["hw.id"] if instance_id is None else f"{self.card['hw.id']}/mig-{instance_id}"

    def sensor(self, part: str, location: str) -> dict[str, str]:
        return {"hw.id": f"gpu-{self.index}-{part}", "hw.parent": f"gpu-{self.index}", "hw.sensor_location": location}
