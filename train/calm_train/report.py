"""The training report: one HTML page and one PNG with every loss over the steps."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title>
<style>body{{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}}
table{{border-collapse:collapse}}td,th{{padding:.2rem .8rem;border-bottom:1px solid #ddd;text-align:left}}
img{{max-width:100%}}</style><h1>{title}</h1><table>{facts}</table>
<img src="report.png" alt="Losses over the training steps">
<table><tr><th>loss</th><th>first</th><th>last</th><th>least</th></tr>{losses}</table></html>
"""
NOT_LOSSES = {"epoch", "step", "learning_rate", "grad_norm"}


def write_report(folder: Path, title: str, facts: Mapping[str, object], history: Sequence[Mapping[str, float]]) -> Path:
    """Write report.html and report.png into `folder` from the trainer's log; returns the page's path."""
    steps = [int(entry["step"]) for entry in history]
    curves: dict[str, list[float]] = {}
    for name in [key for key in history[-1] if key not in NOT_LOSSES]:
        curves[name] = [float(entry[name]) for entry in history]
    _plot(folder / "report.png", steps, curves, [float(entry["learning_rate"]) for entry in history])
    rows = "".join(
        f"<tr><td>{html.escape(name)}</td><td>{values[0]:.4f}</td><td>{values[-1]:.4f}</td><td>{min(values):.4f}</td></tr>"
        for name, values in curves.items()
    )
    table = "".join(
        f"<tr><th>{html.escape(key)}</th><td>{html.escape(str(value))}</td></tr>" for key, value in facts.items()
    )
    page = folder / "report.html"
    page.write_text(PAGE.format(title=html.escape(title), facts=table, losses=rows))
    return page


def _plot(path: Path, steps: Sequence[int], curves: Mapping[str, Sequence[float]], rates: Sequence[float]) -> None:
    panels = [*curves.items(), ("learning rate", rates)]
    columns = 3
    rows = -(-len(panels) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(4 * columns, 2.6 * rows), squeeze=False, layout="constrained")
    for axis, (name, values) in zip(axes.flat, panels, strict=False):
        axis.plot(steps, values, linewidth=1.2)
        axis.set_title(name, fontsize=10)
        axis.grid(alpha=0.3)
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    for axis in axes[-1]:
        axis.set_xlabel("step")
    figure.savefig(path, dpi=110)
    plt.close(figure)
