"""Draw what `calm score examples/` prints as docs/demo.svg, for the README."""

from __future__ import annotations

import io
import os
from pathlib import Path

from rich.console import Console

from calm_runtime import Calm
from calm_runtime.cli.render import Table

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    os.chdir(ROOT)
    console = Console(record=True, width=100, file=io.StringIO(), force_terminal=True, highlight=False)
    console.print("[bold]$ calm score examples/[/bold]")
    table = Table(console=console)
    for result in Calm.load().score_many(sorted(Path("examples").glob("*.jpg"))):
        table.add(str(result.path), result)
    table.close()
    svg = console.export_svg(title="calm score")
    # A picture in a README must not fetch a font.
    head, _, rest = svg.partition("<style>")
    style, _, body = rest.partition("</style>")
    kept = style[style.index(".terminal") :] if ".terminal" in style else style
    (ROOT / "docs" / "demo.svg").write_text(f"{head}<style>{kept}</style>{body}")


if __name__ == "__main__":
    main()
