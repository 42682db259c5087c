"""Data sets in their published form, a few photos each, written by the tests themselves."""

from __future__ import annotations

import csv
import io
import json
import tarfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image


def photo_bytes(seed: int) -> bytes:
    """A JPEG of 64 x 48 coloured blocks, different for every seed."""
    blocks = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(blocks).resize((64, 48), Image.Resampling.NEAREST).save(buffer, "JPEG")
    return buffer.getvalue()


def make_photos(folder: Path, names: Iterable[str]) -> None:
    for seed, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(photo_bytes(seed))


def write_lines(path: Path, lines: Iterable[str], end: str = "\n") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes("".join(line + end for line in lines).encode())


def write_json(path: Path, content: object) -> None:
    write_lines(path, [json.dumps(content)])


def make_ava(root: Path) -> None:
    """Photos 101, 102, 103 (103 is in the test list); styles for 101, 102 (train) and 103 (test, two styles)."""
    make_photos(root / "images", ["101.jpg", "102.jpg", "103.jpg"])
    write_lines(
        root / "AVA.txt",
        [
            "1 101 0 0 0 0 0 0 0 0 0 10 1 22 1396",
            "2 102 5 0 0 0 5 0 0 0 0 0 15 0 1396",
            "3 103 1 1 1 1 1 1 1 1 1 1 0 0 1397",
        ],
    )
    write_lines(root / "aesthetics_image_lists" / "generic_test.jpgl", ["103", "999"])
    styles = root / "style_image_lists"
    write_lines(styles / "styles.txt", ["1 Complementary_Colors", "2 HDR", "3 Rule_of_Thirds"])
    write_lines(styles / "train.jpgl", ["101", "102"])
    write_lines(styles / "train.lab", ["3", "1"])
    write_lines(styles / "test.jpgl", ["103"])
    write_lines(styles / "test.multilab", ["1 0 1"])


def make_ava_captions(root: Path) -> None:
    """AVA with comments on all three photos; those on 103 are labelled "train" although AVA tests on it."""
    make_ava(root)

    def image(number: int, split: str, *comments: tuple[str, str]) -> dict[str, object]:
        sentences = [
            {"raw": raw, "clean": clean, "tokens": clean.split(), "imgid": number, "sentid": ""}
            for raw, clean in comments
        ]
        return {
            "filename": f"{number}.jpg", "imgid": number, "cocoid": number, "filepath": "", "sentids": "",
            "split": split, "sentences": sentences,
        }  # fmt: skip

    write_json(
        root / "CLEAN_AVA_FULL_AFTER_SUBJECTIVE_CLEANING.json",
        {
            "dataset": "AVA",
            "images": [
                image(101, "train", ("Great colours!!!", "great colours!"), ("Nice depth of field.", "")),
                image(102, "val", ("Too dark :(", "too dark")),
                image(103, "train", ("Lovely.", "lovely.")),
            ],
        },
    )


def make_aadb(root: Path) -> None:
    """Two training photos, one for validation, and one of the revised test whose file carries its score."""
    make_photos(root / "datasetImages_warp256", ["farm1_1_a_b.jpg", "farm1_2_c_b.jpg", "farm1_3_d_b.jpg"])
    make_photos(root / "AADB_newtest", ["0.500_farm1_4_e_b.jpg"])
    labels = root / "imgListFiles_label"
    write_lines(labels / "imgListTrainRegression_score.txt", ["farm1_1_a_b.jpg 0.000", "farm1_2_c_b.jpg 1.0"])
    write_lines(labels / "imgListValidationRegression_score.txt", ["farm1_3_d_b.jpg 0.25"])
    write_lines(labels / "imgListTestNewRegression_score.txt", ["farm1_4_e_b.jpg 0.500"])


def make_eva(root: Path, quoted: bool = False) -> None:
    """Two photos; 71 has the votes 0, 10 and 5, 106 one vote of 8."""
    make_photos(root / "images" / "EVA_together", ["71.jpg", "106.jpg"])
    rows = [
        "image_id=user_id=score=difficulty=visual=composition=quality=semantic=vote_time=1=2=3=4",
        "71=E1773=0=3=1=1=1=1=20.5=1=0=0=0",
        "71=C76=10=4=4=4=4=4=12.1=0=0=0=1",
        "106=C76=8=4=4=4=3=4=7.0=0=1=0=0",
        "71=C77=5=3=2=3=2=3=9.9=0=0=1=0",
    ]
    if quoted:
        rows = ["=".join(f'"{cell}"' for cell in row.split("=")) for row in rows]
        rows[0] = "\ufeff" + rows[0]
    write_lines(root / "data" / "votes_filtered.csv", rows)


def make_para(root: Path) -> None:
    """Three photos of two sessions, the last one for the test, and their single votes."""
    make_photos(root / "imgs", ["session1/iaa_pub1_.jpg", "session1/iaa_pub2_.jpg", "session2/iaa_pub71_.jpg"])
    levels = [f"aestheticScore_{level / 2:.1f}" for level in range(2, 11)]
    header = ["imageName", "sessionId", "semantic", *levels, "aestheticScore_mean", "aestheticScore_std"]
    giaa = {
        "PARA-GiaaTrain.csv": [
            ["iaa_pub1_.jpg", "session1", "animal", 0, 0, 0, 0, 4, 0, 0, 0, 0, 3.0, 0.0],
            ["iaa_pub2_.jpg", "session1", "plant", 1, 0, 0, 0, 0, 0, 0, 0, 1, 3.0, 2.0],
        ],
        "PARA-GiaaTest.csv": [["iaa_pub71_.jpg", "session2", "food", 0, 1, 0, 0, 0, 0, 0, 0, 0, 1.5, 0.0]],
    }
    for name, rows in giaa.items():
        _write_csv(root / "annotation" / name, header, rows)
    _write_csv(
        root / "annotation" / "PARA-Images.csv",
        ["sessionId", "imageName", "userId", "aestheticScore", "qualityScore", "semantic"],
        [
            ["session1", "iaa_pub1_.jpg", "A4174e8", 3.0, 3.0, "animal"],
            ["session1", "iaa_pub2_.jpg", "A4174e8", 1.0, 2.0, "plant"],
            ["session1", "iaa_pub2_.jpg", "A5b1c3d", 5.0, 2.0, "plant"],
            ["session2", "iaa_pub71_.jpg", "A5b1c3d", 1.5, 2.0, "food"],
        ],
    )


def make_flickr_aes(root: Path) -> None:
    """Three photos; the lines of the score file begin with a space, the header's columns follow ", "."""
    make_photos(root / "40K", ["farm1_10_a_b.jpg", "farm1_11_b_b.jpg", "farm1_12_c_b.jpg"])
    write_lines(
        root / "FLICKR-AES_image_score.txt",
        [" farm1_10_a_b.jpg 0.0", " farm1_11_b_b.jpg 0.75", " farm1_12_c_b.jpg 1.0"],
    )
    write_lines(
        root / "FLICKR-AES_image_labeled_by_each_worker.csv",
        [
            "worker, imagePair, score",
            "A1H8Y5D87LY40S, farm1_10_a_b.jpg, 1",
            "A1H8Y5D87LY40S, farm1_11_b_b.jpg, 4",
            "A2SUAM1J3GNN3B, farm1_10_a_b.jpg, 5",
        ],
    )


def make_flickr_aes_tastes(root: Path, originals: Sequence[Path], versions: int) -> dict[str, dict[str, int]]:
    """Photographs in `versions` exposures each, rated by one worker who likes them dark and one who likes them bright.

    Returns worker -> photo -> rating. A third worker rated three photos only.
    """
    folder = root / "40K"
    folder.mkdir(parents=True)
    brightness = {}
    rng = np.random.default_rng(3)
    for number, original in enumerate(originals):
        with Image.open(original) as opened:
            picture = opened.convert("RGB")
        for version in range(versions):
            width, height = (int(side * rng.uniform(0.7, 1.0)) for side in picture.size)
            left, top = int(rng.integers(picture.width - width)), int(rng.integers(picture.height - height))
            frame = np.asarray(picture.crop((left, top, left + width, top + height)), np.float64) / 255
            exposed = (frame * 2.0 ** rng.uniform(-2, 2)).clip(0, 1) ** rng.uniform(0.8, 1.25)
            name = f"farm{number}_{version}_a_b.jpg"
            Image.fromarray((exposed * 255).round().astype(np.uint8)).save(folder / name, "JPEG")
            brightness[name] = float(exposed.mean())
    ranks = {name: rank for rank, name in enumerate(sorted(brightness, key=brightness.__getitem__))}
    fifths = {name: 1 + 5 * rank // len(ranks) for name, rank in ranks.items()}
    raters = {
        "ADARK": {name: 6 - fifth for name, fifth in fifths.items()},
        "ALIGHT": fifths,
        "AFEW": dict(list(fifths.items())[:3]),
    }
    write_lines(root / "FLICKR-AES_image_score.txt", [f" {name} 0.5" for name in brightness])
    votes = [f"{rater}, {name}, {rating}" for rater, own in raters.items() for name, rating in own.items()]
    write_lines(root / "FLICKR-AES_image_labeled_by_each_worker.csv", ["worker, imagePair, score", *votes])
    return raters


def make_tad66k(root: Path) -> None:
    """Three photos, two themes; lines end in CR LF as published."""
    make_photos(root / "TAD66K", ["hs_yin152947873.jpg", "43751877@N085618633908.jpg", "lanphere54810922.jpg"])
    rows = {
        "merge/train.csv": ["lanphere54810922.jpg,2.85", "43751877@N085618633908.jpg,10"],
        "merge/test.csv": ["hs_yin152947873.jpg,5.0"],
        "unmerge/train/art.csv": ["lanphere54810922.jpg,2.85"],
        "unmerge/train/sea.csv": ["43751877@N085618633908.jpg,10"],
        "unmerge/test/art.csv": ["hs_yin152947873.jpg,5.0"],
        "unmerge/test/sea.csv": [],
    }
    for name, lines in rows.items():
        write_lines(root / "labels" / name, ["image,score", *lines], end="\r\n")


def make_pccd(root: Path) -> None:
    """Three reviews: all aspects; some empty, without an overall score; a title without a file suffix."""
    make_photos(root / "images" / "full", ["14_winter-1.jpg", "16_ruins.jpg", "4_tower.jpg"])
    aspects = (
        "general_impression", "subject_of_photo", "composition", "use_of_camera", "depth_of_field",
        "color_lighting", "focus",
    )  # fmt: skip

    def review(title: str, overall: str | None, texts: Sequence[str | None]) -> dict[str, object]:
        return {
            "title": title,
            "overall": overall,
            "category": "nature-photography",
            "score": ["8", "10", "7", "9", "N", "8", "9"],
            "description": "By the photographer.",
            **dict(zip(aspects, texts, strict=True)),
        }

    write_json(
        root / "raw.json",
        [
            review("14_winter-1.jpg", "8.6", [f"On {aspect}." for aspect in aspects]),
            review("16_ruins.jpg", "N", ["", None, " Balanced. ", "", "", "Dark.", ""]),
            review("4_tower", "10", [""] * 7),
        ],
    )


SPAQ_ROWS = (
    ("Image name", "MOS", "Brightness", "Colorfulness", "Contrast", "Noisiness", "Sharpness"),
    ("00001.jpg", 0, 40.0, 40.0, 40.0, 40.0, 40.0),
    ("00002.jpg", 50.0, 40.0, 40.0, 40.0, 40.0, 40.0),
    ("00003.jpg", 100, 40.0, 40.0, 40.0, 40.0, 40.0),
)


def make_spaq(root: Path) -> None:
    make_photos(root / "TestImage", [str(row[0]) for row in SPAQ_ROWS[1:]])
    _write_csv(root / "Annotations" / "MOS and Image attribute scores.csv", SPAQ_ROWS[0], SPAQ_ROWS[1:])


def make_llava(root: Path, annotations: str = "blip_laion_cc_sbu_558k.json") -> None:
    """Two photos in subfolders, one of them talked about twice, and an item that is text alone."""
    make_photos(root, ["00453/004539375.jpg", "coco/train2017/000000000009.jpg"])

    def said(*texts: str) -> list[dict[str, str]]:
        return [{"from": ("human", "gpt")[n % 2], "value": text} for n, text in enumerate(texts)]

    write_json(
        root / annotations,
        [
            {
                "id": "004539375",
                "image": "00453/004539375.jpg",
                "conversations": said("Render a clear and concise summary.\n<image>", "a wide shot of a beach"),
            },
            {
                "id": 9,
                "image": "coco/train2017/000000000009.jpg",
                "conversations": said("<image>\nWhat is it?", "Food.", "Is it well lit?", "Yes, from the left."),
            },
            {"id": "text", "conversations": said("Two and two?", "Four.")},
        ],
    )


def write_shard(path: Path, members: Iterable[tuple[str, bytes]], mode: str = "w") -> None:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, data in members:
            header = tarfile.TarInfo(name)
            header.size = len(data)
            archive.addfile(header, io.BytesIO(data))


def make_shards(root: Path) -> None:
    """Two shards: text, caption, a photo alone, and a sample without a photo."""
    root.mkdir(parents=True, exist_ok=True)
    caption = {"caption": "a red door", "key": "00000001", "status": "success"}
    write_shard(
        root / "00000.tar",
        [
            ("00000000.jpg", photo_bytes(0)),
            ("00000000.txt", b"a cat on a wall\n"),
            ("00000000.json", b'{"caption": "not read"}'),
            ("00000001.jpg", photo_bytes(1)),
            ("00000001.json", json.dumps(caption).encode()),
        ],
    )
    write_shard(
        root / "00001.tar",
        [("./part/2.JPG", photo_bytes(2)), ("./part/2.seg.png", b"mask"), ("./part/3.txt", b"no photo")],
    )


def _write_csv(path: Path, header: Sequence[object], rows: Iterable[Sequence[object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as handle:
        writer = csv.writer(handle)
        writer.writerow(header)
        writer.writerows(rows)
