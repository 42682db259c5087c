"""Annotation tables as text: rows that know their file and line, so that every fault can be found and mended."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from calm_runtime.errors import DataError

MAX_TABLE_BYTES = 2_000_000_000


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a table: column -> cell, without the space around it."""

    file: Path
    line: int
    cells: Mapping[str, str]

    @property
    def where(self) -> str:
        """File and line, as error messages name them."""
        return f"{self.file}, line {self.line}"

    def error(self, expected: str) -> DataError:
        """The error to raise for this row."""
        return DataError(f"{self.where}: expected {expected}; mend the row or copy the file again")

    def text(self, column: str) -> str:
        """A cell that is not empty."""
        cell = self.cells[column]
        if not cell:
            raise self.error(f"{column}, found nothing")
        return cell

    def number(self, column: str, low: float, high: float) -> float:
        """A number of low..high."""
        try:
            value = float(self.cells[column])
        except ValueError:
            value = math.nan
        if not low <= value <= high:
            raise self.error(f"{column} as a number of {low:g} to {high:g}, found '{self.cells[column]}'")
        return value

    def count(self, column: str) -> int:
        """A whole number of zero or more."""
        cell = self.cells[column]
        if not (cell.isascii() and cell.isdigit() and len(cell) <= 12):
            raise self.error(f"{column} as a whole number, found '{cell}'")
        return int(cell)


def read_table(path: Path, columns: Sequence[str], layout: str, delimiter: str = ",") -> Iterator[Row]:
    """Rows of a CSV file with a header that holds at least `columns`; blank lines are passed over.

    Raises DataError naming `layout` when the file does not exist, and file and line when a row is malformed.
    """
    require_file(path, layout)
    with path.open(encoding="utf-8-sig", newline="") as handle:
        reader = csv.reader(handle, delimiter=delimiter, skipinitialspace=True, strict=True)
        header: list[str] | None = None
        try:
            for values in reader:
                if not values:
                    continue
                if header is None:
                    header = [value.strip() for value in values]
                    check_header(path, header, columns)
                    continue
                if len(values) != len(header):
                    raise DataError(
                        f"{path}, line {reader.line_num}: expected {len(header)} cells separated by '{delimiter}', "
                        f"found {len(values)}; mend the row or copy the file again"
                    )
                cells = dict(zip(header, (value.strip() for value in values), strict=True))
                yield Row(path, reader.line_num, cells)
        except csv.Error as error:
            raise DataError(f"{path}, line {reader.line_num}: expected a CSV row ({error})") from error
        except UnicodeDecodeError as error:
            raise _not_text(path, reader.line_num + 1, error) from error
    if header is None:
        raise DataError(f"{path}: is empty, expected a header with {', '.join(columns)}; copy the file again")


def read_fields(path: Path, columns: Sequence[str], layout: str) -> Iterator[Row]:
    """Rows of a text file without header whose fields are separated by white space; blank lines are passed over.

    Raises DataError as `read_table` does.
    """
    require_file(path, layout)
    line = 0
    with path.open(encoding="utf-8-sig") as handle:
        try:
            for line, text in enumerate(handle, 1):
                values = text.split()
                if not values:
                    continue
                if len(values) != len(columns):
                    raise DataError(
                        f"{path}, line {line}: expected {len(columns)} fields ({', '.join(columns)}), "
                        f"found {len(values)}; mend the row or copy the file again"
                    )
                yield Row(path, line, dict(zip(columns, values, strict=True)))
        except UnicodeDecodeError as error:
            raise _not_text(path, line + 1, error) from error


def check_header(path: Path, header: Sequence[str], columns: Sequence[str]) -> None:
    """Raises DataError unless every column is in the header."""
    absent = [column for column in columns if column not in header]
    if absent:
        found = ", ".join(header)[:200]
        raise DataError(f"{path}, line 1: expected the columns {', '.join(columns)}; no {', '.join(absent)} in {found}")


def require_file(path: Path, layout: str, max_bytes: int = MAX_TABLE_BYTES) -> None:
    """Raises DataError when a file of a data set is absent (naming the layout expected) or larger than the cap."""
    if not path.is_file():
        raise DataError(f"{path}: no such file; expected {layout}")
    if path.stat().st_size > max_bytes:
        raise DataError(f"{path}: {path.stat().st_size:,} bytes, the limit is {max_bytes:,}; is it the right file?")


def first_file(root: Path, names: Sequence[str], layout: str) -> Path:
    """The first of several places of a file that exists below root. Raises DataError naming the layout."""
    for name in names:
        if (root / name).is_file():
            return root / name
    raise DataError(f"{root / names[0]}: no such file; expected {layout}")


def _not_text(path: Path, line: int, error: UnicodeDecodeError) -> DataError:
    return DataError(f"{path}, from line {line}: expected UTF-8 text ({error.reason}); copy or export the file again")
