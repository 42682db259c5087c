"""WebDataset shards: tar files in which files of one key, one after another, are one sample.

The form is that of the webdataset library and of img2dataset: `key.jpg` with `key.txt`, or with `key.json` that holds
a "caption". Photos stay in the archive: a record tells where its bytes are.
"""

from __future__ import annotations

import json
import logging
import tarfile
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

from calm_runtime.errors import DataError
from calm_runtime.photo import PHOTO_SUFFIXES
from calm_train.datasets.photo_index import check_name
from calm_train.datasets.records import CaptionedPhoto, TarMember

logger = logging.getLogger(__name__)

MAX_TEXT_BYTES = 1_000_000
LAYOUT = "*.tar files with <key>.jpg and <key>.txt or <key>.json"


def read_shards(root: Path) -> Iterator[CaptionedPhoto]:
    """Samples of the tar file `root`, or of all *.tar files in the folder `root`, by name; read while iterating.

    texts: the text of key.txt, else the caption of key.json, else none. Files of other kinds are passed over; samples
    without a photo are counted and logged. Raises DataError for a file that is no uncompressed tar, ends too early,
    holds links or devices, or names that lead out of it.
    """
    shards = [root] if root.is_file() else sorted(root.glob("*.tar"))
    if not shards:
        raise DataError(f"{root}: no shards there; expected {LAYOUT}")
    photos = without_photo = 0
    for shard in shards:
        try:
            with tarfile.open(shard, "r:") as archive:
                for _, parts in groupby(_members(shard, archive), key=lambda part: part[0]):
                    record = _sample(shard, archive, [(suffix, member) for _, suffix, member in parts])
                    if record is None:
                        without_photo += 1
                    else:
                        photos += 1
                        yield record
        except (tarfile.TarError, OSError, EOFError) as error:
            raise DataError(f"{shard}: expected an uncompressed tar file ({error}); copy the shard again") from error
    if not photos:
        raise DataError(f"{root}: the shards hold no photo; expected {LAYOUT}")
    if without_photo:
        logger.warning("%s: %d of %d samples have no photo", root, without_photo, photos + without_photo)


def _members(shard: Path, archive: tarfile.TarFile) -> Iterator[tuple[str, str, tarfile.TarInfo]]:
    """Key, suffix in lower case, and header of every file of the archive that belongs to a sample."""
    length = shard.stat().st_size
    for member in archive:
        name = member.name.removeprefix("./")
        if member.isdir():
            continue
        check_name(name, f"{shard}, member '{member.name}'")
        if not member.isfile() or member.issparse():
            raise DataError(f"{shard}, member '{name}': expected a plain file, found a link or device; make it anew")
        if member.offset_data + member.size > length:
            raise DataError(f"{shard}, member '{name}': the archive ends too early; copy the shard again")
        folder, slash, file = name.rpartition("/")
        key, _, suffix = file.partition(".")
        if key and suffix:
            yield folder + slash + key, f".{suffix.lower()}", member


def _sample(shard: Path, archive: tarfile.TarFile, parts: list[tuple[str, tarfile.TarInfo]]) -> CaptionedPhoto | None:
    photos = [member for suffix, member in parts if suffix in PHOTO_SUFFIXES]
    if not photos:
        return None
    if len(photos) > 1:
        names = ", ".join(member.name for member in photos)
        raise DataError(f"{shard}: expected one photo per key, found {names}; give each photo a key of its own")
    others = dict(parts)
    text = ""
    if ".txt" in others:
        text = _text(shard, archive, others[".txt"])
    elif ".json" in others:
        text = _caption(shard, others[".json"].name, _text(shard, archive, others[".json"]))
    photo = photos[0]
    source = TarMember(shard, photo.name.removeprefix("./"), photo.offset_data, photo.size)
    return CaptionedPhoto(source, (text.strip(),) if text.strip() else ())


def _text(shard: Path, archive: tarfile.TarFile, member: tarfile.TarInfo) -> str:
    if member.size > MAX_TEXT_BYTES:
        raise DataError(f"{shard}, member '{member.name}': {member.size:,} bytes, the limit is {MAX_TEXT_BYTES:,}")
    handle = archive.extractfile(member)
    try:
        return (handle.read() if handle else b"").decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{shard}, member '{member.name}': expected UTF-8 text ({error.reason})") from error


def _caption(shard: Path, name: str, text: str) -> str:
    try:
        content = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise DataError(f"{shard}, member '{name}': expected JSON ({error})") from error
    caption = content.get("caption") if isinstance(content, dict) else None
    if not isinstance(caption, str | None) or not isinstance(content, dict):
        raise DataError(f"{shard}, member '{name}': expected an object with a text as \"caption\"")
    return caption or ""
