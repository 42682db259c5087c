"""SPAQ: eleven thousand smartphone photos with a mean opinion score. It rates technical quality, not aesthetics.

Fang, Zhu, Zeng, Ma, Wang: Perceptual quality assessment of smartphone photography, CVPR 2020. File, folder and column
names are confirmed by public loaders; the file itself was not seen.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path

from calm_runtime.errors import DataError
from calm_runtime.ratings import to_score_scale
from calm_train.datasets.photo_index import PhotoIndex
from calm_train.datasets.records import RatedPhoto
from calm_train.datasets.tables import Row, check_header, first_file, read_table, require_file

TABLE = "MOS and Image attribute scores"
LAYOUT = f"Annotations/{TABLE}.csv or .xlsx (Image name, MOS, ...) and TestImage/<image name>"
COLUMNS = ("Image name", "MOS")
MAX_WORKBOOK_BYTES = 50_000_000


def read_spaq(root: Path) -> list[RatedPhoto]:
    """The MOS of each photo, mapped from 0..100. No split is published.

    The table is the published workbook, which needs the package openpyxl, or that sheet exported as CSV beside it.
    Raises DataError.
    """
    places = [f"{folder}{TABLE}{suffix}" for suffix in (".csv", ".xlsx") for folder in ("Annotations/", "")]
    table = first_file(root, places, LAYOUT)
    photos = PhotoIndex("SPAQ", root, ("TestImage",), LAYOUT)
    records = []
    for row in read_table(table, COLUMNS, LAYOUT) if table.suffix == ".csv" else _workbook(table):
        mean = to_score_scale(row.number("MOS", 0, 100), 0, 100)
        path = photos.find(row.where, row.text("Image name"))
        if path is not None:
            records.append(RatedPhoto(path, mean))
    photos.report()
    return records


def _workbook(path: Path) -> Iterator[Row]:
    require_file(path, LAYOUT, MAX_WORKBOOK_BYTES)
    try:
        openpyxl = importlib.import_module("openpyxl")
    except ImportError as error:
        raise DataError(
            f"{path}: a workbook needs one more package; pip install openpyxl, or save the sheet beside it as "
            f"'{path.stem}.csv'"
        ) from error
    try:
        book = openpyxl.load_workbook(path, read_only=True, data_only=True)
        lines = book.worksheets[0].iter_rows(values_only=True)
        header = ["" if cell is None else str(cell).strip() for cell in next(lines, ())]
        check_header(path, header, COLUMNS)
        for line, values in enumerate(lines, 2):
            if any(value is not None for value in values):
                cells = ("" if value is None else str(value).strip() for value in values)
                yield Row(path, line, dict(zip(header, cells, strict=False)))
        book.close()
    except DataError:
        raise
    except Exception as error:  # a damaged workbook shows in many ways
        raise DataError(f"{path}: expected an Excel workbook ({error}); copy the file again") from error
