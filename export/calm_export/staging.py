"""All or nothing: a bundle is made beside its place and takes it in one step."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from calm_runtime.bundle import MANIFEST
from calm_runtime.errors import CalmError, ExportError


def check_output(output: Path, overwrite: bool, marker: str = MANIFEST) -> None:
    """Raise ExportError unless a bundle may be written there. What is not a bundle is never replaced.

    marker: the file that tells a bundle; a pack has one of its own.
    """
    if not output.exists():
        return
    if not overwrite:
        raise ExportError(f"{output} exists; give --overwrite to replace it")
    if not output.is_dir() or (any(output.iterdir()) and not (output / marker).is_file()):
        what = "bundle" if marker == MANIFEST else "pack"
        raise ExportError(f"{output} is not a {what}; give another place, or remove it yourself")


@contextmanager
def staged(output: Path, overwrite: bool, marker: str = MANIFEST) -> Iterator[Path]:
    """A folder beside `output` that takes its place on success and vanishes on failure."""
    output.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{output.name}.", dir=output.parent))
    try:
        yield staging
        for path in (staging, *staging.rglob("*")):  # some writers keep their files to themselves
            path.chmod(0o755 if path.is_dir() else 0o644)
        if output.exists():
            check_output(output, overwrite, marker)  # it may have appeared meanwhile
            old = Path(tempfile.mkdtemp(prefix=f".{output.name}.", dir=output.parent))
            os.replace(output, old)
            try:
                os.replace(staging, output)
            except OSError:
                os.replace(old, output)
                raise
            shutil.rmtree(old)
        else:
            os.replace(staging, output)
    except CalmError:
        raise
    except OSError as error:
        raise ExportError(f"{output} cannot be written: {error}") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
