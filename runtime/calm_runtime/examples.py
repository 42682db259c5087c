"""The example photos: inside the package when installed, in the repository's folder otherwise."""

from __future__ import annotations

from pathlib import Path

_HERE = Path(__file__).resolve()
_FOLDERS = (_HERE.parent / "examples", _HERE.parents[2] / "examples")


def example_photo(name: str) -> Path | None:
    """Path of an example photo by file name, or None."""
    for folder in _FOLDERS:
        path = folder / Path(name).name
        if path.is_file():
            return path
    return None
