"""Profiles learn a taste, travel as one file, and are refused when they are not what they say."""

import json
import shutil
from dataclasses import replace

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from scipy.stats import spearmanr

from calm_runtime import Calm
from calm_runtime.bundle import MANIFEST, encode_manifest, open_bundle, sign_manifest
from calm_runtime.cli.app import calm as command
from calm_runtime.errors import DataError, ProfileError
from calm_runtime.in_context import InContextReader, choose_examples, pack_cache, standardise
from calm_runtime.llm import KvCache
from calm_runtime.profile import PersonalScorer, build_profile, load_profile
from calm_runtime.prompt import PROMPTS
from calm_runtime.ratings import PhotoRating, read_ratings, to_score_scale


@pytest.fixture(scope="module")
def lightness_ladder(tmp_path_factory, example_folder):
    """One scene at many exposures: brightness is what a rater of these photos can prefer."""
    folder = tmp_path_factory.mktemp("ladder")
    paths = []
    for name in ("coffee", "cat"):
        with Image.open(example_folder / f"{name}.jpg") as photo:
            photo.thumbnail((320, 320))
            pixels = np.asarray(photo.convert("RGB"), np.float64) / 255
        for step, gamma in enumerate(np.geomspace(0.4, 2.5, 9)):
            path = folder / f"{name}{step}.png"
            Image.fromarray((255 * pixels**gamma).astype(np.uint8)).save(path)
            paths.append((path, -float(gamma)))
    return paths


@pytest.fixture(scope="module")
def reading(nano_bundle, tmp_path_factory):
    """A model that is asked to read examples, whether or not it was taught to: the arithmetic is the same."""
    folder = tmp_path_factory.mktemp("reading") / "bundle"
    shutil.copytree(nano_bundle, folder)
    manifest = open_bundle(nano_bundle).manifest
    asked = msgspec.structs.replace(manifest, prompts={**PROMPTS, **manifest.prompts})
    (folder / MANIFEST).write_bytes(encode_manifest(sign_manifest(asked)))
    with Calm.load(folder, threads=2) as model:
        yield model


def ratings_csv(folder, rows):
    file = folder / "ratings.csv"
    file.write_text("\n".join(["path,rating", *(f"{path},{rating}" for path, rating in rows)]) + "\n")
    return file


@pytest.mark.parametrize("sign", [1, -1], ids=["likes bright", "likes dark"])
def test_opposite_tastes_are_learnt_from_ten_ratings(calm: Calm, lightness_ladder, sign):
    rated = [PhotoRating(path, sign * value) for path, value in lightness_ladder[::2] + lightness_ladder[1:3]]
    profile, errors = build_profile(calm, rated)
    assert not errors
    unseen = lightness_ladder[3::2]
    personal = [scored.score.personal for scored in PersonalScorer(calm, profile).score_many(p for p, _ in unseen)]
    assert all(1 <= value <= 10 for value in personal)
    assert spearmanr(personal, [sign * value for _, value in unseen]).statistic > 0.7


def test_a_profile_survives_its_file_and_gives_the_same_scores(calm: Calm, lightness_ladder, tmp_path):
    profile, _ = build_profile(calm, [PhotoRating(*row) for row in lightness_ladder[:6]])
    profile.save(tmp_path / "me.calmprofile")
    again = load_profile(tmp_path / "me.calmprofile")
    assert again.info == profile.info
    photo = lightness_ladder[8][0]
    assert PersonalScorer(calm, again).score(photo).personal == PersonalScorer(calm, profile).score(photo).personal
    assert PersonalScorer(calm, again).score(photo).mean == pytest.approx(calm.score(photo).mean, abs=1e-5)


def test_every_changed_byte_is_refused(calm: Calm, lightness_ladder, tmp_path):
    file = tmp_path / "me.calmprofile"
    build_profile(calm, [PhotoRating(*row) for row in lightness_ladder[:4]])[0].save(file)
    data = file.read_bytes()
    for position in np.linspace(0, len(data) - 1, 60).astype(int):
        changed = bytearray(data)
        changed[position] ^= 0x55
        file.write_bytes(changed)
        with pytest.raises(ProfileError):
            load_profile(file)
    for content in (b"", data[: len(data) // 2], data + b"x", b"\x00" * 5_000_000):
        file.write_bytes(content)
        with pytest.raises(ProfileError):
            load_profile(file)


def test_a_profile_of_an_older_format_is_refused_with_the_command(calm: Calm, lightness_ladder, tmp_path):
    profile, _ = build_profile(calm, [PhotoRating(*row) for row in lightness_ladder[:4]])
    file = tmp_path / "me.calmprofile"
    replace(profile, info=msgspec.structs.replace(profile.info, format=5)).save(file)
    with pytest.raises(ProfileError, match=f"calm profile build RATINGS.CSV -o {file}"):
        load_profile(file)


def test_a_profile_of_another_bundle_is_refused(calm: Calm, lightness_ladder):
    profile, _ = build_profile(calm, [PhotoRating(*row) for row in lightness_ladder[:4]])
    foreign = replace(profile, info=msgspec.structs.replace(profile.info, bundle="0" * 64))
    with pytest.raises(ProfileError, match="build it again"):
        PersonalScorer(calm, foreign)


def test_examples_in_the_prompt_are_read_once_and_rate_as_a_whole_prompt_would(reading: Calm, lightness_ladder):
    reader = reading.in_context
    assert reader.most_examples >= 30
    pixels = np.stack([reading.decode(path)[0] for path, _ in lightness_ladder[:5]])
    aligned = reading.see(pixels).aligned
    queries, opinion = reader.queries(aligned.image_embeds), standardise([1, 2, 3, 4])
    cache = reader.read(queries[:4], opinion)
    rated = reader.rate(aligned.image_embeds[4:], cache)
    # The same as one prompt: the fifth photo as a fifth example, stopped before its rating.
    whole = reader.read(queries, np.append(opinion, 0.0))
    segment = (whole.length - 1) // 5
    assert cache.length == 1 + 4 * segment
    for early, late in zip(cache.layers, whole.layers, strict=True):
        for one, other in zip(early, late, strict=True):
            assert np.allclose(one, other[:, :, : cache.length], atol=2e-3)
    again = reader.rate(aligned.image_embeds[4:], reader.unpack(pack_cache(cache)))
    assert np.isfinite(rated).all()
    assert again == pytest.approx(rated, abs=0.02)  # half precision in the file
    assert reader.rate(aligned.image_embeds[:3], cache)[1] == pytest.approx(
        reader.rate(aligned.image_embeds[1:2], cache)[0], abs=1e-6
    )


def test_diverse_examples_are_chosen_when_not_all_fit():
    rng = np.random.default_rng(0)
    looks = np.concatenate([rng.normal(0, 0.01, (50, 4)), rng.normal(0, 0.01, (3, 4)) + 5])
    ratings = np.concatenate([np.zeros(50), np.ones(3)])
    ratings[7] = -3
    chosen = choose_examples(looks, ratings, 5)
    assert chosen == sorted(set(chosen))
    assert 7 in chosen  # the one rating that differs
    assert any(row >= 50 for row in chosen)  # the photos that look different
    assert choose_examples(looks[:4], ratings[:4], 5) == [0, 1, 2, 3]
    assert choose_examples(looks, ratings, 0) == []


class KnowingReader(InContextReader):
    """Rates by what the photos hold, as a model that reads a person well."""

    def read(self, queries, standardised):
        assert len(queries) == len(standardised)
        return KvCache((), len(queries))

    def rate(self, image_embeds, cache):
        assert cache.length + len(image_embeds) == 20  # the others, never itself
        return image_embeds[:, 0, 0].astype(np.float64)


def test_in_context_reading_counts_as_far_as_it_has_proved_itself(reading: Calm):
    ratings = standardise(np.tile([1.0, 2, 3, 4], 5))
    queries = np.repeat(ratings[:, None, None], 24, axis=1).astype(np.float32)
    reader = KnowingReader(reading.in_context.llm, reading.in_context.text, reading.in_context.manifest)
    assert 0.35 < reader.earned_weight(queries, ratings) < 0.5
    reader_of_noise = np.random.default_rng(0).normal(size=queries.shape).astype(np.float32)
    assert reader.earned_weight(reader_of_noise, ratings) < 0.1
    assert reader.earned_weight(-queries, ratings) == 0
    assert reader.earned_weight(0 * queries, ratings) == 0
    assert reader.earned_weight(queries[:4], ratings[:4]) == 0  # too few to prove anything


def with_examples(calm: Calm, profile, rated):
    """The profile as if the reading in context had earned its place."""
    reader = calm.in_context
    aligned = calm.see(np.stack([calm.decode(row.path).pixels for row in rated])).aligned
    cache = reader.read(reader.queries(aligned.image_embeds), standardise([row.rating for row in rated]))
    info = msgspec.structs.replace(profile.info, examples=len(rated), context_weight=0.3)
    return replace(profile, info=info, context=pack_cache(cache))


def test_a_profile_with_examples_scores_the_same_from_its_file(reading: Calm, lightness_ladder, tmp_path):
    rated = [PhotoRating(*row) for row in lightness_ladder[:6]]
    plain = build_profile(reading, rated)[0]
    profile = with_examples(reading, plain, rated)
    profile.save(tmp_path / "me.calmprofile")
    again = load_profile(tmp_path / "me.calmprofile")
    assert again.info.examples == 6
    photo = lightness_ladder[3][0]
    personal = PersonalScorer(reading, again).score(photo).personal
    assert personal == pytest.approx(PersonalScorer(reading, profile).score(photo).personal, abs=1e-4)
    assert personal != pytest.approx(PersonalScorer(reading, plain).score(photo).personal, abs=1e-4)


def test_examples_of_another_model_are_refused(reading: Calm, lightness_ladder):
    rated = [PhotoRating(*row) for row in lightness_ladder[:4]]
    profile = with_examples(reading, build_profile(reading, rated)[0], rated)
    PersonalScorer(reading, profile)
    name = next(iter(profile.context))
    for context in ({**profile.context, name: profile.context[name][:, :, :-1]},
                    {**profile.context, name: profile.context[name][..., :-1]},
                    {k: v for k, v in profile.context.items() if k != name}):  # fmt: skip
        with pytest.raises(ProfileError, match="build it again"):
            PersonalScorer(reading, replace(profile, context=context))


def test_too_few_equal_or_unreadable_ratings_are_explained(calm: Calm, lightness_ladder, tmp_path):
    good = [PhotoRating(*row) for row in lightness_ladder[:3]]
    broken = PhotoRating(tmp_path / "none.jpg", 3.0)
    profile, errors = build_profile(calm, [*good, broken])
    assert profile.info.ratings == 3
    assert "none.jpg" in str(errors[0])
    with pytest.raises(ProfileError, match="at least 3"):
        build_profile(calm, [*good[:2], broken])
    with pytest.raises(ProfileError, match="equal"):
        build_profile(calm, [PhotoRating(r.path, 2.0) for r in good])
    with pytest.raises(ProfileError, match="beyond the scale"):
        build_profile(calm, good, scale=(1, 5))


def test_the_commands_build_show_and_score(lightness_ladder, tmp_path):
    file = ratings_csv(tmp_path, [(path, 3 + value) for path, value in lightness_ladder[:5]])
    runner = CliRunner()
    output = str(tmp_path / "me.calmprofile")
    built = runner.invoke(command, ["profile", "build", str(file), "-o", output], standalone_mode=False)
    assert built.return_value == 0, built.output
    assert "Not yet useful: with 5 ratings" in built.output
    assert "Rate 5 more" in built.output
    shown = runner.invoke(command, ["profile", "show", output], standalone_mode=False)
    info = json.loads(shown.stdout)
    assert info["ratings"] == 5
    assert set(info["worth"]) == {"profile", "base", "error"}
    arguments = ["score", "--json", "--profile", output, str(lightness_ladder[0][0])]
    scored = json.loads(runner.invoke(command, arguments, standalone_mode=False).stdout)
    assert list(scored)[:3] == ["path", "score", "personal"]
    table = runner.invoke(command, ["score", "--profile", output, str(lightness_ladder[0][0])], standalone_mode=False)
    assert "yours" in table.stdout


def test_faulty_rating_files_name_the_line(tmp_path):
    assert to_score_scale(3.0, 1, 5) == 5.5
    cases = {"path,stars\na.jpg,3": "column rating", "path,rating\na.jpg,good": ":2: rating 'good'",
             "path,rating\n,3": ":2: the path", "path,rating\n": "no rating", "path,rating\na.jpg,inf": "finite"}  # fmt: skip
    for text, message in cases.items():
        file = tmp_path / "r.csv"
        file.write_text(text)
        with pytest.raises(DataError, match=message):
            read_ratings(file)
    with pytest.raises(DataError, match="cannot be read"):
        read_ratings(tmp_path / "missing.csv")
    (tmp_path / "bom.csv").write_bytes("\ufeffpath, rating\nsub/a.jpg, 4\n".encode())
    assert read_ratings(tmp_path / "bom.csv") == [PhotoRating(tmp_path / "sub" / "a.jpg", 4.0)]
