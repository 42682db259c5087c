"""When a batch is run, recorded or replayed: decisions about CUDA graphs, without CUDA."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Any, Generic, Literal, TypeVar

Mode = Literal["library", "capture", "off"]
Launch = Literal["run", "capture", "replay"]
Value = TypeVar("Value")

MOST_LANES = 8


def graph_mode(library: Any, wanted: bool = True) -> Mode:
    """Who records: TensorRT-RTX does it itself, kernel by kernel as they are specialised; TensorRT leaves it to us."""
    if not wanted:
        return "off"
    return "library" if hasattr(library, "CudaGraphStrategy") else "capture"


def next_launch(runs: int, recorded: bool, mode: Mode, refused: bool) -> Launch:
    """What to do with a batch whose shapes and addresses were seen `runs` times before.

    The first run stays plain: it settles what the library defers to it, and a batch that never comes again is not
    worth a recording. refused: the engine could not be recorded once.
    """
    if mode != "capture" or refused:
        return "run"
    if recorded:
        return "replay"
    return "capture" if runs > 0 else "run"


class RecentlyUsed(Generic[Value]):
    """A mapping that keeps its `limit` most recently used entries."""

    def __init__(self, limit: int = MOST_LANES) -> None:
        self._limit = limit
        self._entries: OrderedDict[Hashable, Value] = OrderedDict()

    def get(self, key: Hashable) -> Value | None:
        if key in self._entries:
            self._entries.move_to_end(key)
        return self._entries.get(key)

    def put(self, key: Hashable, value: Value) -> list[Value]:
        """Add an entry; those that had to go are returned."""
        self._entries[key] = value
        self._entries.move_to_end(key)
        return [self._entries.popitem(last=False)[1] for _ in range(len(self._entries) - self._limit)]

    def clear(self) -> list[Value]:
        values = list(self._entries.values())
        self._entries.clear()
        return values
