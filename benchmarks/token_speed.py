"""What each remedy gave the LLM's decoding, token by token: threads that do not sleep, a cache in place, coarser blocks.

python benchmarks/token_speed.py [--work runs/speed]     after speed.py --engines ...,calm:fp32:int4-128 has written the graphs

Times the `edge` recipe's decoder alone, 256 tokens of prefill and then 40 tokens, in fresh processes that take turns.
Writes token_speed.json and .md beside itself.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from datetime import date
from pathlib import Path
from statistics import median

import click
import numpy as np
from speed import processor
from speed_models import read_shape

HERE = Path(__file__).parent
FORMS = {"int4": "int4, blocks of 32", "int4-128": "int4, blocks of 128", "int8-dynamic": "int8-dynamic"}
WAYS = {
    "sleep-copy": "threads sleep, cache copied",
    "spin-copy": "threads spin until the run ends, cache copied",
    "sleep-place": "threads sleep, cache in place",
    "spin-place": "threads spin until the run ends, cache in place",
}
PROMPT, TOKENS = 256, 40


def measure(graph: Path, way: str, threads: int) -> dict[str, float]:
    """Tokens per second of prefill and decoding, medians; the first calls are not counted."""
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # read when onnxruntime is imported
    import onnxruntime

    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    spin = way.startswith("spin")
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spin)))
    options.add_session_config_entry("session.force_spinning_stop", str(int(spin)))
    session = onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
    spec = read_shape(graph.parents[1]).llm
    past = [value.name for value in session.get_inputs() if value.name.startswith("past_key_values")]
    outputs = [output.name for output in session.get_outputs()]
    embeds = 0.05 * np.random.default_rng(0).standard_normal((1, PROMPT, spec.hidden_size)).astype(np.float32)

    def run(piece: np.ndarray, cache: dict[str, np.ndarray], length: int) -> dict[str, np.ndarray]:
        feeds = {"inputs_embeds": piece, "attention_mask": np.ones((1, length), np.int64), **cache}
        found = dict(zip(outputs, session.run(outputs, feeds), strict=True))
        return {name: found[name.replace("past_key_values", "present")] for name in cache}

    empty = {name: np.zeros((1, spec.kv_heads, 0, spec.head_dim), np.float32) for name in past}
    spent = []
    for _ in range(4):
        start = time.perf_counter()
        cache = run(embeds, empty, PROMPT)
        spent.append(time.perf_counter() - start)
    prefill = PROMPT / median(spent[1:])
    spent, token, length = [], np.ascontiguousarray(embeds[:, :1]), PROMPT
    binding = session.io_binding()
    if way.endswith("place"):
        held = {name: np.pad(values, ((0, 0), (0, 0), (0, TOKENS), (0, 0))) for name, values in cache.items()}
        for name, values in held.items():
            place = ("cpu", 0, np.float32, values.shape, values.ctypes.data)
            binding.bind_input(name, *place)
            binding.bind_output(name.replace("past_key_values", "present"), *place)
    for _ in range(TOKENS):
        length += 1
        start = time.perf_counter()
        if way.endswith("place"):
            mask = np.ones((1, length), np.int64)
            binding.bind_cpu_input("inputs_embeds", token)
            binding.bind_cpu_input("attention_mask", mask)
            binding.bind_output("logits", "cpu")
            session.run_with_iobinding(binding)
        else:
            cache = run(token, cache, length)
        spent.append(time.perf_counter() - start)
    return {"prefill_tok_s": prefill, "decode_tok_s": 1 / median(spent[2:])}


@click.command(help=__doc__)
@click.option("--work", type=click.Path(path_type=Path), default=Path("runs/speed"), show_default=True)
@click.option("--cycles", default=3, show_default=True)
@click.option("--threads", default=2, show_default=True)
@click.option("--one", nargs=2, hidden=True)
def main(work: Path, cycles: int, threads: int, one: tuple[str, str] | None) -> None:
    if one:
        click.echo(json.dumps(measure(Path(one[0]), one[1], threads)))
        return
    rows: dict[str, dict[str, list[float]]] = {}
    for _ in range(cycles):
        for form in FORMS:
            for way in WAYS:
                graph = work / "edge" / f"llm-{form}" / "model.onnx"
                command = [sys.executable, __file__, "--threads", str(threads), "--one", str(graph), way]
                found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
                kept = rows.setdefault(f"{form} {way}", {})
                for key, value in found.items():
                    kept.setdefault(key, []).append(value)
                click.echo(f"{form} {way}: {found}", err=True)
    header = f"{date.today().isoformat()}, {processor()}, {threads} threads, medians of {cycles} fresh processes"
    (HERE / "token_speed.json").write_text(json.dumps({"header": header, "rows": rows}, indent=2) + "\n")
    lines = ["# Decoding token by token: what each remedy gave", ""]
    lines += [f"{header}. Decoder of the recipe `edge` (Qwen3-0.6B's shape), {PROMPT} tokens before.", ""]
    lines += [
        "| weights | how | prefill tok/s | decode tok/s | to the first row |",
        "| --- | --- | ---: | ---: | ---: |",
    ]
    base = median(rows["int4 sleep-copy"]["decode_tok_s"])
    for form, title in FORMS.items():
        for way, said in WAYS.items():
            row = rows[f"{form} {way}"]
            decode = median(row["decode_tok_s"])
            lines.append(
                f"| {title} | {said} | {median(row['prefill_tok_s']):,.0f} | {decode:.1f} | {decode / base:.2f} |"
            )
    (HERE / "token_speed.md").write_text("\n".join(lines) + "\n")
    click.echo("\n".join(lines))


if __name__ == "__main__":
    main()
