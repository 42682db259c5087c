"""A picture of the photos that a model finds best and worst, to be looked at."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont, ImageOps

COLUMNS, CELL, CAPTION, GAP = 10, 180, 18, 6  # photos in a row; pixels


def contact_sheet(pictures: Sequence[Image.Image], scores: Sequence[float], count: int = 20) -> Image.Image:
    """The `count` photos of the highest and of the lowest scores, best first, each with its score; all when there are few."""
    order = sorted(range(len(pictures)), key=lambda n: -scores[n])
    count = min(count, (len(order) + 1) // 2)
    groups = {"best": order[:count], "worst": order[max(count, len(order) - count) :]}
    rows = {name: -(-len(members) // COLUMNS) for name, members in groups.items()}
    step = CELL + CAPTION + GAP
    height = sum(CAPTION + GAP + count * step for count in rows.values()) + GAP
    sheet = Image.new("RGB", (COLUMNS * (CELL + GAP) + GAP, height), (40, 40, 40))
    draw, font, top = ImageDraw.Draw(sheet), ImageFont.load_default(14), GAP
    for name, members in groups.items():
        draw.text((GAP, top), f"{name} {len(members)} of {len(pictures)}", "white", font)
        top += CAPTION + GAP
        for place, number in enumerate(members):
            left, upper = GAP + place % COLUMNS * (CELL + GAP), top + place // COLUMNS * step
            small = ImageOps.contain(pictures[number].convert("RGB"), (CELL, CELL))
            sheet.paste(small, (left + (CELL - small.width) // 2, upper + (CELL - small.height) // 2))
            draw.text((left, upper + CELL), f"{scores[number]:.2f}", "white", font)
        top += rows[name] * step
    return sheet
