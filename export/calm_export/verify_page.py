"""The report of `calm export verify` as files: verify.json, and verify.html in one piece for any browser."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

import msgspec

from calm_export.stages import PhotoRow, StageRow
from calm_export.verify import Verification
from calm_runtime.errors import ExportError, UsageError
from calm_runtime.score import SCORE_HIGH, SCORE_LOW

JSON_NAME, PAGE_NAME = "verify.json", "verify.html"
WORST_PHOTOS = 12
_SIDE, _MARGIN = 420, 44  # of the scatter plot, in CSS pixels

_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 62rem; padding: 0 1rem; color: #222; }
table { border-collapse: collapse; width: 100%; font-size: 14px; }
th, td { text-align: left; padding: .3rem .6rem; border-bottom: 1px solid #ddd; vertical-align: top; }
td.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.pass { color: #17692f; } .fail { color: #b3261e; font-weight: 600; } .skip { color: #666; }
figure { display: inline-block; width: 9rem; margin: 0 1rem 1rem 0; vertical-align: top; font-size: 12px; }
figure img { display: block; margin-bottom: .3rem; } svg text { font-size: 12px; fill: #444; }
figcaption { overflow-wrap: anywhere; }
"""


def check_report_folder(folder: Path, bundle: Path) -> None:
    """Raise UsageError when a report there would change the bundle, or when there is a file of that name."""
    place = folder.resolve()
    if place == bundle.resolve() or bundle.resolve() in place.parents:
        raise UsageError(f"--report {folder} lies inside the bundle and would change it; give another folder")
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"--report {folder} is a file; give a folder")


def write_report(folder: Path, verification: Verification) -> None:
    """Write verify.json and verify.html into `folder`, made if needed. Raises ExportError when it cannot."""
    encoded = msgspec.json.format(msgspec.json.encode(verification.report), indent=2) + b"\n"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / JSON_NAME).write_bytes(encoded)
        (folder / PAGE_NAME).write_text(report_page(verification), encoding="utf-8")
    except OSError as error:
        raise ExportError(f"{folder}: the report cannot be written: {error}") from error


def report_page(verification: Verification) -> str:
    """The report as one HTML page that loads nothing: styles, plot and pictures are inside."""
    report = verification.report
    verdict = (
        '<span class="pass">every stage met its gate</span>'
        if report.passed
        else f'<span class="fail">fails at {escape(str(report.first_failing_stage))}</span>'
    )
    origin = "is" if report.same_checkpoint else "is <strong>not</strong>"
    worst = sorted(range(len(report.photos)), key=lambda i: report.photos[i].difference, reverse=True)[:WORST_PHOTOS]
    pictures = "".join(_figure(report.photos[i], verification.thumbnails[i]) for i in worst)
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>{escape(report.model)}: parity</title>
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<style>{_STYLE}</style></head><body>
<h1>{escape(report.model)}: {verdict}</h1>
<p>Bundle {escape(report.bundle[:12])} against checkpoint {escape(report.checkpoint_sha256[:12])}, which {origin} the one
it was exported from, on {len(report.photos)} photos.</p>
{_table(report.stages)}
<h2>Scores</h2>
{_scatter(report.photos)}
<h2>Largest score differences</h2>
{pictures}
</body></html>
"""


def _table(stages: Iterable[StageRow]) -> str:
    names = ("stage", "engine", "against", "cosine", "difference", "SRCC", "tokens agreed", "gate", "", "")
    head = "".join(f"<th>{name}</th>" for name in names)
    body = []
    for row in stages:
        kind, word = {True: ("pass", "pass"), False: ("fail", "FAIL"), None: ("skip", "not run")}[row.passed]
        figures = (row.cosine, row.max_difference, row.srcc, row.agreement)
        cells = [
            f"<td>{escape(text)}</td>" for text in (row.stage, f"{row.engine}, {row.precision}", row.reference or "")
        ]
        cells += [f'<td class="number">{figure(value)}</td>' for value in figures]
        cells += [f'<td>{escape(row.gate or "")}</td><td class="{kind}">{word}</td><td>{escape(row.note)}</td>']
        body.append(f"<tr>{''.join(cells)}</tr>")
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>"


def figure(value: float | None) -> str:
    """A figure for people; nothing where there is none."""
    return "" if value is None else f"{value:.6f}".rstrip("0").rstrip(".")


def _scatter(photos: Sequence[PhotoRow]) -> str:
    """torch's score to the right, the bundle's upwards; equal scores lie on the line."""

    def x(score: float) -> float:
        return _MARGIN + (score - SCORE_LOW) / (SCORE_HIGH - SCORE_LOW) * (_SIDE - 2 * _MARGIN)

    def y(score: float) -> float:
        return _SIDE - x(score)

    low, high = SCORE_LOW, SCORE_HIGH
    parts = [f'<line x1="{x(low)}" y1="{y(low)}" x2="{x(high)}" y2="{y(high)}" stroke="#bbb"/>']
    for score in range(low, high + 1):
        parts.append(f'<text x="{x(score):.1f}" y="{_SIDE - _MARGIN + 18}" text-anchor="middle">{score}</text>')
        parts.append(f'<text x="{_MARGIN - 12}" y="{y(score) + 4:.1f}" text-anchor="end">{score}</text>')
    for photo in photos:
        told = f"{photo.name}: torch {photo.torch_score:.3f}, bundle {photo.bundle_score:.3f}"
        place = f'cx="{x(photo.torch_score):.1f}" cy="{y(photo.bundle_score):.1f}"'
        parts.append(f'<circle {place} r="3.5" fill="#2b6cb0" fill-opacity=".6"><title>{escape(told)}</title></circle>')
    parts.append(f'<text x="{_SIDE / 2}" y="{_SIDE - 6}" text-anchor="middle">score by torch</text>')
    turn = f"rotate(-90 12 {_SIDE / 2})"
    parts.append(f'<text x="12" y="{_SIDE / 2}" text-anchor="middle" transform="{turn}">score by the bundle</text>')
    return (
        f'<svg width="{_SIDE}" height="{_SIDE}" role="img" aria-label="scores, torch and bundle">{"".join(parts)}</svg>'
    )


def _figure(photo: PhotoRow, thumbnail: bytes) -> str:
    data = base64.b64encode(thumbnail).decode("ascii")
    caption = (
        f"{escape(photo.name)}<br>torch {photo.torch_score:.3f}, bundle {photo.bundle_score:.3f}"
        f"<br>tokens agreed {photo.agreement:.0%}: {escape(photo.text)}"
    )
    return f'<figure><img alt="" src="data:image/jpeg;base64,{data}"><figcaption>{caption}</figcaption></figure>'
