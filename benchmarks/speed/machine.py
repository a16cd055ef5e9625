"""What a measurement ran on."""

import os
import platform
from pathlib import Path
from typing import Any

import torch

from evolora.engine.calibration import available_cores


def describe() -> dict[str, Any]:
    """The processor, the versions, torch's threads and the load average at this moment."""
    return {
        "cpu": cpu_model(),
        "generation": cpu_generation(),
        "cores": available_cores(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "load_average": [round(load, 2) for load in os.getloadavg()],
    }


def cpu_model() -> str:
    """The processor's name."""
    return _told_by_linux("model name") or platform.processor() or platform.machine()


def cpu_generation() -> str:
    """Its family and model, where Linux tells them: servers hide their names."""
    return f"family {_told_by_linux('cpu family') or '?'} model {_told_by_linux('model') or '?'}"


def processor() -> str:
    """What runs at equal seconds are known by: those of another generation, though it has the same name, are not
    compared with them."""
    return f"{cpu_model()}, {cpu_generation()}"


def _told_by_linux(name: str) -> str | None:
    info = Path("/proc/cpuinfo")
    for line in info.read_text().splitlines() if info.exists() else []:
        told, _, value = line.partition(":")
        if told.strip() == name:
            return value.strip()
    return None
