"""The software the run uses: versions of Python, torch and CUDA, the kind of system, the kind of place.

The rule it keeps: versions are cut to two numbers, and builds from source are "dev". Of an environment variable only its
existence is read, never its value.
"""

from __future__ import annotations

import platform
import re
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from profiler.config.environment import CI_VARIABLES, is_on, names_set
from profiler.records.readings import Fact

TYPE_CHECKING = False
if TYPE_CHECKING:
    from profiler.records.readings import MetricSpec, Reading


OS_FAMILIES = {"linux": "linux", "darwin": "darwin", "win32": "windows"}  # OpenTelemetry's os.type
PLACES = {
    "ci": CI_VARIABLES,
    "colab": ("COLAB_RELEASE_TAG", "COLAB_BACKEND_VERSION"),
    "kaggle": ("KAGGLE_KERNEL_RUN_TYPE", "KAGGLE_URL_BASE"),
    "cloud_job": ("SM_TRAINING_ENV", "TRAINING_JOB_NAME", "AZUREML_RUN_ID", "CLOUD_ML_JOB_ID", "AIP_TRAINING_DATA_URI"),
}
CONTAINER_MARKS = ("/.dockerenv", "/run/.containerenv")
CONTAINER_VARIABLES = ("KUBERNETES_SERVICE_HOST", "container")


class RuntimeProbe:
    """Facts alone, because nothing here changes from second to second."""

    name = "runtime"
    specs: tuple[MetricSpec, ...] = ()

    def start(self) -> None:
        """Do nothing: there is nothing to find."""

    def facts(self) -> Sequence[Fact]:
        return (
            Fact("runtime", "python", lambda: f"{sys.version_info.major}.{sys.version_info.minor}"),
            Fact("runtime", "implementation", lambda: platform.python_implementation().lower()),
            Fact("runtime", "os", lambda: OS_FAMILIES.get(sys.platform, "other")),
            Fact("runtime", "torch", _torch_version, late=True),
            Fact("runtime", "cuda", _cuda_version, late=True),
            Fact("runtime", "container", lambda: _is_container() or None),
            Fact("runtime", "notebook", lambda: _is_notebook() or None),
            *(Fact("runtime", place, partial(_any_set, names)) for place, names in PLACES.items()),
        )

    def close(self) -> None:
        """Do nothing: the probe holds nothing."""

    def readings(self) -> Sequence[Reading]:
        return ()


def short_version(text: str | None) -> str | None:
    """Return ``2.13.0+cpu`` as ``2.13``, and a build from source as ``dev``."""
    if not text:
        return None
    if re.search(r"dev|\+git|a\d+\+|nightly", text):
        return "dev"
    match = re.match(r"(\d+)\.(\d+)", text)
    return f"{match[1]}.{match[2]}" if match else "other"


def _any_set(names: Sequence[str]) -> bool | None:
    return any(map(is_on, names)) or None


def _torch_version() -> str | None:
    return short_version(getattr(sys.modules.get("torch"), "__version__", None))


def _cuda_version() -> str | None:
    return short_version(getattr(getattr(sys.modules.get("torch"), "version", None), "cuda", None))


def _is_container() -> bool:
    return any(Path(mark).exists() for mark in CONTAINER_MARKS) or bool(names_set(CONTAINER_VARIABLES))


def _is_notebook() -> bool:
    return "ipykernel" in sys.modules
