"""A real tritonserver serves the bundle; clients get the scores and words of the same process, and clear errors."""

from __future__ import annotations

import importlib.util
import io
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from calm_runtime import Calm
from calm_runtime.errors import (
    CalmError,
    PhotoNotFound,
    PhotoTooSmall,
    PhotoUnreadable,
    RemoteError,
    UsageError,
)
from calm_runtime.remote import RemoteCalm
from calm_runtime.triton_config import TritonOptions
from calm_runtime.triton_repository import build
from calm_runtime.triton_server import Addresses, TritonServer
from calm_runtime.triton_wire import BATCH, INTERACTIVE, error_from_text, error_text

TOLERANCE = 1e-3
FREE_PORTS = Addresses(http_port=0, grpc_port=0, metrics_port=0)

installed = shutil.which("tritonserver") or importlib.util.find_spec("pytriton")
pytestmark = [
    # Continuous integration installs the server, so that nothing is skipped there unnoticed.
    pytest.mark.skipif(not installed and not os.environ.get("CI"), reason="pip install calm-edge[triton-server]"),
    pytest.mark.timeout(180),
]


@pytest.fixture(scope="module")
def repository(nano_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("triton") / "repo"
    build(nano_bundle, output)
    return output


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def server(repository: Path, home: Path) -> Iterator[TritonServer]:
    """As somebody runs it for the first time who wants telemetry: the models themselves have to turn it off."""
    with ExitStack() as stack:
        with pytest.MonkeyPatch.context() as patch:
            for name in ("CI", "GITHUB_ACTIONS", "XDG_CACHE_HOME"):
                patch.delenv(name, raising=False)
            patch.setenv("HOME", str(home))
            patch.setenv("ORT_DISABLE_TELEMETRY", "0")
            running = stack.enter_context(TritonServer(repository, FREE_PORTS))
        yield running


@pytest.fixture(scope="module")
def remote(server: TritonServer) -> Iterator[RemoteCalm]:
    with RemoteCalm(server.url) as client:
        yield client


@pytest.fixture
def plain_client(server: TritonServer) -> Any:
    import tritonclient.grpc

    return tritonclient.grpc.InferenceServerClient(f"127.0.0.1:{server.addresses.grpc_port}")


def new_photo(seed: int) -> bytes:
    """A photo no other test sends, so that no cached answer hides the models."""
    pixels = np.random.default_rng(seed).integers(0, 256, (90 + seed % 7, 120, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG")
    return stream.getvalue()


def photo_input(*photos: bytes) -> Any:
    import tritonclient.grpc

    tensor = tritonclient.grpc.InferInput("photo", [len(photos), 1], "BYTES")
    tensor.set_data_from_numpy(np.array([[photo] for photo in photos], np.object_))
    return tensor


def test_the_server_gives_the_scores_of_this_process(
    remote: RemoteCalm, calm: Calm, example_photos: list[Path]
) -> None:
    for photo in example_photos:
        here, there = calm.score(photo), remote.score(photo)
        assert abs(here.mean - there.mean) <= TOLERANCE, photo
        assert abs(here.std - there.std) <= TOLERANCE
        assert abs(here.technical - there.technical) <= TOLERANCE
        assert abs(here.percentile - there.percentile) <= 100 * TOLERANCE
        assert there.frame == pytest.approx(here.frame, abs=1e-6)
        assert there.histogram == pytest.approx(here.histogram, abs=TOLERANCE)
        assert (there.scale, there.model, there.bundle) == (here.scale, here.model, here.bundle)
        assert there.attributes.keys() == here.attributes.keys()
        for name, reading in here.attributes.items():
            assert there.attributes[name].scale == reading.scale
            assert there.attributes[name].probabilities == pytest.approx(reading.probabilities, abs=TOLERANCE)


def test_a_server_that_scored_left_nothing_of_onnx_runtimes_telemetry(
    remote: RemoteCalm, home: Path, example_photos: list[Path]
) -> None:
    remote.score(example_photos[0])
    assert not [path for path in home.rglob("*") if path.name.lower() in ("microsoft", ".onnxruntime")]


def test_a_frame_is_left_out_there_too(remote: RemoteCalm, calm: Calm, example_photos: list[Path]) -> None:
    stream = io.BytesIO()
    with Image.open(example_photos[0]) as picture:
        ImageOps.expand(picture, (80, 60, 80, 110), "black").save(stream, "PNG")
    here, there = calm.score(stream.getvalue()), remote.score(stream.getvalue())
    assert here.frame is not None
    assert there.frame == pytest.approx(here.frame, abs=1e-6)
    assert abs(here.mean - there.mean) <= TOLERANCE


def test_a_plain_tritonclient_needs_only_the_bytes(plain_client: Any, calm: Calm, example_photos: list[Path]) -> None:
    reply = plain_client.infer("calm_score", [photo_input(example_photos[0].read_bytes())])
    assert reply.as_numpy("score").shape == (1, 1)
    assert reply.as_numpy("histogram").shape == (1, 10)
    assert reply.as_numpy("attributes").shape == (1, len(calm.bundle.manifest.attributes), 3)
    assert reply.as_numpy("bundle")[0, 0].decode() == calm.bundle.digest
    assert abs(reply.as_numpy("score").item() - calm.score(example_photos[0]).mean) <= TOLERANCE


def test_several_photos_in_one_request(plain_client: Any, calm: Calm, example_photos: list[Path]) -> None:
    photos = [path.read_bytes() for path in example_photos[:3]]
    scores = plain_client.infer("calm_score", [photo_input(*photos)]).as_numpy("score")
    assert scores[:, 0] == pytest.approx([calm.score(photo).mean for photo in photos], abs=TOLERANCE)


def test_in_a_batch_only_the_bad_photo_fails(remote: RemoteCalm, plain_client: Any, calm: Calm) -> None:
    photos = [new_photo(seed) for seed in range(24)]
    photos[5] = b"this is no photo"
    with ThreadPoolExecutor(len(photos)) as pool:
        answers = [pool.submit(remote.score, photo) for photo in photos]
    with pytest.raises(PhotoUnreadable, match="not a picture"):
        answers[5].result()
    for index, (photo, answer) in enumerate(zip(photos, answers, strict=True)):
        if index != 5:
            assert abs(answer.result().mean - calm.score(photo).mean) <= TOLERANCE
    stats = plain_client.get_inference_statistics("calm_vision_encoder").model_stats[0]
    assert max(batch.batch_size for batch in stats.batch_stats) > 1, "photos that wait together run together"


def test_many_photos_keep_their_order_and_their_errors(
    remote: RemoteCalm, calm: Calm, example_photos: list[Path], tmp_path: Path
) -> None:
    missing = tmp_path / "missing.jpg"
    photos = [*example_photos[:4], missing, *example_photos[4:8]]
    results = list(remote.score_many(photos, batch_size=4))
    assert [result.path for result in results] == [str(photo) for photo in photos]
    assert isinstance(results[4].error, PhotoNotFound)
    assert [r.score.mean for r in results if r.score] == pytest.approx(
        [calm.score(photo).mean for photo in photos if photo != missing], abs=TOLERANCE
    )


def test_a_bad_photo_is_named_with_its_cause(remote: RemoteCalm, example_photos: list[Path], tmp_path: Path) -> None:
    truncated = tmp_path / "half a photo.jpg"
    truncated.write_bytes(example_photos[0].read_bytes()[:2000])
    with pytest.raises(PhotoUnreadable, match=r"half a photo\.jpg.*truncated"):
        remote.score(truncated)
    tiny = io.BytesIO()
    Image.new("RGB", (8, 8)).save(tiny, "PNG")
    with pytest.raises(PhotoTooSmall):
        remote.score(tiny.getvalue())
    with pytest.raises(PhotoUnreadable):
        remote.comment(b"no photo")


def test_the_same_photo_again_comes_from_the_cache(remote: RemoteCalm, plain_client: Any) -> None:
    def hits() -> int:
        return int(plain_client.get_inference_statistics("calm_score").model_stats[0].inference_stats.cache_hit.count)

    photo, before = new_photo(1000), hits()
    first = remote.score(photo)
    assert hits() == before
    assert remote.score(photo).mean == first.mean
    assert hits() == before + 1


def test_a_comment_streams_the_words_of_this_process(
    remote: RemoteCalm, calm: Calm, example_photos: list[Path]
) -> None:
    pieces = list(remote.comment(example_photos[0]))
    assert len(pieces) > 1
    assert "".join(pieces) == "".join(calm.comment(example_photos[0]))


def test_a_question_and_a_limit_reach_the_model(remote: RemoteCalm, calm: Calm, example_photos: list[Path]) -> None:
    there = "".join(remote.answer(example_photos[0], "ask", "Is the horizon straight?", max_new_tokens=6))
    here = calm.look(example_photos[0]).answer("ask", "Is the horizon straight?", max_new_tokens=6)
    assert there == "".join(here)


@pytest.mark.parametrize(
    ("task", "question", "cause"),
    [("ask", None, "needs a question"), ("sing", None, "no task 'sing'"), ("score", None, "calm_score")],
)
def test_wrong_use_is_told_before_the_first_word(
    remote: RemoteCalm, example_photos: list[Path], task: str, question: str | None, cause: str
) -> None:
    with pytest.raises(UsageError, match=cause):
        remote.answer(example_photos[0], task, question)


def test_a_reader_who_leaves_does_not_block_the_next(remote: RemoteCalm, example_photos: list[Path]) -> None:
    abandoned = remote.comment(example_photos[0])
    next(abandoned)
    abandoned.close()  # type: ignore[attr-defined]
    assert "".join(remote.comment(example_photos[1]))


def test_timeouts_work(server: TritonServer) -> None:
    with RemoteCalm(server.url, timeout=0.0005) as hasty, pytest.raises(RemoteError, match="no answer within"):
        hasty.score(new_photo(2000))


def test_a_full_queue_turns_photos_away_and_interactive_ones_overtake(nano_bundle: Path, tmp_path: Path) -> None:
    options = TritonOptions(max_batch=1, queue_size=30, batch_delay_us=0)
    build(nano_bundle, tmp_path / "repo", options=options)
    finished: list[int] = []
    with TritonServer(tmp_path / "repo", FREE_PORTS) as narrow, RemoteCalm(narrow.url) as client:
        client.score(new_photo(2999))  # connected, and the server's part of the labels known
        with ThreadPoolExecutor(80) as pool:

            def score(seed: int, priority: int) -> None:
                client._score(photos[seed], priority)
                finished.append(seed)

            photos = [new_photo(3000 + seed) for seed in range(80)]
            answers = [pool.submit(score, seed, BATCH) for seed in range(80)]
            errors = [answer.exception() for answer in answers]
            refused = [error for error in errors if error is not None]
            assert refused and all(
                isinstance(error, RemoteError) and "queue is full" in str(error) for error in refused
            )
            assert finished, "those that found a place are served"

            finished.clear()
            photos = [new_photo(4000 + seed) for seed in range(26)]
            waiting = [pool.submit(score, seed, BATCH) for seed in range(25)]
            time.sleep(0.1)
            pool.submit(score, 25, INTERACTIVE).result()
            for answer in waiting:
                answer.result()
    assert finished.index(25) < 20


def test_clients_cannot_map_memory_or_change_models(plain_client: Any) -> None:
    from tritonclient.utils import InferenceServerException

    with pytest.raises(InferenceServerException):
        plain_client.register_system_shared_memory("region", "/region", 64)
    with pytest.raises(InferenceServerException):
        plain_client.unload_model("calm_score")


def test_a_taken_port_is_named(repository: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(UsageError, match=f"127.0.0.1:{port}"):
            TritonServer(repository, Addresses(http_port=port, grpc_port=0, metrics_port=0))


def test_a_dead_server_is_a_clear_error(example_photos: list[Path]) -> None:
    with RemoteCalm("grpc://127.0.0.1:1", timeout=5) as nobody:
        with pytest.raises(RemoteError, match="does not answer"):
            nobody.score(example_photos[0])
        with pytest.raises(RemoteError, match="does not answer"):
            nobody.comment(example_photos[0])


def test_serve_stops_cleanly_when_asked(repository: Path) -> None:
    command = [sys.executable, "-c", "from calm_runtime.cli import main; main()", "triton", "serve", str(repository)]
    ports = ["--http-port", "0", "--grpc-port", "0", "--metrics-port", "0"]
    with subprocess.Popen([*command, *ports], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert "Serving" in line
        port = int(line.split("grpc://127.0.0.1:")[1].split()[0])
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0


@pytest.mark.parametrize("error", [PhotoUnreadable("a.jpg: empty: copy it"), RemoteError("x"), UsageError("no")])
def test_errors_keep_type_and_text_across_the_wire(error: CalmError) -> None:
    received = error_from_text(f"in ensemble 'calm_score', {error_text(error)}")
    assert (type(received), str(received)) == (type(error), str(error))


def test_unknown_faults_do_not_leak_the_servers_paths() -> None:
    assert "/secret" not in error_text(OSError("cannot read /secret/model"))
