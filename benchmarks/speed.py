"""Speed and memory side by side: this runtime, PyTorch, torch.compile, OpenVINO and llama.cpp, in one run.

python benchmarks/speed.py [--sizes nano,edge] [--engines NAME,NAME] [--remedies] [--work runs/speed]

Writes speed.json and speed.md beside itself. Sizes: nano, the shipped checkpoint; edge, the recipe of that name with
random weights. Every figure comes from a fresh process, and the engines take turns, so that a change of the machine's
pace meets them all. Stopped and started again, it goes on where it was: raw results lie in --work (--again discards
them). With --remedies also other forms of the graphs: time, and for nano how far its scores drift from PyTorch's.

Needs calm-edge[cpu,train,export]; engines whose package (openvino; gguf and llama-cpp-python) is missing are left out.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from datetime import date
from pathlib import Path
from typing import Any

import click
from speed_models import EYES, LLM_FORMS, SIZES
from speed_page import TITLES, render

HERE = Path(__file__).parent
MAIN = tuple(TITLES)
REMEDIES = (
    *(f"calm:fp32:{name}" for name, form in LLM_FORMS.items() if form.provider == "cpu" and not form.reads),
    "calm:int8-dynamic:int8-dynamic",
)
NEEDS = {"openvino": ("openvino",), "llama.cpp": ("llama_cpp", "gguf")}
PACKAGES = ("torch", "onnxruntime", "openvino", "llama-cpp-python")
PARITY = "parity"
LONGEST = 1800  # seconds of one process; compiling the larger size takes minutes


def kind_of(engine: str) -> str:
    """What an engine is built on."""
    return engine.partition(":")[0]


def missing(engine: str) -> list[str]:
    """Packages an engine needs and does not find."""
    return [name for name in NEEDS.get(kind_of(engine), ()) if importlib.util.find_spec(name) is None]


def processor() -> str:
    """The processor's name, where Linux tells it."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def header(threads: int, cycles: int) -> dict[str, Any]:
    """Where and with what the figures were measured."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "date": date.today().isoformat(),
        "machine": f"{processor()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        "versions": versions,
        "threads": threads,
        "cycles": cycles,
    }


def fresh(script: str, arguments: list[str], threads: int, cache: Path) -> dict[str, Any]:
    """Run a script of this folder in a process of its own; its last line as JSON, or {"failed": why}."""
    count = str(threads)
    own = {"OMP_NUM_THREADS": count, "MKL_NUM_THREADS": count, "TOKENIZERS_PARALLELISM": "false"}
    own |= {"TORCHINDUCTOR_CACHE_DIR": str(cache), "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    command = [sys.executable, str(HERE / script), *arguments]
    try:
        result = subprocess.run(
            command, capture_output=True, text=True, env=os.environ | own, check=False, timeout=LONGEST
        )
    except subprocess.TimeoutExpired:
        return {"failed": f"not done after {LONGEST} s"}
    lines = result.stdout.strip().splitlines()
    if result.returncode == 0 and lines:
        answer: dict[str, Any] = json.loads(lines[-1])
        return answer
    reason = [line for line in result.stderr.splitlines() if line.strip()][-1:] or [f"exit code {result.returncode}"]
    return {"failed": reason[0][:300]}


def cycle(size: str, engines: list[str], work: Path, threads: int, number: int) -> None:
    """Each engine once, what was measured before left out."""
    results = work / "results"
    results.mkdir(parents=True, exist_ok=True)
    for engine in engines:
        path = results / f"{size}-{engine.replace(':', '_')}-{number}.json"
        if path.is_file():
            continue
        begun = time.monotonic()
        row = fresh("speed_worker.py", [engine, str(work / size), str(threads), str(begun)], threads, work / "inductor")
        path.write_text(json.dumps({"size": size, "engine": engine, "cycle": number, **row}) + "\n")
        note = row.get("failed") or f"{time.monotonic() - begun:.0f} s"
        click.echo(f"{size}, cycle {number + 1}, {engine}: {note}", err=True)


def collect(work: Path) -> list[dict[str, Any]]:
    """Every raw result in the work folder."""
    return [json.loads(path.read_bytes()) for path in sorted((work / "results").glob("*.json"))]


@click.command(help=__doc__)
@click.option("--sizes", default=",".join(SIZES), show_default=True)
@click.option("--engines", default="all", show_default=True, help=f"all, or some of {', '.join(MAIN)}")
@click.option("--remedies", is_flag=True, help="Also measure the other forms of the graphs.")
@click.option("--cycles", default=3, show_default=True)
@click.option("--threads", default=2, show_default=True)
@click.option("--work", type=click.Path(path_type=Path), default=Path("runs/speed"), show_default=True)
@click.option("--output", type=click.Path(path_type=Path), default=HERE, show_default="beside this file")
@click.option("--again", is_flag=True, help="Discard what was measured before; graphs are kept.")
def main(
    sizes: str, engines: str, remedies: bool, cycles: int, threads: int, work: Path, output: Path, again: bool
) -> None:
    asked = list(MAIN) if engines == "all" else engines.split(",") if engines else []
    asked += [name for name in REMEDIES if remedies and name not in asked]
    absent = {engine: missing(engine) for engine in asked if missing(engine)}
    asked = [engine for engine in asked if engine not in absent]
    if again:
        shutil.rmtree(work / "results", ignore_errors=True)
    graphs = [engine.split(":") for engine in asked if engine.count(":") == 2]
    forms = [f"eyes-{eyes}" for eyes in EYES if any(eyes == e for _, e, _ in graphs)]
    forms += [llm for llm in LLM_FORMS if any(llm in form.split("+") for _, _, form in graphs)]
    forms += ["gguf"] if "llama.cpp" in asked else []
    for size in sizes.split(","):
        done = subprocess.run([sys.executable, HERE / "speed_models.py", size, work / size, *forms], check=False)
        if done.returncode:
            raise click.ClickException(f"{size} cannot be prepared")
    for number in range(cycles):
        for size in sizes.split(","):
            cycle(size, asked, work, threads, number)
    drift: dict[str, Any] = {}
    known = work / f"{PARITY}.json"
    if "nano" in sizes.split(","):
        wanted = [engine for engine in asked if engine.startswith("calm:")]
        drift = json.loads(known.read_bytes()) if known.is_file() and not again else {}
        if todo := [engine for engine in wanted if engine not in drift]:
            drift |= fresh("speed_parity.py", ["nano", str(work / "nano"), str(threads), *todo], threads, work)
            known.write_text(json.dumps(drift) + "\n")
    shapes = {size: json.loads((work / size / "shape.json").read_bytes()) for size in sizes.split(",")}
    report = {**header(threads, cycles), "sizes": shapes, "absent": absent, "rows": collect(work), "drift": drift}
    output.mkdir(parents=True, exist_ok=True)
    (output / "speed.json").write_text(json.dumps(report, indent=2) + "\n")
    page = render(report)
    (output / "speed.md").write_text(page)
    click.echo(page)


if __name__ == "__main__":
    main()
