"""From the names in an annotation file to photos on the disk."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path

from calm_runtime.errors import DataError

logger = logging.getLogger(__name__)

NAMED = 5  # missing photos named in the summary


class PhotoIndex:
    """Finds photos by name in the folders a data set keeps them in; each folder is listed once.

    The first photo found among the folders counts. Raises DataError, naming the layout, when none of
    the folders exists.
    """

    def __init__(self, dataset: str, root: Path, folders: Sequence[str], layout: str) -> None:
        self.dataset = dataset
        self.root = root
        self.bases = [root / folder for folder in folders if (root / folder).is_dir()]
        self._listings: dict[tuple[Path, str], frozenset[str]] = {}
        self._found: dict[str, Path] = {}
        self._missing: dict[str, None] = {}
        if not self.bases:
            places = " or ".join(str(root / folder) for folder in folders)
            raise DataError(f"{places}: no such folder; expected {layout}")

    def find(self, where: str, name: str, *other_names: str) -> Path | None:
        """Path of the photo that `where` (file and line) names, or None, counted, when it is missing.

        other_names are tried when there is no photo of that name.
        Raises DataError when a name would lead out of the data set's folder.
        """
        known = self._found.get(name)
        if known is not None or name in self._missing:
            return known
        for candidate in (name, *other_names):
            check_name(candidate, where)
            folder, _, file = candidate.rpartition("/")
            for base in self.bases:
                if file in self._listing(base, folder):
                    path = Path(os.path.join(base, candidate))
                    self._found[name] = path
                    return path
        self._missing[name] = None
        return None

    def report(self) -> None:
        """One warning about all missing photos. Raises DataError when there is no photo at all."""
        total = len(self._found) + len(self._missing)
        places = ", ".join(str(base) for base in self.bases)
        if total == 0:
            raise DataError(f"{self.root}: the annotations of {self.dataset} name no photo; copy the data set again")
        if not self._missing:
            return
        names = ", ".join(list(self._missing)[:NAMED]) + (", ..." if len(self._missing) > NAMED else "")
        if not self._found:
            raise DataError(
                f"{places}: none of the {total} photos of {self.dataset} is there ({names}); get the photos"
            )
        logger.warning(
            "%s: %d of %d photos are missing in %s and were skipped: %s",
            self.dataset,
            len(self._missing),
            total,
            places,
            names,
        )

    def _listing(self, base: Path, folder: str) -> frozenset[str]:
        key = (base, folder)
        if key not in self._listings:
            try:
                with os.scandir(base / folder) as entries:
                    self._listings[key] = frozenset(entry.name for entry in entries if entry.is_file())
            except OSError:
                self._listings[key] = frozenset()
        return self._listings[key]


def check_name(name: str, where: str) -> None:
    """Raises DataError unless `name` is a relative path with "/" that stays inside the folder it is joined to."""
    parts = name.split("/")
    if "\\" in name or "\0" in name or name[1:2] == ":" or not {"", ".", ".."}.isdisjoint(parts):
        raise DataError(f"{where}: expected the name of a photo inside the data set's folder, found '{name}'")
