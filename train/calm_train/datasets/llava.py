"""Conversations about images in LLaVA's JSON: LLaVA-Pretrain, ShareGPT4V and any file of the same form.

Liu, Li, Wu, Lee: Visual instruction tuning, NeurIPS 2023. Chen et al.: ShareGPT4V, ECCV 2024. The form is confirmed by
the projects' documentation and public loaders.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Literal

import msgspec

from calm_runtime.errors import DataError
from calm_train.datasets.json_files import read_json
from calm_train.datasets.photo_index import PhotoIndex
from calm_train.datasets.records import Conversation, Turn

logger = logging.getLogger(__name__)

PRETRAIN = "blip_laion_cc_sbu_558k.json"
SHAREGPT4V = "sharegpt4v/sharegpt4v_instruct_gpt4-vision_cap100k.json"
SHAREGPT4V_PRETRAIN = "sharegpt4v/share-captioner_coco_lcs_sam_1246k_1107.json"
IMAGE_MARKER = "<image>"
LAYOUT = (
    "{file} (a list of {{id, image, conversations: [{{from: human or gpt, value}}]}}) and the images it names in "
    "images/ or beside it"
)


class _Turn(msgspec.Struct):
    speaker: Literal["human", "gpt"] = msgspec.field(name="from")
    value: str


class _Item(msgspec.Struct):
    conversations: list[_Turn]
    image: str | None = None


def read_llava(root: Path, annotations: str | None = None) -> list[Conversation]:
    """Conversations of a JSON file below root: `annotations`, or the only .json file in root.

    human and gpt must take turns, human first. The marker "<image>" is taken out of the human's texts. Items without an image are passed over. Image names are
    looked for in root/images, then in root. Raises DataError.
    """
    file = root / annotations if annotations is not None else _only_json(root)
    layout = LAYOUT.format(file=annotations or "one .json file")
    items = read_json(file, list[_Item], layout)
    photos = PhotoIndex(file.name, root, ("images", "."), layout)
    records, without_image = [], 0
    for number, item in enumerate(items):
        if item.image is None:
            without_image += 1
            continue
        where = f"{file}, item {number} (items count from 0)"
        path = photos.find(where, item.image)
        if path is None:
            continue
        try:
            records.append(Conversation(path, tuple(_turn(turn) for turn in item.conversations)))
        except DataError as error:
            raise DataError(f"{where}: {error}") from error
    if without_image:
        logger.warning("%s: %d of %d items have no image and were skipped", file, without_image, len(items))
    photos.report()
    return records


def _turn(turn: _Turn) -> Turn:
    text = turn.value.replace(IMAGE_MARKER, "") if turn.speaker == "human" else turn.value
    return Turn(turn.speaker, text.strip())


def _only_json(root: Path) -> Path:
    files = sorted(root.glob("*.json"))
    if len(files) != 1:
        found = ", ".join(file.name for file in files) or "none"
        raise DataError(f"{root}: expected {LAYOUT.format(file='one .json file')}; found {found}")
    return files[0]
