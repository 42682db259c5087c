"""`calm triton serve`: a tritonserver process over a model repository, on this machine's own address.

The binary is the official one found on PATH (the container), else the development server inside the wheel
nvidia-pytriton. The latter comes without an ONNX Runtime backend and needs to be told where Python lives.
"""

from __future__ import annotations

import ctypes.util
import importlib.util
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Self

from calm_runtime.errors import EngineError, EngineMissing, UsageError
from calm_runtime.triton_repository import read_info, sources

_CONTAINER_BINARY = "/opt/tritonserver/bin/tritonserver"
_STOP_SECONDS = 15.0
_CACHE_BYTES = 64 * 1024 * 1024
# Large tensors are reused instead of being given back to the system after each request: halves the overhead.
_MALLOC = {"MALLOC_MMAP_THRESHOLD_": "33554432", "MALLOC_TRIM_THRESHOLD_": "1073741824"}


@dataclass(frozen=True)
class Installation:
    """A tritonserver binary. root: the wheel's folder with stubs and caches; None for an official installation."""

    binary: Path
    root: Path | None


@dataclass(frozen=True)
class Addresses:
    """Where the server listens. Port 0 asks for a free one."""

    host: str = "127.0.0.1"
    http_port: int = 8000
    grpc_port: int = 8001
    metrics_port: int = 8002

    def resolved(self) -> Addresses:
        """The same with free ports in place of zeros. Raises UsageError for a port that is taken."""
        ports = (_claim(self.host, p) for p in (self.http_port, self.grpc_port, self.metrics_port))
        return Addresses(self.host, *ports)


def find_server() -> Installation:
    """Locate tritonserver. Raises EngineMissing with the remedy."""
    for candidate in (shutil.which("tritonserver"), _CONTAINER_BINARY):
        if candidate and Path(candidate).is_file():
            return Installation(Path(candidate), None)
    spec = importlib.util.find_spec("pytriton")
    for location in (spec.submodule_search_locations or []) if spec else []:
        root = Path(location) / "tritonserver"
        if (root / "bin" / "tritonserver").is_file():
            return Installation(root / "bin" / "tritonserver", root)
    raise EngineMissing(
        "tritonserver is not installed; for development: pip install calm-edge[triton-server] "
        "(Linux x86-64), in production: the official container, see docs/triton.md"
    )


class TritonServer:
    """A running tritonserver; use as a context manager. Entering waits until every model is ready.

    Raises UsageError (not a repository, port taken), EngineMissing (no server, no shared libpython), EngineError
    (the server did not come up; its last messages are in the error).
    """

    def __init__(
        self,
        repository: str | Path,
        addresses: Addresses | None = None,
        *,
        cache_bytes: int = _CACHE_BYTES,
        start_seconds: float = 300.0,
        verbose: bool = False,
    ) -> None:
        self.info = read_info(repository)
        self.repository = Path(repository).absolute()
        self.addresses = (addresses or Addresses()).resolved()
        self._cache_bytes = cache_bytes
        self._start_seconds = start_seconds
        self._verbose = verbose
        self._scratch: tempfile.TemporaryDirectory[str] | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        installation = find_server()
        self._scratch = tempfile.TemporaryDirectory(prefix="calm-triton-")
        try:
            folder = Path(self._scratch.name)
            command = self._command(installation, folder)
            with (folder / "log").open("wb") as log:
                # A session of its own: Ctrl-C reaches this process alone, which then stops the server in order.
                self._process = subprocess.Popen(
                    command,
                    env=_environment(installation),
                    stdout=None if self._verbose else log,
                    stderr=None if self._verbose else subprocess.STDOUT,
                    start_new_session=True,
                )
            self._wait_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def url(self) -> str:
        """What `Calm.load` and `RemoteCalm` take."""
        return f"grpc://{self.addresses.host}:{self.addresses.grpc_port}"

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    def wait(self) -> int:
        """Block until the server ends; its exit status."""
        assert self._process is not None
        return self._process.wait()

    def log(self) -> str:
        """The server's messages so far; empty when they went to the terminal."""
        path = Path(self._scratch.name) / "log" if self._scratch else None
        return path.read_text(errors="replace") if path and path.is_file() else ""

    def stop(self) -> None:
        """End the server: politely first, and its Python helpers with it."""
        process, self._process = self._process, None
        if process is not None:
            process.terminate()
            try:
                process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                pass
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            process.wait()
        if self._scratch is not None:
            self._scratch.cleanup()
            self._scratch = None

    def _command(self, installation: Installation, folder: Path) -> list[str]:
        where = self.addresses
        # Nobody is told this word, so nobody reaches what it guards: shared memory, model loading, tracing, logging.
        word = secrets.token_hex(16)
        closed = "shared-memory,model-repository,trace,logging"
        command = [
            str(installation.binary),
            f"--model-repository={self.repository}",
            "--disable-auto-complete-config",
            "--model-control-mode=none",
            "--exit-timeout-secs=10",
            f"--http-address={where.host}",
            f"--http-port={where.http_port}",
            f"--grpc-address={where.host}",
            f"--grpc-port={where.grpc_port}",
            f"--metrics-address={where.host}",
            f"--metrics-port={where.metrics_port}",
            f"--grpc-restricted-protocol={closed}:calm-closed={word}",
            f"--http-restricted-api={closed}:calm-closed={word}",
            f"--cache-config=local,size={self._cache_bytes}",
        ]
        if installation.root is not None:
            command += [
                f"--backend-directory={_development_backends(installation.root, folder / 'backends')}",
                f"--cache-directory={installation.root / 'caches'}",
            ]
        return command

    def _wait_ready(self) -> None:
        assert self._process is not None
        deadline = time.monotonic() + self._start_seconds
        address = f"http://{self.addresses.host}:{self.addresses.http_port}/v2/health/ready"
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise EngineError(f"tritonserver ended with status {self._process.returncode}:\n{self._complaints()}")
            if "error while loading shared libraries" in self.log():  # a helper that cannot start is waited for
                raise EngineError(f"a helper of tritonserver cannot start:\n{self._complaints()}")
            try:
                with opener.open(address, timeout=2):
                    return
            except (urllib.error.URLError, OSError):
                time.sleep(0.1)
        raise EngineError(f"tritonserver was not ready within {self._start_seconds:.0f} s:\n{self._complaints()}")

    def _complaints(self) -> str:
        lines = self.log().splitlines()
        errors = [
            line
            for line in lines
            if line.startswith("E") or "UNAVAILABLE" in line or "rror:" in line or "error while" in line
        ]
        return "\n".join((errors or lines)[-12:]) or "its messages are above"


def serve(
    repository: str | Path,
    host: str = "127.0.0.1",
    http_port: int = 8000,
    grpc_port: int = 8001,
    metrics_port: int = 8002,
    *,
    verbose: bool = False,
    on_ready: Callable[[TritonServer], None] = lambda server: None,
) -> int:
    """Serve a repository until Ctrl-C, SIGTERM or the server's end; returns the exit status (0 when asked to stop).

    on_ready is called once, when every model answers. Errors are those of TritonServer.
    """
    asked: list[int] = []
    server = TritonServer(repository, Addresses(host, http_port, grpc_port, metrics_port), verbose=verbose)

    def stop(number: int, frame: object) -> None:
        asked.append(number)
        raise KeyboardInterrupt

    previous = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with server:
            on_ready(server)
            status = server.wait()
            raise EngineError(f"tritonserver ended by itself with status {status}:\n{server._complaints()}")
    except KeyboardInterrupt:
        if not asked:
            raise
        return 0
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _claim(host: str, port: int) -> int:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise UsageError(
                f"cannot listen on {host}:{port} ({error.strerror}); stop the program that does, or choose another port"
            ) from error
        return int(probe.getsockname()[1])


def _development_backends(root: Path, folder: Path) -> Path:
    """A backend folder: Python with the stub of this very version, and ONNX Runtime on top of it."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    stub = root / "python_backend_stubs" / version / "triton_python_backend_stub"
    if not stub.is_file():
        known = ", ".join(sorted(p.name for p in (root / "python_backend_stubs").iterdir()))
        raise EngineMissing(f"the development server has no stub for Python {version}; use one of {known}")
    python = folder / "python"
    # The server refuses a library that a link leads out of this folder; the stub finds its own libraries only
    # where it lies. So the first is copied (1.4 MB) and the second linked.
    shutil.copytree(root / "backends" / "python", python, ignore=shutil.ignore_patterns("__pycache__"))
    (python / stub.name).symlink_to(stub)
    shutil.copytree(sources() / "backends" / "onnxruntime", folder / "onnxruntime")
    return folder


def _environment(installation: Installation) -> dict[str, str]:
    environment = {**os.environ, **{k: v for k, v in _MALLOC.items() if k not in os.environ}}
    if installation.root is None:
        return environment
    if int(metadata.version("numpy").split(".")[0]) > 1:
        raise EngineMissing(
            "the development server's Python backend misreads strings with NumPy 2; "
            "pip install calm-edge[triton-server], in an environment of its own if others need NumPy 2"
        )
    # The stub ignores VIRTUAL_ENV: it asks the first python3 on PATH, and loads libpython from the library path.
    environment["PYTHONDONTWRITEBYTECODE"] = "1"  # the repository stays as it was built
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), environment.get("PATH", os.defpath)])
    library = f"libpython{sys.version_info.major}.{sys.version_info.minor}.so.1.0"
    folders = [Path(str(sysconfig.get_config_var("LIBDIR") or "")), Path(sys.base_prefix) / "lib"]
    home = next((folder for folder in folders if (folder / library).exists()), None)
    if home is not None:
        parts = [str(home), environment.get("LD_LIBRARY_PATH", "")]
        environment["LD_LIBRARY_PATH"] = os.pathsep.join(part for part in parts if part)
    elif ctypes.util.find_library(f"python{sys.version_info.major}.{sys.version_info.minor}") is None:
        raise EngineMissing(f"{library} was not found; use a Python built with a shared library (--enable-shared)")
    return environment
