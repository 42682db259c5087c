"""The table of token embeddings is read in place, and a damaged one is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from calm_runtime.errors import BundleCorrupt
from calm_runtime.llm import EMBED_TOKENS, read_embed_tokens


@pytest.fixture(params=["float32", "float16"])
def table(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / "embed_tokens.safetensors"
    values = np.random.default_rng(0).normal(size=(37, 12)).astype(request.param)
    save_file({EMBED_TOKENS: values, "other": np.zeros(3)}, path, metadata={"format": "pt"})
    return path


def test_the_mapped_table_is_what_safetensors_reads(table: Path) -> None:
    mapped = read_embed_tokens(table)
    assert isinstance(mapped, np.memmap)
    np.testing.assert_array_equal(mapped, load_file(table)[EMBED_TOKENS])


def test_a_row_is_a_copy_that_outlives_the_file(table: Path) -> None:
    rows = read_embed_tokens(table)[np.asarray([3, 3, 0])]
    expected = load_file(table)[EMBED_TOKENS]
    table.unlink()
    assert not isinstance(rows, np.memmap)
    np.testing.assert_array_equal(rows, expected[[3, 3, 0]])


@pytest.mark.parametrize("damage", ["empty", "short", "no json", "other name", "wrong size", "long header", "missing"])
def test_a_damaged_table_is_refused_with_its_path(table: Path, damage: str) -> None:
    whole = table.read_bytes()
    changed = {
        "empty": b"",
        "short": whole[:-200],
        "no json": whole[:8] + b"?" * (len(whole) - 8),
        "other name": whole.replace(EMBED_TOKENS.encode(), b"embed_tokenz"),
        "wrong size": whole.replace(b"[37,12]", b"[36,12]"),
        "long header": b"\xff" * 8 + whole[8:],
    }
    if damage == "missing":
        table.unlink()
    else:
        table.write_bytes(changed[damage])
    with pytest.raises(BundleCorrupt, match=str(table)):
        read_embed_tokens(table)
