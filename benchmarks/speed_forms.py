"""The decoder's graph in every form the speed benchmark compares, those `calm export` writes among them."""

from __future__ import annotations

import tempfile
from pathlib import Path

import onnx
from speed_models import DYNAMIC, LlmForm
from transformers import AutoConfig

from calm_export.dynamic import dynamic_int8
from calm_export.graph import write_graph
from calm_export.llm import export_llm, llm_spec
from calm_export.reading import reading_graph


def write_form(source: Path, form: LlmForm, folder: Path) -> None:
    """Build the decoder of a Hugging Face folder in a form, as model.onnx."""
    path = folder / "model.onnx"
    with tempfile.TemporaryDirectory(prefix="calm-form-") as scratch:
        built = Path(scratch) / "model.onnx"
        precision = "fp32" if form.precision in DYNAMIC else form.precision
        export_llm(source, precision, built.parent, form.provider, form.block)  # type: ignore[arg-type]
        dynamic = form.precision in DYNAMIC
        proto = dynamic_int8(built, **DYNAMIC[form.precision]) if dynamic else onnx.load(built)
        if form.reads:
            proto = reading_graph(proto, llm_spec(AutoConfig.from_pretrained(source)).head_dim)
        write_graph(proto, path)
