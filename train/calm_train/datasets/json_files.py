"""Annotation files in JSON, checked against a declared form."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TypeVar

import msgspec

from calm_runtime.errors import DataError
from calm_train.datasets.tables import require_file

MAX_JSON_BYTES = 4_000_000_000

Form = TypeVar("Form")


def read_json(path: Path, form: type[Form], layout: str) -> Form:
    """A JSON file as `form`, a msgspec-convertible type; keys the form does not name are passed over.

    Raises DataError naming the layout when the file does not exist, the line when it is not JSON, and the place
    (such as `$[3].image`, items counted from 0) when it does not have the form.
    """
    require_file(path, layout, MAX_JSON_BYTES)
    try:
        with path.open(encoding="utf-8-sig") as handle:
            content = json.load(handle)
    except json.JSONDecodeError as error:
        raise DataError(f"{path}, line {error.lineno}: expected JSON ({error.msg}); copy the file again") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: expected UTF-8 text ({error.reason}); copy the file again") from error
    except RecursionError as error:
        raise DataError(f"{path}: the JSON is nested too deeply; is it the right file?") from error
    try:
        return msgspec.convert(content, form)
    except msgspec.ValidationError as error:
        raise DataError(f"{path}: {error} (items count from 0); expected {layout}") from error
