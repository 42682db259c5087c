"""Results of an evaluation as Markdown, ours above the published ones."""

from __future__ import annotations

from typing import Any

from calm_train.evaluation.degradations import DISLIKED
from calm_train.evaluation.published import AVA_CAPTIONS, AVA_TEST, PIAA_FLICKR_AES
from calm_train.evaluation.suggestions import suggestion_table


def rating_table(result: dict[str, Any]) -> str:
    """Markdown: our figures, and for AVA the published ones below them."""
    rows = [
        f"# {result['model']} on {result['dataset']} ({result['split'] or 'all'}): {result['photos']} photos\n",
        "| model | PLCC | SRCC | accuracy | MAE | RMSE | EMD |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    keys = ("plcc", "srcc", "accuracy", "mae", "rmse", "emd")
    rows.append(f"| {result['model']} | {' | '.join(_figure(result[key]) for key in keys)} |")
    if result["dataset"] == "ava":
        rows += [f"| {name} (reported) | {p:.3f} | {s:.3f} | | | | |" for name, (p, s) in AVA_TEST.items()]
    return "\n".join(rows) + "\n"


def caption_table(result: dict[str, Any]) -> str:
    """Markdown: our figures, and for AVA-Captions the published ones below them."""
    rows = [
        f"# Comments on {result['dataset']} ({result['split'] or 'all'}): {result['photos']} photos\n",
        "| model | BLEU-1 | BLEU-4 | ROUGE-L | CIDEr | METEOR | SPICE |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    own = [result["bleu"][0], result["bleu"][3], *(result[k] for k in ("rouge_l", "cider", "meteor", "spice"))]
    rows.append(f"| this model | {' | '.join(map(_figure, own))} |")
    if result["dataset"] == "ava-captions":
        for name, row in AVA_CAPTIONS.items():
            known = [row.get(key) for key in ("bleu-1", "bleu-4", "rouge_l", "cider", "meteor", "spice")]
            rows.append(f"| {name} (reported) | {' | '.join(map(_figure, known))} |")
    rows += [f"\n{measure.upper()} was not measured: it {reason}." for measure, reason in result["missing"].items()]
    return "\n".join(rows) + "\n"


def personal_table(result: dict[str, Any]) -> str:
    """Markdown: SRCC with a rater's own profile and with the base score, and for FLICKR-AES the published figures."""
    counts = result["counts"]
    rows = [
        f"# {result['model']} on {result['dataset']} ({result['split'] or 'all'}), personal: {result['photos']} photos\n",
        f"| SRCC | {' | '.join('k = ' + str(row['count']) for row in counts)} |",
        f"| --- |{' ---: |' * len(counts)}",
    ]
    for shown, key in (
        ("profile", "personal"),
        ("its light head alone", "head"),
        ("its in-context reading alone", "context"),
        ("base score", "base"),
    ):
        cells = [
            f"{_figure(row[key])} ± {_figure(row[f'{key}_std'])}" if row[key] is not None else "-" for row in counts
        ]
        rows.append(f"| {result['model']}, {shown} | {' | '.join(cells)} |")
    known = [row["count"] for row in counts]
    if result["dataset"] == "flickr-aes" and known == [10, 100]:
        rows += [
            f"| {name} (reported) | {ten:.3f} | {hundred:.3f} |" for name, (ten, hundred) in PIAA_FLICKR_AES.items()
        ]
    taught = "; ".join(
        f"k = {row['count']}: {row['raters']} raters" + (f", {row['untaught']:.0%} untaught" if row["untaught"] else "")
        for row in counts
    )
    rows.append(
        f"\nMean and standard deviation over raters ({taught}), each the mean of {result['repeats']} random draws of k "
        "known photos. Untaught: the known ratings were all equal, and the base score stood in. A profile blends a light "
        "head (linear regression on the model's features) with the model's in-context reading of the rated photos. Reported figures are of 37 "
        "test raters whose list is in no published file, by models trained on the others."
    )
    return "\n".join(rows) + "\n"


def held_out_tables(result: dict[str, Any]) -> str:
    """Markdown: order against degraded copies, attribute accuracy, and suggestions where they were tried."""
    rows = [f"# {result['model']} on {result['photos']} held-out photos\n", degradation_table(result["degradations"])]
    rows += ["| attribute | accuracy | majority level | balanced |", "| --- | ---: | ---: | ---: |"]
    for name, row in result["attributes"].items():
        rows.append(f"| {name} | {row['accuracy']:.1%} | {row['majority']:.1%} | {row['balanced']:.1%} |")
    if "suggestions" in result:
        rows += ["", f"Suggestions on {result['suggestions']['photos']} photos with one known fault.", ""]
        rows.append(suggestion_table(result["suggestions"]["results"]).rstrip())
    return "\n".join(rows) + "\n"


def degradation_table(result: dict[str, Any], untrained: dict[str, Any] | None = None) -> str:
    """Markdown of a `DegradationResult` as plain data, on request beside that of an untrained model."""
    columns = [(result, "score"), (result, "technical")]
    head = "| clean version first, in pairs with | by score | by technical |"
    if untrained is not None:
        columns += [(untrained, "score"), (untrained, "technical")]
        head += " untrained, by score | untrained, by technical |"
    rows = [head, "| --- |" + " ---: |" * len(columns)]
    for name in (*result["clean_first"], "all"):
        cells = [(own["all"] if name == "all" else own["clean_first"][name])[what] for own, what in columns]
        rows.append(f"| {name} | {' | '.join(f'{cell:.1%}' for cell in cells)} |")
    known = (f"{own['disliked']:.1%}" if what == "score" else "" for own, what in columns)
    rows.append(f"| the {len(DISLIKED)} faults that cost votes | {' | '.join(known)} |")
    rows += ["", f"Those that cost votes: {', '.join(DISLIKED)}."]
    if result["watermark_raises"] is not None:
        rows.append(f"A large watermark raises the score of {result['watermark_raises']:.1%} of the photos.")
    if result["black_and_white"] is not None:
        rows.append(
            "Black-and-white conversions of the third that scores highest: "
            f"{result['black_and_white']:+.2f} points on average."
        )
    return "\n".join(rows) + "\n"


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
