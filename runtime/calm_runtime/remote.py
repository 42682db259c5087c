"""A Triton server that serves a bundle, with the same calls as `Calm`. Needs tritonclient; loads no model."""

from __future__ import annotations

import json
import queue
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any, Self

import numpy as np

from calm_runtime.batch import Scored
from calm_runtime.errors import CalmError, EngineMissing, RemoteError, UsageError
from calm_runtime.photo import PhotoLimits, photo_name, read_photo
from calm_runtime.score import AttributeReading, Score
from calm_runtime.triton_wire import BATCH, INTERACTIVE, SCORE_MODEL, TEXT_MODEL, error_from_text

Photo = str | Path | bytes
SCHEME = "grpc://"
_OUTPUTS = ("score", "technical", "percentile", "std", "histogram", "frame", "attributes", "model", "bundle")


@dataclass(frozen=True)
class _Labels:
    """What names the numbers of a score: read from the server, so that it always fits the served bundle."""

    scale: tuple[int, int]
    attributes: tuple[tuple[str, str, tuple[str, ...]], ...]


class RemoteCalm:
    """Scores and words from a Triton server. Nothing is sent before the first call; safe to use from several threads.

    url: "grpc://host:port". timeout: seconds until an answer, or the next piece of a text, must have come.
    Every call raises PhotoError (this photo), RemoteError (server, connection, timeout, queue full) or EngineError
    (the server's model failed). The constructor raises UsageError (not such a url) or EngineMissing (no tritonclient).
    """

    def __init__(self, url: str, timeout: float = 60.0, limits: PhotoLimits | None = None) -> None:
        host, _, port = url.removeprefix(SCHEME).rpartition(":")
        if not url.startswith(SCHEME) or not host or not port.isdigit():
            raise UsageError(
                f"{url!r} is not a server's address; write grpc://host:port, for example grpc://127.0.0.1:8001"
            )
        if timeout <= 0:
            raise UsageError(f"timeout must be above 0, not {timeout}")
        self.url = url
        self.timeout = timeout
        self.limits = limits or PhotoLimits()
        self._grpc = _tritonclient()
        self._client = self._connect()
        self._known: _Labels | None = None

    def score(self, photo: Photo) -> Score:
        """Score one photo, ahead of photos that others send with `score_many`."""
        return self._score(photo, INTERACTIVE)

    def score_many(self, photos: Iterable[Photo], batch_size: int = 8) -> Iterator[Scored]:
        """Score any number of photos lazily, in order, one `Scored` each; `batch_size` of them are under way at once.

        The server puts them in batches. Raises UsageError at once when batch_size is below 1.
        """
        if batch_size < 1:
            raise UsageError(f"batch size must be 1 or more, not {batch_size}")
        return self._score_many(iter(photos), batch_size)

    def look(self, photo: Photo) -> RemoteLook:
        """The photo's bytes, to ask several things about. Raises PhotoError when they cannot be read."""
        return RemoteLook(self, photo_name(photo), read_photo(photo, self.limits))

    def comment(self, photo: Photo) -> Iterator[str]:
        """Comment on one photo, piece by piece. Errors come before the first piece."""
        return self.answer(photo, "comment")

    def answer(
        self, photo: Photo, task: str, question: str | None = None, max_new_tokens: int | None = None
    ) -> Iterator[str]:
        """The model's words on a task, piece by piece. Closing the iterator stops the server's work.

        Errors come before the first piece, except those of a connection that breaks later.
        """
        data = read_photo(photo, self.limits)
        inputs = [self._bytes("photo", data), self._bytes("task", task.encode())]
        if question is not None:
            inputs.append(self._bytes("question", question.encode()))
        if max_new_tokens is not None:
            tensor = self._grpc.InferInput("max_tokens", [1, 1], "INT32")
            tensor.set_data_from_numpy(np.array([[max_new_tokens]], np.int32))
            inputs.append(tensor)
        pieces = self._stream(inputs, photo, data)
        first = next(pieces, None)
        return _prepend(first, pieces)

    def close(self) -> None:
        """Close the connection. Idempotent."""
        self._client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _score(self, photo: Photo, priority: int) -> Score:
        start = perf_counter()
        data = read_photo(photo, self.limits)
        labels = self._labels()
        try:
            reply = self._client.infer(
                SCORE_MODEL,
                [self._bytes("photo", data)],
                outputs=[self._grpc.InferRequestedOutput(name) for name in _OUTPUTS],
                priority=priority,
                timeout=int(self.timeout * 1e6),  # the server drops what nobody waits for any more
                client_timeout=self.timeout,
            )
        except self._failure as error:
            raise self._explain(error, photo, data) from error
        values = {name: reply.as_numpy(name) for name in _OUTPUTS}
        if any(value is None for value in values.values()) or values["attributes"].shape[1] != len(labels.attributes):
            raise RemoteError(f"{self.url}: the answer lacks parts of a score; server and client versions differ")
        return _to_score(values, labels, (perf_counter() - start) * 1e3)

    def _score_many(self, photos: Iterator[Photo], batch_size: int) -> Iterator[Scored]:
        waiting: deque[tuple[str, Future[Score]]] = deque()
        with ThreadPoolExecutor(batch_size, thread_name_prefix="triton") as pool:
            try:
                for photo in photos:
                    waiting.append((photo_name(photo), pool.submit(self._score, photo, BATCH)))
                    if len(waiting) >= 2 * batch_size:
                        yield _outcome(*waiting.popleft())
                while waiting:
                    yield _outcome(*waiting.popleft())
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    def _stream(self, inputs: list[Any], photo: Photo, data: bytes) -> Generator[str]:
        answers: queue.SimpleQueue[tuple[Any, Any]] = queue.SimpleQueue()
        client = self._connect()  # a client carries one stream at a time
        underway = True
        try:
            client.start_stream(lambda result, error: answers.put((result, error)))
            try:
                client.async_stream_infer(
                    TEXT_MODEL, inputs, enable_empty_final_response=True, priority=INTERACTIVE,
                    timeout=int(self.timeout * 1e6),
                )  # fmt: skip
            except self._failure:  # the connection broke already: the reason comes as an answer
                if answers.empty():
                    raise
            while True:
                result, error = answers.get(timeout=self.timeout)
                if error is not None:
                    underway = False
                    raise self._explain(error, photo, data) from error
                text = result.as_numpy("text")
                if text is not None:
                    yield bytes(text.item()).decode("utf-8", errors="replace")
                if result.get_response().parameters["triton_final_response"].bool_param:
                    underway = False
                    return
        except queue.Empty as error:
            raise RemoteError(f"{self.url}: no answer within {self.timeout:g} s; {_SLOW}") from error
        except self._failure as error:
            raise self._explain(error, photo, data) from error
        finally:
            client.stop_stream(cancel_requests=underway)
            client.close()

    def _labels(self) -> _Labels:
        if self._known is None:
            try:
                config = self._client.get_model_config(SCORE_MODEL, client_timeout=self.timeout).config
            except self._failure as error:
                raise self._explain(error) from error
            try:
                low, high = (int(end) for end in config.parameters["scale"].string_value.split(","))
                attributes = json.loads(config.parameters["attributes"].string_value)
                rows = tuple((name, scale, tuple(levels)) for name, scale, levels in attributes)
            except ValueError as error:
                raise RemoteError(
                    f"{self.url}: {SCORE_MODEL} was not built by this version; run `calm triton build` again"
                ) from error
            self._known = _Labels((low, high), rows)
        return self._known

    def _connect(self) -> Any:
        return self._grpc.InferenceServerClient(self.url.removeprefix(SCHEME))

    @property
    def _failure(self) -> type[Exception]:
        kind: type[Exception] = self._grpc.InferenceServerException
        return kind

    def _bytes(self, name: str, value: bytes) -> Any:
        tensor = self._grpc.InferInput(name, [1, 1], "BYTES")
        tensor.set_data_from_numpy(np.array([[value]], np.object_))
        return tensor

    def _explain(self, error: Any, photo: Photo = b"", data: bytes = b"") -> CalmError:
        """The typed error behind a tritonclient exception; photos are named as the caller named them."""
        status, text = str(error.status() or ""), str(error.message())
        if "queue size" in text:
            return RemoteError(f"{self.url}: the server is busy, its queue is full; send fewer photos at once")
        if "DEADLINE_EXCEEDED" in status or "timeout expired" in text or "Deadline Exceeded" in text:
            return RemoteError(f"{self.url}: no answer within {self.timeout:g} s; {_SLOW}")
        if "UNAVAILABLE" in status:
            return RemoteError(
                f"{self.url}: the server does not answer ({text}); check the address, or start one with `calm triton serve`"
            )
        if "unknown model" in text:
            return RemoteError(f"{self.url}: {text}; serve a repository made by `calm triton build`")
        return error_from_text(text.replace(photo_name(data), photo_name(photo)))


class RemoteLook:
    """One photo, read once from disk; every question sends it again, scores may come from the server's cache."""

    def __init__(self, calm: RemoteCalm, photo: str, data: bytes) -> None:
        self.photo = photo
        self._calm = calm
        self._data = data

    def score(self) -> Score:
        """The photo's score."""
        return self._calm.score(self._data)

    def comment(self) -> Iterator[str]:
        """A critique, piece by piece."""
        return self.answer("comment")

    def answer(self, task: str, question: str | None = None, max_new_tokens: int | None = None) -> Iterator[str]:
        """The model's words on a task, piece by piece."""
        return self._calm.answer(self._data, task, question, max_new_tokens)


_SLOW = "the server is overloaded or stuck; give a longer timeout or look at its log"


def _tritonclient() -> Any:
    try:
        import tritonclient.grpc
    except ImportError as error:
        raise EngineMissing(f"tritonclient cannot be imported ({error}); pip install calm-edge[triton]") from error
    return tritonclient.grpc


def _to_score(values: dict[str, Any], labels: _Labels, milliseconds: float) -> Score:
    readings = {}
    for (name, scale, levels), row in zip(labels.attributes, values["attributes"][0], strict=True):  # row: [3]
        readings[name] = AttributeReading(
            scale, levels[int(row.argmax())], {level: float(p) for level, p in zip(levels, row, strict=True)}
        )
    return Score(
        mean=float(values["score"][0, 0]),
        technical=float(values["technical"][0, 0]),
        percentile=float(values["percentile"][0, 0]),
        std=float(values["std"][0, 0]),
        histogram=tuple(float(p) for p in values["histogram"][0]),
        scale=labels.scale,
        attributes=readings,
        model=values["model"][0, 0].decode(),
        bundle=values["bundle"][0, 0].decode(),
        frame=tuple(frame.tolist()) if (frame := values["frame"][0]).any() else None,
        timings={"total": round(milliseconds, 3)},
    )


def _outcome(name: str, future: Future[Score]) -> Scored:
    try:
        return Scored(name, score=future.result())
    except CalmError as error:
        return Scored(name, error=error)


def _prepend(first: str | None, rest: Generator[str]) -> Iterator[str]:
    try:
        if first is not None:
            yield first
        yield from rest
    finally:
        rest.close()
