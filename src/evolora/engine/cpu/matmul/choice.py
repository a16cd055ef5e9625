"""Who multiplies: torch's own library, or the compiled products."""

import platform
import re
from pathlib import Path
from typing import Literal

import llvmlite.binding as llvm

Products = Literal["torch", "compiled"]


def fastest_products() -> Products:
    """What multiplies float32 matrices faster here: torch's own library (MKL, on most builds) or `matmul.panels`.

    On x86 processors that are not Intel's MKL leaves AVX-512 unused, and no library keeps a frozen weight arranged. The
    processor's maker decides and no measurement: beside other work a measurement may say one thing now and the other
    later, and two runs of one seed would round differently.
    """
    foreign = _processor_maker() not in ("GenuineIntel", "")
    return "compiled" if foreign and llvm.get_host_cpu_features().get("fma", False) else "torch"


def _processor_maker() -> str:
    """As an x86 processor itself says it: GenuineIntel, AuthenticAMD, HygonGenuine. Empty where it is not told."""
    try:
        found = re.search(r"^vendor_id\s*:\s*(\S+)", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:  # not Linux: Windows ends the processor's name with it, macOS has x86 processors of Intel's alone
        found = re.search(r"(GenuineIntel|AuthenticAMD|HygonGenuine)", platform.processor())
    return found[1] if found else ""
