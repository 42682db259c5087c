"""The data sets of image aesthetics, read from disk in the form they are published in.

Nothing here downloads: get a data set from its authors under their terms, unpack it, and give its folder as ROOT.
Ratings of any scale come out on 1..10, the scale of `calm_runtime.score`, mapped linearly.

name               read from ROOT                                                   scale    published split
ava                AVA.txt, images/<id>.jpg, aesthetics_image_lists/                1..10    train, test
ava-styles         style_image_lists/, images/<id>.jpg                                       train, test
ava-captions       CLEAN_AVA_FULL_AFTER_SUBJECTIVE_CLEANING.json in AVA's folder             train, val, test
aadb               imgListFiles_label/, datasetImages_originalSize/ or warp256      0..1     train, val, test
eva, eva-raters    data/votes_filtered.csv, images/EVA_together/<id>.jpg            0..10
para, para-raters  annotation/PARA-*.csv, imgs/<session>/<name>                     1..5     train, test
flickr-aes         FLICKR-AES_image_score.txt, 40K/<name>                           0..1
flickr-aes-raters  FLICKR-AES_image_labeled_by_each_worker.csv, 40K/<name>          1..5
tad66k             labels/merge/train.csv and test.csv, TAD66K/<name>               0..10    train, test
pccd               raw.json or guru.json, images/full/<title>                       1..10
pccd-critiques     the same files: what the critics wrote
spaq               Annotations/MOS and Image attribute scores.csv or .xlsx,         0..100
                   TestImage/<name>
llava-json         one .json file in LLaVA's form, images/ or beside it
llava-pretrain     blip_laion_cc_sbu_558k.json, images/ or beside it
sharegpt4v         sharegpt4v/sharegpt4v_instruct_gpt4-vision_cap100k.json, coco/, sam/, ...
sharegpt4v-pt      sharegpt4v/share-captioner_coco_lcs_sam_1246k_1107.json, coco/, sam/, ...
folder             photos at any depth; those in val/ and test/ are of that split            train, val, test
shards             *.tar in WebDataset form, or one such file

Each loader's file says where its form was confirmed and what was not. Rows whose photo is missing are skipped and
reported in one warning. A malformed row, a wrong ROOT, or a name that leads out of ROOT is a DataError.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from calm_runtime.errors import DataError, UsageError
from calm_train.datasets import llava
from calm_train.datasets.aadb import read_aadb
from calm_train.datasets.ava import read_ava, read_ava_styles
from calm_train.datasets.ava_captions import read_ava_captions
from calm_train.datasets.eva import read_eva, read_eva_raters
from calm_train.datasets.flickr_aes import read_flickr_aes, read_flickr_aes_raters
from calm_train.datasets.folder import read_folder
from calm_train.datasets.llava import read_llava
from calm_train.datasets.para import read_para, read_para_raters
from calm_train.datasets.pccd import read_pccd, read_pccd_critiques
from calm_train.datasets.records import SPLITS, CaptionedPhoto, Conversation, Photo, RatedPhoto, Record, photo_input
from calm_train.datasets.shards import read_shards
from calm_train.datasets.spaq import read_spaq
from calm_train.datasets.splits import drawn_split
from calm_train.datasets.tad66k import read_tad66k

logger = logging.getLogger(__name__)

__all__ = [
    "DATASETS",
    "CaptionedPhoto",
    "Conversation",
    "DatasetForm",
    "Photo",
    "RatedPhoto",
    "Record",
    "photo_input",
    "read_dataset",
]


@dataclass(frozen=True)
class DatasetForm:
    """A published form: what its records are for, how to read them, and the splits its publishers made."""

    description: str
    kind: Literal["ratings", "captions", "conversations", "photos"]
    read: Callable[[Path], Iterable[Record]]
    splits: tuple[str, ...] = ()


DATASETS: dict[str, DatasetForm] = {
    "ava": DatasetForm("AVA: vote histograms of dpchallenge.com", "ratings", read_ava, ("train", "test")),
    "ava-styles": DatasetForm("AVA: photographic styles", "captions", read_ava_styles, ("train", "test")),
    "ava-captions": DatasetForm(
        "AVA-Captions: cleaned comments, AVA's test left out", "captions", read_ava_captions, SPLITS
    ),
    "aadb": DatasetForm("AADB: mean scores", "ratings", read_aadb, SPLITS),
    "eva": DatasetForm("EVA: mean scores and vote histograms", "ratings", read_eva),
    "eva-raters": DatasetForm("EVA: single votes with their raters", "ratings", read_eva_raters),
    "para": DatasetForm("PARA: mean scores and vote histograms", "ratings", read_para, ("train", "test")),
    "para-raters": DatasetForm("PARA: single votes with their raters", "ratings", read_para_raters, ("train", "test")),
    "flickr-aes": DatasetForm("FLICKR-AES: mean scores", "ratings", read_flickr_aes),
    "flickr-aes-raters": DatasetForm("FLICKR-AES: single votes with their raters", "ratings", read_flickr_aes_raters),
    "tad66k": DatasetForm("TAD66K: mean scores by the criteria of a theme", "ratings", read_tad66k, ("train", "test")),
    "pccd": DatasetForm("PCCD: overall scores of critics", "ratings", read_pccd),
    "pccd-critiques": DatasetForm("PCCD: critiques of seven aspects", "captions", read_pccd_critiques),
    "spaq": DatasetForm("SPAQ: technical quality of smartphone photos", "ratings", read_spaq),
    "llava-json": DatasetForm("Any JSON file in LLaVA's form", "conversations", read_llava),
    "llava-pretrain": DatasetForm(
        "LLaVA-Pretrain: 558K captions", "conversations", partial(read_llava, annotations=llava.PRETRAIN)
    ),
    "sharegpt4v": DatasetForm(
        "ShareGPT4V: 100K long captions", "conversations", partial(read_llava, annotations=llava.SHAREGPT4V)
    ),
    "sharegpt4v-pt": DatasetForm(
        "ShareGPT4V-PT: 1.2M long captions", "conversations", partial(read_llava, annotations=llava.SHAREGPT4V_PRETRAIN)
    ),
    "folder": DatasetForm("A folder of photos", "photos", read_folder, SPLITS),
    "shards": DatasetForm("WebDataset shards of photos with captions", "captions", read_shards),
}


def read_dataset(name: str, root: Path, split: str | None = None) -> Iterable[Record]:
    """Records of a data set: a list, or an iterator for shards.

    split: "train", "val" or "test"; None reads all records. Where the publishers made no split, one is drawn from the
    photos' file names (`splits.drawn_split`): figures on it compare only with figures on the same split.
    Raises UsageError for an unknown name or split, and DataError for faulty files or a split that holds no photo.
    """
    form = DATASETS.get(name)
    if form is None:
        raise UsageError(f"no data set '{name}'; choose one of {', '.join(DATASETS)}")
    if split is not None and split not in SPLITS:
        raise UsageError(f"no split '{split}'; choose one of {', '.join(SPLITS)}")
    if split is not None and form.splits and split not in form.splits:
        raise UsageError(f"{name} is published without a '{split}' split; choose one of {', '.join(form.splits)}")
    records = form.read(root)
    if split is None:
        return records
    if not form.splits:
        logger.warning("%s is published without splits: '%s' is drawn by the photos' file names", name, split)
    chosen = _of_split(name, root, records, split)
    return list(chosen) if isinstance(records, list) else chosen


def _of_split(name: str, root: Path, records: Iterable[Record], split: str) -> Iterator[Record]:
    count = 0
    for record in records:
        if (record.split if DATASETS[name].splits else drawn_split(record.path)) == split:
            count += 1
            yield record
    if not count:
        raise DataError(f"{root}: {name} has no photo of the split '{split}' there; see the layout of the data set")
