"""`calm check`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import click

from calm_runtime.cli.inputs import load_model, model_options
from calm_runtime.errors import UsageError

if TYPE_CHECKING:
    from calm_runtime.bundle import Manifest

# Other processors round the same graph differently; a wrong graph, decoder or precision is far outside of this.
GOLDEN_TOLERANCE = 0.05
OTHER_GRAPHS_TOLERANCE = (
    0.2  # golden scores are of the CPU's graphs; these and a GPU's round differently, each within its gate
)


@dataclass(frozen=True)
class Finding:
    """One thing that was checked."""

    check: str
    passed: bool
    detail: str


@click.command()
@click.option("--json", "as_json", is_flag=True, help='One {"check", "passed", "detail"} object per line.')
@model_options
def check(as_json: bool, bundle: str | None, engine: str, threads: int | None) -> int:
    """Is this install right? Checks the digest of every file, what the export proved, and the scores of known photos.

    \b
    Examples:
      calm check
      calm check --bundle my-bundle/ --engine cuda
    """
    from calm_runtime.bundle import DEFAULT_BUNDLE, open_bundle
    from calm_runtime.pipeline import REMOTE_SCHEME

    if engine.startswith(REMOTE_SCHEME):
        raise UsageError("calm check looks at this machine's install; run it where the server runs")
    opened = open_bundle(bundle or DEFAULT_BUNDLE, verify=False)
    manifest = opened.manifest
    name = f"{manifest.model.name} {manifest.model.version}"
    faults = list(opened.damaged())
    findings = [
        Finding(
            "files",
            not faults,
            "; ".join(faults) or f"{name}, digest {opened.digest[:12]}, {len(manifest.files)} files intact",
        ),
        _parity(manifest),
    ]
    if not faults:
        with load_model(bundle, engine, threads) as model:
            findings.append(Finding("engine", True, _engine_names(model)))
            findings.extend(_golden(model))
    for finding in findings:
        if as_json:
            click.echo(json.dumps(asdict(finding)))
        else:
            mark = click.style("ok  ", fg="green") if finding.passed else click.style("FAIL", fg="red", bold=True)
            click.echo(f"{mark}  {finding.check}: {finding.detail}")
    return 0 if all(finding.passed for finding in findings) else 1


def _engine_names(model: Any) -> str:
    stages = model.engine.stages
    return ", ".join(f"{stage} on {c.library} {c.device} ({c.graph.precision})" for stage, c in stages.items())


def _parity(manifest: Manifest) -> Finding:
    """What the export measured: is the bundle the model it was made from?"""
    if manifest.drift_allowed:
        missed = [
            f"{r.stage} {r.metric} is {r.value:g}, the gate is {r.gate:g}" for r in manifest.parity if not r.passed
        ]
        return Finding(
            "parity",
            False,
            "this bundle does not compute what its checkpoint computes: it was exported with --allow-drift although "
            + ("; ".join(missed) or "a gate was missed")
            + ". Do not trust its scores; export it again without --allow-drift",
        )
    if not manifest.parity:
        return Finding("parity", True, "the bundle does not say how it was compared with its checkpoint")
    return Finding("parity", True, f"the export met its {len(manifest.parity)} gates against the checkpoint")


def _golden(model: Any) -> Iterator[Finding]:
    from calm_runtime.bundle import file_sha256
    from calm_runtime.examples import example_photo

    theirs = all(choice.graph.target == "cpu" for choice in model.engine.stages.values())
    tolerance = GOLDEN_TOLERANCE if theirs else OTHER_GRAPHS_TOLERANCE
    if not model.bundle.manifest.golden:
        yield Finding("golden scores", True, "the bundle has none to compare with")
    for golden in model.bundle.manifest.golden:
        path = example_photo(golden.photo)
        if path is None:
            yield Finding(golden.photo, False, "the example photo is missing; install calm-edge again")
            continue
        if file_sha256(path) != golden.sha256:
            yield Finding(golden.photo, False, f"{path} has changed; install calm-edge again")
            continue
        score = model.score(path)
        pairs = {
            "score": (score.mean, golden.score),
            "spread": (score.std, golden.std),
            "technical": (score.technical, golden.technical),
        }
        told = (f"{what} {found:.4f} (expected {expected:.4f})" for what, (found, expected) in pairs.items())
        close = all(abs(found - expected) <= tolerance for found, expected in pairs.values())
        yield Finding(golden.photo, close, ", ".join(told))
