"""What `calm export` and `calm export verify` print."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from calm_runtime.bundle import LLM_STAGES, Manifest

if TYPE_CHECKING:
    from calm_export.stages import VerifyReport


def stage_table(report: VerifyReport) -> Table:
    """What `calm export verify` found, a row per stage."""
    from calm_export.verify_page import figure

    title = f"{report.model} against its checkpoint on {len(report.photos)} photos"
    table = Table("stage", "engine", "against", "cosine", "difference", "SRCC", "gate", "", title=title)
    marks = {True: "[green]pass[/]", False: "[bold red]FAIL[/]", None: "not run"}
    for row in report.stages:
        agreed = [f"agreement {figure(row.agreement)}"] if row.agreement is not None else []
        notes = [*agreed, *([row.note] if row.note else [])]
        table.add_row(
            row.stage,
            f"{row.engine}, {row.precision}",
            row.reference or "",
            figure(row.cosine),
            figure(row.max_difference),
            figure(row.srcc),
            escape("\n".join([row.gate, *notes] if row.gate else notes)),
            marks[row.passed],
        )
    return table


def show_groups(console: Console, output: Path) -> None:
    """The groups of products of the rounded graphs, where the bundle has some, the most sensitive first."""
    from calm_export.sensitivity import QUANTISATION, read_report

    if not (output / QUANTISATION).is_file():
        return
    for what, groups in read_report(output / QUANTISATION).items():
        table = Table(
            "group", "products", "cosine alone", "SNR", "decision", "reason", title=f"rounded products, {what}"
        )
        for row in groups:
            noise = "" if row.snr_db is None else f"{row.snr_db:.1f} dB"
            table.add_row(row.group, str(row.products), f"{row.cosine:.5f}", noise, row.decision, escape(row.reason))
        console.print(table)


def show(console: Console, output: Path, manifest: Manifest) -> None:
    """What an export proved and how large it became."""
    from calm_export.llm import IN_BLOCKS

    table = Table("stage", "figure", "value", "gate", "", title=f"parity on {manifest.parity[0].photos} photos")
    for row in manifest.parity:
        table.add_row(
            row.stage, row.metric, f"{row.value:.5f}", f"{row.gate:g}", "" if row.passed else "[red]MISSED[/]"
        )
    console.print(table)
    if manifest.drift_allowed:
        console.print("[red]This bundle is not the same model as its checkpoint[/]; it is marked as drifted.")
    for engine in manifest.engines:
        console.print(
            f"{engine.path}: {engine.network_layers} layers became {engine.engine_layers}, "
            f"{engine.fused_attention} fused attention, {engine.activation_bytes / 2**20:.0f} MiB at the largest batch"
        )
    size = sum(entry.bytes for entry in manifest.files.values())
    llm = [graph.precision for graph in manifest.graphs if graph.target == "cpu" and graph.stage in LLM_STAGES]
    blocks = f" in blocks of {manifest.provenance.options['llm_block']}"
    precisions = ", to write ".join(f"{name}{blocks if name in IN_BLOCKS else ''}" for name in llm)
    console.print(f"{output}: {size / 1e6:.1f} MB, LLM {precisions}, digest {manifest.digest[:12]}")
