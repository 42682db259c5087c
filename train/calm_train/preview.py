"""The contact sheet: what the model is shown and told, for a person to judge before hours of training."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from calm_runtime.attributes import ATTRIBUTES, SCALES
from calm_train.library import Picture
from calm_train.pretext.edits import EDITS
from calm_train.pretext.texts import comment_text, cue_text, suggestion_text
from calm_train.pretext.view import View, make_pair, make_view, measure_frame, to_tensor

THUMBNAIL = 300
PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>What the model is shown</title><style>
body{{font:14px/1.45 system-ui,sans-serif;max-width:75rem;margin:2rem auto;padding:0 1rem;color:#222}}
.row{{display:grid;grid-template-columns:repeat(auto-fill,minmax(300px,1fr));gap:1rem;margin:1rem 0 2rem}}
figure{{margin:0;border:1px solid #ddd;padding:.6rem;border-radius:6px}}img{{max-width:100%;display:block}}
b{{color:#000}}.bad{{color:#a40000}}.good{{color:#0a6a0a}}p{{margin:.35rem 0}}small{{color:#666}}</style>
<h1>What the model is shown</h1>
<p>Pairs: the left view must never score lower than the right one. Colours: attribute levels that speak
<span class="good">for</span> and <span class="bad">against</span> a photo.</p>{pairs}
<h2>Every edit at strength 0.3 and 0.9</h2>{edits}</html>
"""


def write_preview(pictures: Sequence[Picture], folder: Path, seed: int) -> Path:
    """Write preview.html, self-contained, into `folder`; returns its path."""
    pairs = []
    for n, picture in enumerate(pictures):
        rng = np.random.default_rng((seed, n))
        pairs.append(f'<div class="row">{"".join(_figure(view, rng) for view in make_pair(picture, rng))}</div>')
    folder.mkdir(parents=True, exist_ok=True)
    page = folder / "preview.html"
    page.write_text(PAGE.format(pairs="".join(pairs), edits=_every_edit(pictures[0], seed)))
    return page


def _every_edit(picture: Picture, seed: int) -> str:
    figures = []
    for name in EDITS:
        for severity in (0.3, 0.9):
            rng = np.random.default_rng((seed, 99))
            view = make_view(measure_frame(to_tensor(picture)), [(name, severity)], rng)
            told = html.escape(suggestion_text(view))
            figures.append(
                f"<figure>{_thumbnail(view.picture)}<p><b>{name}</b> {severity} <small>{told}</small></figure>"
            )
    return f'<div class="row">{"".join(figures)}</div>'


def _figure(view: View, rng: np.random.Generator) -> str:
    made = ", ".join(f"{edit.name} {edit.severity:.2f}" for edit in view.edits) or "untouched"
    levels = []
    for attribute, index in zip(ATTRIBUTES, view.levels, strict=True):
        level = attribute.levels[index]
        kind = {1: "good", -1: "bad"}.get(level.polarity, "")
        levels.append(f'{attribute.name} <span class="{kind}">{level.name}</span>')
    cues = "".join(f"<p><small>{s} cue:</small> {html.escape(cue_text(view.levels, s, rng))}</p>" for s in SCALES)
    return (
        f"<figure>{_thumbnail(view.picture)}<p><b>rating {view.rating:.1f}</b> · {made}</p>"
        f"<p>{' · '.join(levels)}</p>{cues}<p><small>comment:</small> {html.escape(comment_text(view.levels, rng))}</p>"
        f"<p><small>suggestion:</small> {html.escape(suggestion_text(view))}</p></figure>"
    )


def _thumbnail(picture: Picture) -> str:
    image = Image.fromarray(picture)
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=88)
    return f'<img alt="" src="data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}">'
