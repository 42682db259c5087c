"""The header of an engine file: which library, of which version, wrote it. Read before anything is loaded.

Both libraries put a tag into bytes 0 to 3 and their version, one byte per part, into bytes 24 to 27.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from calm_runtime.errors import EngineError, EngineVersionMismatch
from calm_runtime.session import Library

_TAGS: dict[bytes, Library] = {b"vtrt": "tensorrt_rtx", b"ftrt": "tensorrt"}
_VERSION = slice(24, 28)
_DECIDING = 3  # major, minor, patch: the fourth part counts builds of the same release


class EngineHeader(NamedTuple):
    """library: import name of what wrote it. version: four parts, each modulo 256."""

    library: Library
    version: tuple[int, ...]


def read_header(path: Path) -> EngineHeader:
    """Raises EngineError when the file cannot be read or is not an engine."""
    try:
        with path.open("rb") as handle:
            head = handle.read(_VERSION.stop)
    except OSError as error:
        raise EngineError(f"{path}: cannot be read ({error}); restore the bundle or export it again") from error
    library = _TAGS.get(head[:4])
    if library is None or len(head) < _VERSION.stop:
        raise EngineError(f"{path}: not a TensorRT or TensorRT-RTX engine; restore the bundle or export it again")
    return EngineHeader(library, tuple(head[_VERSION]))


def check_engine_file(path: Path, library: str, version: str) -> None:
    """Refuse an engine that the installed library cannot load, before it is asked to.

    version: the installed library's, such as "10.13.3.9". Raises EngineVersionMismatch naming both, or EngineError.
    """
    header = read_header(path)
    installed = tuple(int(part) % 256 for part in re.findall(r"\d+", version)[: len(header.version)])
    same = header.version[:_DECIDING] == installed[:_DECIDING]
    if header.library != library or not same:
        built = ".".join(str(part) for part in header.version)
        raise EngineVersionMismatch(
            f"{path}: built by {header.library} {built}, installed is {library} {version}; "
            "export the bundle again with the installed version, install the other one, or use --engine onnx"
        )
