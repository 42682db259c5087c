"""One export on its way to a bundle."""

from __future__ import annotations

import importlib.metadata
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from calm_export import parity
from calm_export.options import ExportOptions
from calm_export.sensitivity import Quantised
from calm_export.tensorrt import BUILDERS, EngineTarget
from calm_runtime.bundle import EngineEvidence, Graph, ParityRow, Precision, Stage, Target, file_sha256
from calm_runtime.text import TextTokenizer
from calm_train.checkpoint import CheckpointInfo
from calm_train.model import CalmForConditionalGeneration

logger = logging.getLogger(__name__)


@dataclass
class Work:
    """One export on its way: what each step adds to the manifest. llm_block: what the LLM came to, if it is in blocks."""

    model: CalmForConditionalGeneration
    info: CheckpointInfo
    text: TextTokenizer
    folder: Path
    scratch: Path
    options: ExportOptions
    graphs: list[Graph] = field(default_factory=list)
    engines: list[EngineEvidence] = field(default_factory=list)
    rows: list[ParityRow] = field(default_factory=list)
    llm_block: int | None = None
    quantised: dict[str, Quantised] = field(default_factory=dict)

    def gate(self, rows: Sequence[ParityRow], what: str) -> None:
        """Record the rows. Raises ExportError when one missed its gate, unless drift is allowed and can be told."""
        if not self.options.allow_drift or not all(math.isfinite(row.value) for row in rows):
            parity.require(rows, what)
        elif missed := parity.describe(rows):
            logger.warning("%s misses the parity gate: %s", what, missed)
        self.rows += rows

    def add_onnx(self, stage: Stage, name: str, precision: Precision, tool: str, target: Target = "cpu") -> None:
        self.graphs.append(Graph(stage, target, name, precision, file_sha256(self.folder / name), tool=tool))


def engine_targets(options: ExportOptions) -> list[EngineTarget]:
    """The libraries an export builds engines for."""
    return [target for target in BUILDERS if target in options.targets]


def tool_version(package: str) -> str:
    """Version of an installed package."""
    return importlib.metadata.version(package)
