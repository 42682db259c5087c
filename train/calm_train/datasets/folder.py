"""A plain folder of photos, for training without labels."""

from __future__ import annotations

from pathlib import Path

from calm_train.datasets.records import Photo


def read_folder(root: Path) -> list[Photo]:
    """All photos below root, sorted. Those in root/val and root/test are of that split, all others "train".

    Raises DataError when root is no folder or holds no photos.
    """
    from calm_train.library import find_photos  # library itself needs the records of this package

    held_out = ("val", "test")
    firsts = ((path, path.relative_to(root).parts[0]) for path in find_photos(root))
    return [Photo(path, first if first in held_out else "train") for path, first in firsts]
