"""Every error a caller can meet, by whose fault it is.

Messages name the file, the cause and the remedy; the command line prints them without a traceback.
"""

from __future__ import annotations


class CalmError(Exception):
    """Base of all errors raised on purpose by CALM Edge."""


class UsageError(CalmError, ValueError):
    """The call itself is wrong: an unknown task, a missing argument, an option that does not exist."""


class PhotoError(CalmError, ValueError):
    """One photo cannot be scored. Other photos of the same call are not affected."""


class PhotoNotFound(PhotoError):
    """There is no such file."""


class PhotoUnreadable(PhotoError):
    """The file is empty, truncated, corrupt or not a picture."""


class PhotoFormatRefused(PhotoError):
    """The file is a picture of a format that is not on the allow-list."""


class PhotoTooLarge(PhotoError):
    """The file has more bytes, or its header announces more pixels, than the limits admit."""


class PhotoTooSmall(PhotoError):
    """The picture's shorter side is below the limit."""


class BundleError(CalmError):
    """A bundle cannot be used."""


class BundleNotFound(BundleError):
    """The folder or its manifest.json does not exist."""


class BundleCorrupt(BundleError):
    """A file of the bundle is missing, has changed or does not follow the contract."""


class EngineError(CalmError):
    """A model session cannot be created or failed while running."""


class EngineMissing(EngineError):
    """The chosen engine's library is not installed or its hardware does not answer."""


class EngineVersionMismatch(EngineError):
    """An engine was built by another TensorRT, or another version of it, than the one installed."""


class RemoteError(CalmError):
    """A Triton server is not reachable, timed out or answered with an error."""


class ScoreError(CalmError):
    """The model produced a score that is not a finite number."""


class ExportError(CalmError):
    """A checkpoint cannot be exported, or the export misses its parity gate."""


class EngineBuildError(ExportError):
    """TensorRT or TensorRT-RTX refused to build an engine."""


class OperatorUnsupported(EngineBuildError):
    """The graph has a node of a kind the library does not know; the message names the node."""


class ProfileMissing(EngineBuildError):
    """An input has a dynamic dimension and no optimisation profile that bounds it."""


class PrecisionUnsupported(EngineBuildError):
    """The GPU an engine is for has no arithmetic of the graph's precision."""


class DataError(CalmError, ValueError):
    """A data set, a recipe or a pretrained part does not have the expected form, or cannot be had."""


class IndexUnreachable(DataError):
    """The Python package index, from which pretrained parts come, does not answer."""


class ProfileError(CalmError, ValueError):
    """A personal profile cannot be built from these ratings, or cannot be used."""
