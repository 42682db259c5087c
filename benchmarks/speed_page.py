"""speed.md from the raw results: medians over the cycles, ratios to what each goal names, and the goals."""

from __future__ import annotations

from collections import Counter
from statistics import median
from typing import Any

OURS = "calm:fp32:int4"
EAGER = "eager-fp32"
TITLES = {
    OURS: "this runtime, as exported (int4)",
    "calm:fp32:int8-dynamic": "this runtime, LLM int8-dynamic",
    "calm:int8:int4": "this runtime, vision int8, LLM int4",
    "calm:int8:int4-128": "this runtime, vision int8, LLM int4 in blocks of 128",
    "calm:int8:int8-dynamic": "this runtime, vision int8, LLM int8-dynamic",
    "calm:int8:int8-dynamic-reading+int4-128": "this runtime, vision int8, LLM int8-dynamic, to write int4 in blocks of 128",
    EAGER: "PyTorch eager, fp32",
    "eager-bf16": "PyTorch eager, bf16",
    "compile-fp32": "torch.compile, fp32",
    "compile-bf16": "torch.compile, bf16",
    "openvino:fp32:int4": "OpenVINO, the same graphs",
    "openvino:fp32:int4-128": "OpenVINO, int4 in blocks of 128",
    "llama.cpp": "llama.cpp, Q4_0 (LLM alone)",
}
FORMS = {
    "fp32": "LLM fp32",
    "int4": "LLM int4, blocks of 32",
    "int4-128": "LLM int4, blocks of 128",
    "int8": "LLM int8, blocks of 32",
    "int8-dynamic": "LLM int8-dynamic (weights of 7 bits)",
    "int8-dynamic-full": "LLM dynamic int8, weights of 8 bits, signed",
    "int8-dynamic-unsigned": "LLM dynamic int8, weights of 8 bits, unsigned",
    "int8-dynamic-reading": "LLM int8-dynamic, only to read",
}
Medians = dict[str, dict[str, float]]


def medians_of(rows: list[dict[str, Any]], size: str) -> Medians:
    """Per engine and figure of a size: the median over the cycles that worked."""
    found: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        if row["size"] == size and "failed" not in row:
            for key, value in row.items():
                if isinstance(value, float):
                    found.setdefault(row["engine"], {}).setdefault(key, []).append(value)
    return {name: {key: median(values) for key, values in figures.items()} for name, figures in found.items()}


def cell(value: float | None, digits: int = 0, unit: str = "") -> str:
    """A figure, or a dash."""
    return "-" if value is None else f"{value:,.{digits}f}{unit}"


def ratio(above: float | None, below: float | None) -> float | None:
    """above / below, where both were measured."""
    return above / below if above is not None and below else None


def best(table: Medians, prefix: str, key: str) -> float | None:
    """The largest figure of the engines whose name starts with `prefix`."""
    return max((row[key] for name, row in table.items() if name.startswith(prefix) and key in row), default=None)


def score_table(table: Medians) -> list[str]:
    """Scoring a photo, from pixel values to logits."""
    eager = table.get(EAGER, {})
    lines = [
        "| engine | cold s | warm ms, batch 1 | ms per photo, batch 8 | peak MB | peak MB, batch 8 | times eager fp32's speed | share of its memory |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name in (name for name in TITLES if "score_ms" in table.get(name, {})):
        row = table[name]
        lines.append(
            f"| {TITLES[name]} | {cell(row['cold_s'], 1)} | {cell(row['score_ms'], 1)} | {cell(row['batch_ms'], 1)} "
            f"| {cell(row['peak_mb'])} | {cell(row['batch_peak_mb'])} "
            f"| {cell(ratio(eager.get('score_ms'), row['score_ms']), 2)} "
            f"| {cell(ratio(row['peak_mb'], eager.get('peak_mb')), 2)} |"
        )
    return lines


def llm_table(table: Medians) -> list[str]:
    """The LLM alone."""
    lines = ["| engine | prefill tok/s | decode tok/s | peak MB, photo and text |", "| --- | ---: | ---: | ---: |"]
    for name in (name for name in TITLES if "prefill_tok_s" in table.get(name, {})):
        row = table[name]
        lines.append(
            f"| {TITLES[name]} | {cell(row['prefill_tok_s'])} | {cell(row['decode_tok_s'], 1)} | {cell(row.get('text_peak_mb'))} |"
        )
    return lines


def remedy_table(table: Medians, drift: dict[str, Any]) -> list[str]:
    """Forms of the graphs, against the exported one."""
    lines = [
        "| form | prefill tok/s | x | decode tok/s | score ms | x | peak MB | SRCC | score diff max | mean | alone or in a batch of 8, max |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    base = table.get(OURS, {})
    for name in (name for name in table if name.startswith("calm:")):
        _, eyes, llm = name.split(":")
        row, moved = table[name], drift.get(name, {})
        title = ", to write ".join(FORMS[form] for form in llm.split("+")) + (
            "" if eyes == "fp32" else f"; vision and aligner {eyes}"
        )
        lines.append(
            f"| {title} | {cell(row['prefill_tok_s'])} | {cell(ratio(row['prefill_tok_s'], base.get('prefill_tok_s')), 2)} "
            f"| {cell(row['decode_tok_s'], 1)} | {cell(row['score_ms'], 1)} "
            f"| {cell(ratio(base.get('score_ms'), row['score_ms']), 2)} | {cell(row['peak_mb'])} "
            f"| {cell(moved.get('srcc'), 4)} | {cell(moved.get('difference_max'), 3)} "
            f"| {cell(moved.get('difference_mean'), 3)} | {cell(moved.get('batch_difference_max'), 4)} |"
        )
    return lines


def goals(table: Medians) -> list[str]:
    """What was aimed at, for the size the goals are about: how many times, for each of this runtime's rows."""
    eager = table.get(EAGER, {})
    prefill, decode = best(table, "openvino", "prefill_tok_s"), best(table, "llama.cpp", "decode_tok_s")
    ours = [name for name in TITLES if name.startswith("calm:") and name in table]
    rows = [
        ("score, batch 1: at least 4 times eager fp32", 4.0, lambda r: ratio(eager.get("score_ms"), r["score_ms"])),
        ("prefill: at least 1.2 times OpenVINO's best", 1.2, lambda r: ratio(r["prefill_tok_s"], prefill)),
        ("decode: at least llama.cpp's best", 1.0, lambda r: ratio(r["decode_tok_s"], decode)),
        ("memory: at most a third of eager fp32's", 3.0, lambda r: ratio(eager.get("peak_mb"), r["peak_mb"])),
    ]
    lines = [f"| goal | {' | '.join(TITLES[name].removeprefix('this runtime, ') for name in ours)} |"]
    lines.append("| --- |" + " ---: |" * len(ours))
    for goal, wanted, times in rows:
        found = [times(table[name]) for name in ours]
        cells = [cell(v, 2) + ("" if v is None else ", met" if v >= wanted else ", **missed**") for v in found]
        lines.append(f"| {goal} | {' | '.join(cells)} |")
    return lines


def render(report: dict[str, Any]) -> str:
    """The whole page."""
    counts = Counter((row["size"], row["engine"]) for row in report["rows"])
    fewest, most = min(counts.values()), max(counts.values())
    cycles = str(most) if fewest == most else f"{fewest} to {most}"
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    lines = [
        "# Speed and memory, side by side",
        "",
        f"{report['date']}, {report['machine']}; {versions}. {report['threads']} threads, pinned; medians of {cycles}",
        "fresh processes per engine, the engines taking turns. From pixel values to score logits; files in the page cache.",
        "",
        "Cold: from the start of the process to its first score. Peak: resident memory of the process, libraries included.",
        "Every engine computes the LLM's head for the last position alone. OpenVINO's LLM reads a batch row by row.",
    ]
    for size, shape in report["sizes"].items():
        table = medians_of(report["rows"], size)
        weights = "random weights" if size == "edge" else "trained"
        prompt = len(shape["before"]) + shape["image_tokens"] + len(shape["after"])
        lines += ["", f"## {shape['name']}: {shape['parameters'] / 1e6:.0f} M parameters, {weights}", ""]
        lines += [f"A photo of {shape['photo_size']} pixels is a prompt of {prompt} tokens.", ""]
        lines += [*score_table(table), "", "The LLM alone, prefill of 256 tokens, then 32 tokens one by one:", ""]
        lines += llm_table(table)
        if size == "edge":
            lines += ["", *goals(table)]
        if sum(name.startswith("calm:") for name in table) > 2:
            drift = report["drift"] if size == "nano" else {}
            lines += [
                "",
                "### Remedies",
                "",
                "Scores: 32 photos (the examples and edits of them), against PyTorch in fp32.",
            ]
            lines += ["x: times the exported form's speed.", "", *remedy_table(table, drift)]
    failed = {(row["size"], row["engine"], row["failed"]) for row in report["rows"] if "failed" in row}
    notes = [f"{size}, {TITLES.get(engine, engine)}: {reason}" for size, engine, reason in sorted(failed)]
    notes += [f"{TITLES.get(n, n)}: {', '.join(names)} is not installed" for n, names in report["absent"].items()]
    if notes:
        lines += ["", "Not measured:", "", *(f"- {note}" for note in notes)]
    return "\n".join(lines) + "\n"
