"""Every published form is read with exact values; faults name their file and line; nothing leads out of the folder."""

from __future__ import annotations

import logging
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from dataset_miniatures import (
    SPAQ_ROWS,
    make_aadb,
    make_ava,
    make_ava_captions,
    make_eva,
    make_flickr_aes,
    make_llava,
    make_para,
    make_pccd,
    make_photos,
    make_shards,
    make_spaq,
    make_tad66k,
    photo_bytes,
    write_json,
    write_lines,
    write_shard,
)

from calm_runtime.errors import DataError, PhotoTooLarge, PhotoUnreadable, UsageError
from calm_runtime.photo import PhotoLimits, load_photo
from calm_runtime.score import histogram_moments
from calm_train.datasets import DATASETS, CaptionedPhoto, Conversation, Photo, RatedPhoto, photo_input, read_dataset
from calm_train.datasets.ava import read_ava
from calm_train.datasets.histogram import rating_histogram
from calm_train.datasets.llava import SHAREGPT4V, SHAREGPT4V_PRETRAIN
from calm_train.datasets.records import TarMember, Turn
from calm_train.datasets.splits import drawn_split
from calm_train.datasets.tad66k import read_tad66k, tad66k_themes

MAKERS: dict[str, Callable[[Path], None]] = {
    "ava": make_ava,
    "ava-styles": make_ava,
    "ava-captions": make_ava_captions,
    "aadb": make_aadb,
    "eva": make_eva,
    "eva-raters": make_eva,
    "para": make_para,
    "para-raters": make_para,
    "flickr-aes": make_flickr_aes,
    "flickr-aes-raters": make_flickr_aes,
    "tad66k": make_tad66k,
    "pccd": make_pccd,
    "pccd-critiques": make_pccd,
    "spaq": make_spaq,
    "llava-json": make_llava,
    "llava-pretrain": make_llava,
    "sharegpt4v": lambda root: make_llava(root, SHAREGPT4V),
    "sharegpt4v-pt": lambda root: make_llava(root, SHAREGPT4V_PRETRAIN),
    "folder": lambda root: make_photos(root, ["a.jpg", "val/b.jpg", "test/deep/c.jpg", "other/d.jpg"]),
    "shards": make_shards,
}
# A file whose row gets the damage, the line or item that then is at fault, and the damage.
DAMAGE: dict[str, tuple[str, str, tuple[str, str]]] = {
    "ava": ("AVA.txt", "line 2", ("2 102 5 0 0", "2 102 five 0 0")),
    "ava-styles": ("style_image_lists/test.multilab", "line 1", ("1 0 1", "1 0 2")),
    "ava-captions": ("CLEAN_AVA_FULL_AFTER_SUBJECTIVE_CLEANING.json", "$.images[1]", ('"val"', '"dev"')),
    "aadb": ("imgListFiles_label/imgListTrainRegression_score.txt", "line 2", ("1.0", "1.5")),
    "eva": ("data/votes_filtered.csv", "line 3", ("C76=10=", "C76=11=")),
    "para": ("annotation/PARA-GiaaTrain.csv", "line 3", (",2.0", ",2.0,7")),
    "para-raters": ("annotation/PARA-Images.csv", "line 4", (",5.0,", ",nan,")),
    "flickr-aes": ("FLICKR-AES_image_score.txt", "line 3", (" 1.0", "")),
    "flickr-aes-raters": ("FLICKR-AES_image_labeled_by_each_worker.csv", "line 3", (", 4", ", ")),
    "tad66k": ("labels/merge/train.csv", "line 2", ("2.85", "2.85,1")),
    "pccd": ("raw.json", "item 2", ('"overall": "10"', '"overall": "10.5"')),
    "pccd-critiques": ("raw.json", "$[1].composition", ('" Balanced. "', "7")),
    "spaq": ("Annotations/MOS and Image attribute scores.csv", "line 4", ("100", "101")),
    "llava-pretrain": ("blip_laion_cc_sbu_558k.json", "item 1", (', {"from": "gpt", "value": "Food."}', "")),
}


@pytest.fixture(params=sorted(MAKERS))
def made(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Path]:
    MAKERS[request.param](tmp_path)
    return request.param, tmp_path


def rated(name: str, root: Path, split: str | None = None) -> dict[str, RatedPhoto]:
    return {Path(str(record.path)).name: record for record in read_dataset(name, root, split)}  # type: ignore[misc]


def test_every_form_is_registered_and_its_photos_can_be_decoded(made: tuple[str, Path]) -> None:
    name, root = made
    assert set(MAKERS) == set(DATASETS)
    kinds = {RatedPhoto: "ratings", CaptionedPhoto: "captions", Conversation: "conversations", Photo: "photos"}
    records = list(read_dataset(name, root))
    assert records
    for record in records:
        assert kinds[type(record)] == DATASETS[name].kind
        assert max(load_photo(photo_input(record.path)).size) == 64


def test_a_wrong_root_names_what_is_missing_and_the_layout(made: tuple[str, Path], tmp_path: Path) -> None:
    name, _ = made
    (tmp_path / "empty").mkdir()
    for root in (tmp_path / "empty", tmp_path / "nowhere"):
        with pytest.raises(DataError) as caught:
            list(read_dataset(name, root))
        assert str(root) in str(caught.value)
        assert name == "folder" or "expected" in str(caught.value)


@pytest.mark.parametrize("name", sorted(DAMAGE))
def test_a_malformed_row_names_its_file_and_line(name: str, tmp_path: Path) -> None:
    MAKERS[name](tmp_path)
    file, place, (before, after) = DAMAGE[name]
    content = (tmp_path / file).read_bytes().decode()
    assert content.count(before) >= 1
    head, _, tail = content.rpartition(before)
    (tmp_path / file).write_bytes((head + after + tail).encode())
    with pytest.raises(DataError) as caught:
        list(read_dataset(name, tmp_path))
    assert str(tmp_path / file) in str(caught.value)
    assert place in str(caught.value)
    assert "expected" in str(caught.value).lower()


@pytest.mark.parametrize("name", sorted(set(MAKERS) - {"folder", "shards"}))  # these two list what is there
def test_missing_photos_are_counted_in_one_warning(name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = tmp_path
    MAKERS[name](root)
    before = list(read_dataset(name, root))
    lost = before[0].path
    assert isinstance(lost, Path)
    lost.unlink()
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        after = list(read_dataset(name, root))
    assert after == [record for record in before if record.path != lost]
    warnings = [r.getMessage() for r in caplog.records if "photos are missing" in r.getMessage()]
    assert len(warnings) == 1
    assert lost.name in warnings[0]
    assert f"1 of {len({record.path for record in before})} " in warnings[0] or name.startswith("pccd")

    for record in before[1:]:
        assert isinstance(record.path, Path)
        record.path.unlink(missing_ok=True)
    with pytest.raises(DataError, match=r"none of the \d+ photos|no review"):
        list(read_dataset(name, root))


@pytest.mark.parametrize(
    ("name", "file", "before", "after"),
    [
        ("ava-captions", "CLEAN_AVA_FULL_AFTER_SUBJECTIVE_CLEANING.json", "102.jpg", "../102.jpg"),
        ("aadb", "imgListFiles_label/imgListTrainRegression_score.txt", "farm1_2_c_b.jpg", "/etc/passwd"),
        ("eva", "data/votes_filtered.csv", "106=", "../../106="),
        ("para", "annotation/PARA-GiaaTest.csv", "session2", ".."),
        ("flickr-aes", "FLICKR-AES_image_score.txt", "farm1_12_c_b.jpg", "C:secret.jpg"),
        ("tad66k", "labels/merge/test.csv", "hs_yin152947873.jpg", "..\\\\secret.jpg"),
        ("pccd", "raw.json", "16_ruins.jpg", "a/../../b.jpg"),
        ("spaq", "Annotations/MOS and Image attribute scores.csv", "00002.jpg", "./../00002.jpg"),
        ("llava-pretrain", "blip_laion_cc_sbu_558k.json", "coco/train2017", "coco/../../x"),
    ],
)
def test_names_that_lead_out_of_the_folder_are_refused(
    name: str, file: str, before: str, after: str, tmp_path: Path
) -> None:
    MAKERS[name](tmp_path)
    path = tmp_path / file
    path.write_bytes(path.read_bytes().replace(before.encode(), after.encode()))
    with pytest.raises(DataError, match="inside the data set's folder"):
        list(read_dataset(name, tmp_path))


def test_ava_histograms_means_and_test_list(tmp_path: Path) -> None:
    make_ava(tmp_path)
    photos = rated("ava", tmp_path)
    assert [p.mean for p in photos.values()] == [10.0, 3.0, 5.5]
    assert photos["101.jpg"].histogram == (0, 0, 0, 0, 0, 0, 0, 0, 0, 1)
    assert photos["102.jpg"].histogram == (0.5, 0, 0, 0, 0.5, 0, 0, 0, 0, 0)
    assert photos["103.jpg"].histogram == pytest.approx([0.1] * 10)
    assert photos["101.jpg"].path == tmp_path / "images" / "101.jpg"
    assert set(rated("ava", tmp_path, "train")) == {"101.jpg", "102.jpg"}
    assert set(rated("ava", tmp_path, "test")) == {"103.jpg"}
    with pytest.raises(UsageError, match="without a 'val' split"):
        read_dataset("ava", tmp_path, "val")
    write_lines(tmp_path / "own.txt", ["101"])
    own = read_ava(tmp_path, tmp_path / "own.txt")
    assert [p.split for p in own] == ["test", "train", "train"]


def test_ava_without_its_test_list_has_no_training_split(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make_ava(tmp_path)
    (tmp_path / "aesthetics_image_lists" / "generic_test.jpgl").unlink()
    assert {p.split for p in rated("ava", tmp_path).values()} == {None}
    assert "generic_test.jpgl" in caplog.text
    with pytest.raises(DataError, match="no photo of the split 'train'"):
        read_dataset("ava", tmp_path, "train")
    make_ava_captions(tmp_path / "captions")
    (tmp_path / "captions" / "aesthetics_image_lists" / "generic_test.jpgl").unlink()
    with pytest.raises(DataError, match=r"generic_test\.jpgl: no such file"):
        read_dataset("ava-captions", tmp_path / "captions")


def test_ava_without_votes_is_malformed(tmp_path: Path) -> None:
    make_ava(tmp_path)
    with (tmp_path / "AVA.txt").open("a") as handle:
        handle.write("\n4 104 0 0 0 0 0 0 0 0 0 0 0 0 1\n")
    with pytest.raises(DataError, match=r"AVA\.txt, line 5: expected at least one vote"):
        read_dataset("ava", tmp_path)


def test_ava_styles(tmp_path: Path) -> None:
    make_ava(tmp_path)
    records = list(read_dataset("ava-styles", tmp_path))
    assert [(r.texts, r.split) for r in records] == [  # type: ignore[union-attr]
        (("Rule of Thirds",), "train"),
        (("Complementary Colors",), "train"),
        (("Complementary Colors", "Rule of Thirds"), "test"),
    ]
    write_lines(tmp_path / "style_image_lists" / "train.lab", ["3"])
    with pytest.raises(DataError, match=r"train\.lab: expected 2 lines.*found 1"):
        read_dataset("ava-styles", tmp_path)


def test_ava_captions_leave_out_what_ava_tests_on(tmp_path: Path) -> None:
    make_ava_captions(tmp_path)
    records = list(read_dataset("ava-captions", tmp_path))
    assert [(Path(str(r.path)).name, r.texts, r.split) for r in records] == [  # type: ignore[union-attr]
        ("101.jpg", ("great colours!", "Nice depth of field."), "train"),
        ("102.jpg", ("too dark",), "val"),
    ]
    assert len(list(read_dataset("ava-captions", tmp_path, "val"))) == 1


def test_aadb(tmp_path: Path) -> None:
    make_aadb(tmp_path)
    photos = rated("aadb", tmp_path)
    assert [(p.mean, p.split) for p in photos.values()] == [
        (1.0, "train"), (10.0, "train"), (3.25, "val"), (5.5, "test"),
    ]  # fmt: skip
    assert set(rated("aadb", tmp_path, "test")) == {"0.500_farm1_4_e_b.jpg"}
    labels = tmp_path / "imgListFiles_label"
    (labels / "imgListTestNewRegression_score.txt").rename(labels / "imgListTestRegression_score.txt")
    assert rated("aadb", tmp_path) == photos


@pytest.mark.parametrize("quoted", [False, True])
def test_eva(tmp_path: Path, quoted: bool) -> None:
    make_eva(tmp_path, quoted)
    photos = rated("eva", tmp_path)
    assert photos["71.jpg"].mean == pytest.approx(5.5)
    # 0 -> 1, 10 -> 10, 5 -> 5.5, which the ratings 5 and 6 share
    assert photos["71.jpg"].histogram == pytest.approx([1 / 3, 0, 0, 0, 1 / 6, 1 / 6, 0, 0, 0, 1 / 3])
    assert photos["106.jpg"].mean == pytest.approx(8.2)
    votes = list(read_dataset("eva-raters", tmp_path))
    assert [(Path(str(v.path)).name, v.rater) for v in votes] == [  # type: ignore[union-attr]
        ("71.jpg", "E1773"), ("71.jpg", "C76"), ("106.jpg", "C76"), ("71.jpg", "C77"),
    ]  # fmt: skip
    assert [v.mean for v in votes] == pytest.approx([1, 10, 8.2, 5.5])  # type: ignore[union-attr]


def test_para(tmp_path: Path) -> None:
    make_para(tmp_path)
    photos = rated("para", tmp_path)
    assert [(p.mean, p.split) for p in photos.values()] == [(5.5, "train"), (5.5, "train"), (2.125, "test")]
    assert photos["iaa_pub2_.jpg"].histogram == (0.5, 0, 0, 0, 0, 0, 0, 0, 0, 0.5)
    assert photos["iaa_pub71_.jpg"].histogram == pytest.approx([0, 0.875, 0.125, 0, 0, 0, 0, 0, 0, 0])
    for photo in photos.values():
        assert histogram_moments(np.array(photo.histogram))[0] == pytest.approx(photo.mean)
    votes = list(read_dataset("para-raters", tmp_path))
    assert [(v.mean, v.rater, v.split) for v in votes] == [  # type: ignore[union-attr]
        (5.5, "A4174e8", "train"), (1.0, "A4174e8", "train"), (10.0, "A5b1c3d", "train"), (2.125, "A5b1c3d", "test"),
    ]  # fmt: skip


def test_flickr_aes(tmp_path: Path) -> None:
    make_flickr_aes(tmp_path)
    assert [p.mean for p in rated("flickr-aes", tmp_path).values()] == [1.0, 7.75, 10.0]
    votes = list(read_dataset("flickr-aes-raters", tmp_path))
    assert [(v.mean, v.rater) for v in votes] == [  # type: ignore[union-attr]
        (1.0, "A1H8Y5D87LY40S"), (7.75, "A1H8Y5D87LY40S"), (10.0, "A2SUAM1J3GNN3B"),
    ]  # fmt: skip


def test_tad66k_and_its_themes(tmp_path: Path) -> None:
    make_tad66k(tmp_path)
    photos = rated("tad66k", tmp_path)
    assert [p.mean for p in photos.values()] == pytest.approx([3.565, 10.0, 5.5])
    assert set(rated("tad66k", tmp_path, "test")) == {"hs_yin152947873.jpg"}
    assert tad66k_themes(tmp_path) == ["art", "sea"]
    assert [p.split for p in read_tad66k(tmp_path, theme="art")] == ["train", "test"]
    assert len(read_tad66k(tmp_path, theme="sea")) == 1
    with pytest.raises(DataError, match="no such file"):
        read_tad66k(tmp_path, theme="cats")
    with pytest.raises(DataError, match="inside the data set's folder"):
        read_tad66k(tmp_path, theme="../merge")


def test_pccd(tmp_path: Path) -> None:
    make_pccd(tmp_path)
    assert {name: p.mean for name, p in rated("pccd", tmp_path).items()} == {"14_winter-1.jpg": 8.6, "4_tower.jpg": 10}
    critiques = list(read_dataset("pccd-critiques", tmp_path))
    assert [len(c.texts) for c in critiques] == [7, 2]  # type: ignore[union-attr]
    assert critiques[1].texts == ("Balanced.", "Dark.")  # type: ignore[union-attr]


def test_spaq_as_csv_and_as_workbook(tmp_path: Path) -> None:
    make_spaq(tmp_path)
    photos = rated("spaq", tmp_path)
    assert [p.mean for p in photos.values()] == [1.0, 5.5, 10.0]
    openpyxl = pytest.importorskip("openpyxl")
    table = tmp_path / "Annotations" / "MOS and Image attribute scores.csv"
    table.unlink()
    book = openpyxl.Workbook()
    for row in SPAQ_ROWS:
        book.active.append(row)
    book.save(table.with_suffix(".xlsx"))
    assert rated("spaq", tmp_path) == photos
    book.active["B3"] = "unknown"
    book.save(table.with_suffix(".xlsx"))
    with pytest.raises(DataError, match=r"\.xlsx, line 3: expected MOS as a number of 0 to 100, found 'unknown'"):
        read_dataset("spaq", tmp_path)
    table.with_suffix(".xlsx").write_bytes(b"PK no workbook")
    with pytest.raises(DataError, match="expected an Excel workbook"):
        read_dataset("spaq", tmp_path)


def test_spaq_workbook_without_openpyxl_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_spaq(tmp_path)
    table = tmp_path / "Annotations" / "MOS and Image attribute scores.csv"
    table.rename(table.with_suffix(".xlsx"))
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    with pytest.raises(DataError, match=r"pip install openpyxl.*scores\.csv"):
        read_dataset("spaq", tmp_path)


def test_llava_conversations(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make_llava(tmp_path)
    summary, questions = read_dataset("llava-json", tmp_path)
    assert isinstance(summary, Conversation)
    assert isinstance(questions, Conversation)
    assert summary.turns == (
        Turn("human", "Render a clear and concise summary."),
        Turn("gpt", "a wide shot of a beach"),
    )
    assert [turn.text for turn in questions.turns] == ["What is it?", "Food.", "Is it well lit?", "Yes, from the left."]
    assert questions.path == tmp_path / "." / "coco/train2017/000000000009.jpg"
    assert "1 of 3 items have no image" in caplog.text
    write_json(tmp_path / "other.json", [])
    with pytest.raises(DataError, match="found blip_laion_cc_sbu_558k.json, other.json"):
        read_dataset("llava-json", tmp_path)


def test_broken_json_names_its_line(tmp_path: Path) -> None:
    make_llava(tmp_path)
    write_lines(tmp_path / "blip_laion_cc_sbu_558k.json", ["[", "{'id': 1}", "]"])
    with pytest.raises(DataError, match=r"558k\.json, line 2: expected JSON"):
        read_dataset("llava-pretrain", tmp_path)


def test_a_folder_keeps_val_and_test_apart(tmp_path: Path) -> None:
    MAKERS["folder"](tmp_path)
    names = {
        split: [str(r.path) for r in read_dataset("folder", tmp_path, split)] for split in ("train", "val", "test")
    }
    assert names["train"] == [str(tmp_path / "a.jpg"), str(tmp_path / "other" / "d.jpg")]
    assert names["val"] == [str(tmp_path / "val" / "b.jpg")]
    assert names["test"] == [str(tmp_path / "test" / "deep" / "c.jpg")]


def test_shards_stream_photos_from_the_archive(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make_shards(tmp_path)
    before = sorted(tmp_path.iterdir())
    samples = list(read_dataset("shards", tmp_path))
    assert sorted(tmp_path.iterdir()) == before
    assert [s.texts for s in samples] == [("a cat on a wall",), ("a red door",), ()]  # type: ignore[union-attr]
    assert [photo_input(s.path) for s in samples] == [photo_bytes(n) for n in range(3)]
    assert str(samples[2].path) == f"{tmp_path / '00001.tar'}:part/2.JPG"
    assert "1 of 4 samples have no photo" in caplog.text
    assert len(list(read_dataset("shards", tmp_path / "00000.tar"))) == 2


def test_a_tar_member_is_bounded_and_noticed_when_cut(tmp_path: Path) -> None:
    make_shards(tmp_path)
    member = next(iter(read_dataset("shards", tmp_path))).path
    assert isinstance(member, TarMember)
    with pytest.raises(PhotoTooLarge, match="00000000.jpg"):
        member.read(PhotoLimits(max_bytes=member.size - 1))
    with member.archive.open("r+b") as handle:
        handle.truncate(member.offset + 1)
    with pytest.raises(PhotoUnreadable, match="ends too early"):
        member.read()


def _link(name: str, target: str) -> tarfile.TarInfo:
    header = tarfile.TarInfo(name)
    header.type, header.linkname = tarfile.SYMTYPE, target
    return header


def test_hostile_and_broken_shards_are_refused(tmp_path: Path) -> None:
    shard = tmp_path / "s.tar"

    def refused(match: str) -> None:
        with pytest.raises(DataError, match=match) as caught:
            list(read_dataset("shards", shard))
        assert str(shard) in str(caught.value)

    for name in ("../out.jpg", "/etc/0.jpg", "a/../../b.jpg"):
        write_shard(shard, [(name, photo_bytes(0))])
        refused("inside the data set's folder")
    with tarfile.open(shard, "w") as archive:
        archive.addfile(_link("0.jpg", "/etc/passwd"))
    refused("found a link or device")
    write_shard(shard, [("0.jpg", photo_bytes(0))], "w:gz")
    refused("uncompressed tar")
    write_shard(shard, [("0.jpg", photo_bytes(0)), ("0.png", photo_bytes(1))])
    refused("one photo per key")
    write_shard(shard, [("0.jpg", photo_bytes(0)), ("0.json", b'{"caption": 3}')])
    refused('a text as "caption"')
    write_shard(shard, [("0.jpg", photo_bytes(0)), ("0.txt", b"\xff\xfe\xff")])
    refused("UTF-8")
    write_shard(shard, [("0.jpg", photo_bytes(0)), ("0.txt", b"a" * 1_000_001)])
    refused("the limit is 1,000,000")
    write_shard(shard, [("0.txt", b"words")])
    refused("hold no photo")
    write_shard(shard, [("0.jpg", photo_bytes(0))])
    shard.write_bytes(shard.read_bytes()[:700])
    refused("ends too early")


def test_a_drawn_split_depends_on_the_name_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make_photos(tmp_path / "40K", [f"{n}.jpg" for n in range(200)])
    write_lines(tmp_path / "FLICKR-AES_image_score.txt", [f"{n}.jpg 0.5" for n in range(200)])
    parts = {split: set(rated("flickr-aes", tmp_path, split)) for split in ("train", "val", "test")}
    assert "published without splits" in caplog.text
    assert len(set.union(*parts.values())) == sum(map(len, parts.values())) == 200
    assert 140 <= len(parts["train"]) <= 180
    for split, names in parts.items():
        assert {drawn_split(Path("/elsewhere") / name) for name in names} == {split}
        assert {drawn_split(TarMember(Path("x.tar"), f"part/{name}", 0, 1)) for name in names} == {split}


def test_unknown_names_are_wrong_use(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no data set 'avaa'; choose one of ava"):
        read_dataset("avaa", tmp_path)
    with pytest.raises(UsageError, match="no split 'dev'"):
        read_dataset("ava", tmp_path, "dev")


def test_tables_with_foreign_content_are_data_errors(tmp_path: Path) -> None:
    make_tad66k(tmp_path)
    table = tmp_path / "labels" / "merge" / "train.csv"
    for content, match in (
        (b"", r"train\.csv: is empty"),
        (b"name,score\r\na.jpg,1\r\n", r"line 1: expected the columns image, score; no image"),
        (b"image,score\r\n\xff\xfe.jpg,1\r\n", r"train\.csv, from line \d: expected UTF-8"),
        (b'image,score\r\n"a"b.jpg,1\r\n', r"train\.csv, line 2: expected a CSV row"),
    ):
        table.write_bytes(content)
        with pytest.raises(DataError, match=match):
            read_dataset("tad66k", tmp_path)


def test_histograms_keep_the_mean_of_the_votes() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        votes = [(float(rating), float(weight)) for rating, weight in zip(rng.uniform(1, 10, 9), rng.uniform(0, 5, 9))]
        histogram = rating_histogram(votes)
        mean = sum(r * w for r, w in votes) / sum(w for _, w in votes)
        assert sum(histogram) == pytest.approx(1)
        assert histogram_moments(np.array(histogram))[0] == pytest.approx(mean)


@pytest.mark.parametrize(
    "make",
    [
        lambda: RatedPhoto(Path("a.jpg"), 0.5),
        lambda: RatedPhoto(Path("a.jpg"), float("nan")),
        lambda: RatedPhoto(Path("a.jpg"), 5.0, (0.5, 0.5)),
        lambda: RatedPhoto(Path("a.jpg"), 5.0, (0.2,) * 10),
        lambda: RatedPhoto(Path("a.jpg"), 5.0, split="dev"),
        lambda: Conversation(Path("a.jpg"), ()),
        lambda: Conversation(Path("a.jpg"), (Turn("gpt", "Yes."), Turn("human", "Is it?"))),
        lambda: Conversation(Path("a.jpg"), (Turn("human", "Is it?"),)),
    ],
)
def test_records_are_checked_when_made(make: Callable[[], object]) -> None:
    with pytest.raises(DataError, match=r"a\.jpg: expected"):
        make()
