"""Text in and out: the bundle's tokenizer, and decoding piece by piece."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import tokenizers

from calm_runtime.errors import BundleCorrupt

_BROKEN = "\N{REPLACEMENT CHARACTER}"
_LONGEST_CHARACTER = 4  # bytes of one character in UTF-8, so at most that many tokens


class TextTokenizer:
    """`prompt.TextEncoder` over a tokenizer.json. Text is always plain: "<score_10>" in a question is nine letters
    and a number to the model, never its score token. Safe to use from several threads.
    """

    def __init__(self, path: Path, bos_token_id: int) -> None:
        """Raises BundleCorrupt when the file is not a tokenizer."""
        try:
            self._tokenizer = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:
            raise BundleCorrupt(f"{path}: is not a tokenizer ({error})") from error
        self._tokenizer.encode_special_tokens = True
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self.bos_token_id = bos_token_id
        added = {token.content: index for index, token in self._tokenizer.get_added_tokens_decoder().items()}
        self._added_ids = frozenset(added.values())
        self._added = re.compile("|".join(re.escape(content) for content in added) or r"(?!)")

    def encode(self, text: str) -> list[int]:
        """Token ids of plain text; none of them is an added token."""
        ids = self._encode(text)
        if self._added_ids.isdisjoint(ids):
            return ids
        # The setting above spares tokens marked "special"; other added tokens are cut apart after one letter.
        cuts = [0, *(match.start() + 1 for match in self._added.finditer(text)), len(text)]
        pieces = (text[start:end] for start, end in itertools.pairwise(cuts))
        return [i for piece in pieces for i in self._encode(piece) if i not in self._added_ids]

    def decode(self, ids: Iterable[int]) -> str:
        """Text of token ids, special tokens left out."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True))

    def stream(self, ids: Iterable[int]) -> Iterator[str]:
        """Decode piece by piece: a piece is held back until its last character is whole."""
        pending: list[int] = []
        shown = 0  # characters of the decoded `pending` already given out
        for token in ids:
            pending.append(token)
            text = self.decode(pending)
            broken_tail = len(text) - len(text.rstrip(_BROKEN))
            if 0 < broken_tail < _LONGEST_CHARACTER:
                continue
            piece = text[shown:].replace(_BROKEN, "")
            # One token stays as context: many tokenizers drop the space before the first word.
            pending = pending[-1:]
            shown = len(self.decode(pending))
            if piece:
                yield piece
        rest = self.decode(pending)[shown:].replace(_BROKEN, "")
        if rest:
            yield rest

    def _encode(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)


def without_leading_space(pieces: Iterator[str]) -> Iterator[str]:
    """The same text from its first letter on."""
    started = False
    for piece in pieces:
        shown = piece if started else piece.lstrip()
        started = started or bool(shown)
        if shown:
            yield shown


def until(pieces: Iterator[str], stops: Sequence[str]) -> Iterator[str]:
    """Pass text on until one of `stops` is written; it and what follows are left out, and nothing more is generated.

    Text that may be the beginning of a stop is held back until it is known.
    """
    wanted = [stop for stop in stops if stop]
    held = ""
    for piece in pieces:
        held += piece
        found = min((at for stop in wanted if (at := held.find(stop)) >= 0), default=-1)
        if found >= 0:
            held = held[:found]
            break
        open_end = max((_overlap(held, stop) for stop in wanted), default=0)
        if ready := held[: len(held) - open_end]:
            yield ready
            held = held[len(ready) :]
    if held:
        yield held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop`."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
