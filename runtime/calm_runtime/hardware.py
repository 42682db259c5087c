"""What this machine has: engine libraries installed, and a GPU that answers. Nothing heavy is imported."""

from __future__ import annotations

import ctypes
import importlib.util
import sys
from importlib import metadata

from calm_runtime.session import Hardware, Library

_DRIVER = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
_CAPABILITY_MAJOR, _CAPABILITY_MINOR = 75, 76  # CUdevice_attribute


def installed_libraries() -> frozenset[Library]:
    """The engine libraries that can be imported. onnxruntime and onnxruntime-gpu share one import name."""
    found: set[Library] = set()
    if importlib.util.find_spec("onnxruntime"):
        found.add("onnxruntime-gpu" if _distribution("onnxruntime-gpu") else "onnxruntime")
    if importlib.util.find_spec("tensorrt"):
        found.add("tensorrt")
    if importlib.util.find_spec("tensorrt_rtx"):
        found.add("tensorrt_rtx")
    return frozenset(found)


def probe_hardware() -> Hardware:
    """Ask the NVIDIA driver for the first GPU's compute capability; no driver or no GPU is a plain answer."""
    try:
        driver = ctypes.CDLL(_DRIVER)
    except OSError:
        return Hardware()
    device = ctypes.c_int()
    if driver.cuInit(0) != 0 or driver.cuDeviceGet(ctypes.byref(device), 0) != 0:
        return Hardware()
    major, minor = ctypes.c_int(), ctypes.c_int()
    for value, attribute in ((major, _CAPABILITY_MAJOR), (minor, _CAPABILITY_MINOR)):
        if driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, device) != 0:
            return Hardware()
    return Hardware(f"{major.value}.{minor.value}")


def _distribution(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True
