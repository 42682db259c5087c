"""What this machine has: engine libraries installed, and a GPU that answers. Nothing heavy is imported."""

from __future__ import annotations

import importlib.util
from importlib import metadata

from calm_runtime.session import Hardware, Library


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
    from calm_runtime.cuda_driver import compute_capability

    return Hardware(compute_capability())


def _distribution(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True
