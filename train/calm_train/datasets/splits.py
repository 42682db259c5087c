"""Train, val and test: the published split where there is one, a drawn one where there is none."""

from __future__ import annotations

import hashlib

from calm_train.datasets.records import PhotoSource, TarMember

DRAWN_TRAIN = 80  # per cent; the rest is halved
DRAWN_VAL = 10


def drawn_split(source: PhotoSource) -> str:
    """Split of a photo by the SHA-256 of its file name: 80 % train, 10 % val, 10 % test.

    It depends on the name alone, so all ratings of a photo fall on one side, on every machine, whatever else is read.
    """
    name = source.name.rpartition("/")[2] if isinstance(source, TarMember) else source.name
    digest = hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()
    percent = int.from_bytes(digest[:8], "big") % 100
    if percent < DRAWN_TRAIN:
        return "train"
    return "val" if percent < DRAWN_TRAIN + DRAWN_VAL else "test"
