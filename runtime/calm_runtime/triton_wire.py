"""What both ends of a Triton connection agree on: model names, and errors that keep their type on the way."""

from __future__ import annotations

import inspect
import re

from calm_runtime import errors
from calm_runtime.errors import CalmError, RemoteError

SCORE_MODEL = "calm_score"
TEXT_MODEL = "calm_text"
INTERACTIVE = 1
BATCH = 2  # Triton's priority levels: the lower number is served first

_TYPES: dict[str, type[CalmError]] = {
    name: kind for name, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, CalmError)
}
_PATTERN = re.compile(rf"\b({'|'.join(_TYPES)}): (.*)", re.DOTALL)


def error_text(error: Exception) -> str:
    """The text an error response carries: type and cause of a CalmError, of any other error only its type.

    Unknown errors stay on the server's log: their text may name paths of the server.
    """
    if isinstance(error, CalmError):
        return f"{type(error).__name__}: {error}"
    return f"EngineError: the server failed with {type(error).__name__}; its log has the details"


def error_from_text(text: str) -> CalmError:
    """The error that `error_text` described, wherever it stands in the server's message; RemoteError otherwise."""
    found = _PATTERN.search(text)
    if found is None:
        return RemoteError(f"the server answered with an error: {text}")
    return _TYPES[found.group(1)](found.group(2).strip())
