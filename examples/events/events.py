"""The events of a vision package that counted by itself, moved to Epochmeter.

Before, each call of train, val, predict, track, export or benchmark queued an event with these fields, and posted all of them
in one request to Google Analytics:

    mode, task, model ("custom" unless it was one of the package's own), device, version, python, install, cli, env, CPU, and
    a session id made at random; in earlier versions also names of data sets, and a hash of the machine.

Now they are these declarations. The names of data sets and of model files, and anything that is made of hardware, have no word
here, so they cannot be sent.
"""

from __future__ import annotations

from typing import Any

from profiler import Telemetry

MODES = ("train", "val", "predict", "track", "export", "benchmark")
TASKS = ("detect", "segment", "classify", "pose", "obb")
SIZES = ("n", "s", "m", "l", "x", "custom")  # of the package's own models; a model file's name is never told
DEVICES = ("cpu", "cuda", "mps", "multi")

telemetry = Telemetry(
    "vision",
    "1.0.0",
    commands=MODES,  # the event's name: its mode
    features=("cli", "python"),  # whether it was called from a command line
    facts={"mode": MODES, "task": TASKS, "size": SIZES, "device": DEVICES, "batch": (1, 2, 4, 8, 16, 32, 64, 128), "amp": bool},
    exporter="otlp",
    settings={"otlp_endpoint": "http://localhost:4318"},  # the address of the package's own collector
)  # version, Python, installer, container or notebook: facts that every package tells (docs/privacy.md)


class Events:
    """Called like the old one: ``with events(cfg, device="cuda"):`` around each run."""

    def __call__(self, cfg: Any, device: str = "cpu", *, is_cli: bool = False) -> Any:
        """Count one run of the package, and return it, so that its end can be told."""
        telemetry.command(cfg.mode)
        telemetry.feature("cli" if is_cli else "python")
        stem = str(cfg.model).rpartition("/")[2].removesuffix(".pt").removesuffix(".yaml")
        size = stem[6:] if stem.startswith("yolo11") and stem[6:] in SIZES else "custom"
        known = {"mode": cfg.mode, "task": cfg.task, "size": size, "device": "multi" if "," in device else device.split(":")[0]}
        return telemetry.run(**known, batch=cfg.batch, amp=cfg.amp)


events = Events()
