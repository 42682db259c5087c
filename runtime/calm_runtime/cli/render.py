"""Scores for people: one block per photo, as wide as the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table as Grid
from rich.text import Text

from calm_runtime.attributes import ATTRIBUTES

if TYPE_CHECKING:
    from calm_runtime.batch import Scored
    from calm_runtime.score import AttributeReading, Score

SCALE_TITLES = {"low": "Light & colour", "middle": "Composition", "high": "Impression"}
_BLOCKS = "▁▂▃▄▅▆▇█"
_SURE, _VERY_SURE = 0.5, 0.8  # a plain level must be surer than one that speaks for or against the photo
_SHOWN_PER_SCALE = 3
_BAR = 10
_NARROW = 68  # columns; below, what is said of a photo goes under its numbers instead of beside them
_POLARITY = {(a.name, level.name): level.polarity for a in ATTRIBUTES for level in a.levels}
_STYLE = {1: "green", -1: "red", 0: ""}
_SIGN = {1: "+", -1: "−", 0: "·"}


class Table:
    """Prints results as they come; the header goes before the first one."""

    def __init__(self, details: bool = False, console: Console | None = None) -> None:
        self._console = console or Console(highlight=False)
        self._details = details
        self._scores: list[float] = []
        self._failed = 0
        self._started = False

    def add(self, name: str, result: Scored) -> None:
        """Print one photo's block, or its error in the same place."""
        narrow = self._console.width < _NARROW
        title = Text(name, style="bold", overflow="fold")
        body: RenderableType
        second: tuple[RenderableType, ...] = ("", "", "")
        if result.score is not None:
            score = result.score
            self._scores.append(score.mean)
            attributes = _all_attributes(score, narrow) if self._details else _standing_out(score, narrow)
            body = Group(_meaning(score), attributes)
            first = (_score_text(score.mean), f"±{score.std:.1f}", _histogram(score))
            personal = ("", "") if score.personal is None else (_score_text(score.personal), "yours")
            second = (*personal, Text(f"{score.scale[0]}{score.scale[1]:>9}", style="dim"))
        else:
            self._failed += 1
            body = Text(_without_name(str(result.error), name), style="red")
            first = (Text("–", style="red"), "", Text("not scored", style="red"))
        if self._started:
            self._console.print()
        self._console.print(self._block(first, second, title, body, narrow))
        self._started = True

    def _block(
        self,
        first: tuple[RenderableType, ...],
        second: tuple[RenderableType, ...],
        title: Text,
        body: RenderableType,
        narrow: bool,
    ) -> RenderableType:
        grid = Grid(box=None, show_header=not self._started, expand=not narrow, padding=(0, 1), header_style="dim")
        grid.add_column("Score", width=5, justify="right")
        grid.add_column("Spread", width=6, justify="right")
        grid.add_column("Ratings", width=10)
        if narrow:
            grid.add_row(*first)
            if any(second):
                grid.add_row(*second)
            return Group(grid, Padding(Group(title, body), (0, 1)))
        grid.add_column("Photo", ratio=1)
        grid.add_row(*first, title)
        grid.add_row(*second, body)
        return grid

    def close(self) -> None:
        """A closing line when there was more than one photo."""
        if len(self._scores) + self._failed < 2:
            return
        parts = [f"{len(self._scores)} scored"]
        if self._scores:
            mean = sum(self._scores) / len(self._scores)
            parts.append(f"mean {mean:.1f}, lowest {min(self._scores):.1f}, highest {max(self._scores):.1f}")
        if self._failed:
            parts.append(f"{self._failed} failed")
        self._console.print("\n " + "; ".join(parts), style="dim")


def _score_text(mean: float) -> Text:
    style = "green" if mean >= 6.5 else "yellow" if mean >= 4.5 else "red"
    return Text(f"{mean:.1f}", style=f"bold {style}")


def _histogram(score: Score) -> Text:
    """The rating histogram [10], its tallest bar full."""
    top = max(score.histogram)
    return Text("".join(_BLOCKS[round(p / top * (len(_BLOCKS) - 1))] for p in score.histogram), style="cyan")


def _meaning(score: Score) -> Text:
    """The score among others, and what it does not tell: damage, and what was not read."""
    line = Text.assemble(f"better than {int(score.percentile)} of 100; technical ", _score_text(score.technical))
    return line.append("; frame left out") if score.frame else line


def _standing_out(score: Score, narrow: bool) -> Grid:
    """The attributes a user should know, by scale; when narrow, each scale's under its title."""
    grid = Grid.grid(padding=(0, 2, 0, 0))
    if not narrow:
        grid.add_column(style="dim", no_wrap=True)
    grid.add_column()
    for scale, title in SCALE_TITLES.items():
        picked = [(name, r) for name, r in score.attributes.items() if r.scale == scale and _stands_out(name, r)]
        picked.sort(key=lambda item: (_rank(*item), -_probability(item[1])))
        line = Text(", ").join(_label(name, r) for name, r in picked[:_SHOWN_PER_SCALE])
        said = line if picked else Text("nothing stands out", style="dim")
        if narrow:
            grid.add_row(Text(title, style="dim"))
            grid.add_row(Padding(said, (0, 0, 0, 1)))
        else:
            grid.add_row(title, said)
    return grid


def _all_attributes(score: Score, narrow: bool) -> Grid:
    """Every attribute with its level's probability; the bars only where there is room."""
    grid = Grid.grid(padding=(0, 1, 0, 0))
    grid.add_column(no_wrap=True)
    grid.add_column(no_wrap=True)
    grid.add_column(justify="right", no_wrap=True)
    if not narrow:
        grid.add_column(width=_BAR, no_wrap=True)
    for scale, title in SCALE_TITLES.items():
        grid.add_row(Text(title, style="dim"))
        for name, reading in score.attributes.items():
            if reading.scale == scale:
                style = _STYLE[_polarity(name, reading)]
                share = _probability(reading)
                bar = Text("█" * round(share * _BAR), style=style or "cyan")
                row = (f" {name}", Text(reading.level, style=style), f"{share:.0%}", bar)
                grid.add_row(*row[: len(grid.columns)])
    return grid


def _label(name: str, reading: AttributeReading) -> Text:
    polarity = _polarity(name, reading)
    return Text(f"{_SIGN[polarity]} {name} {reading.level}", style=_STYLE[polarity])


def _stands_out(name: str, reading: AttributeReading) -> bool:
    return _probability(reading) >= (_SURE if _polarity(name, reading) else _VERY_SURE)


def _rank(name: str, reading: AttributeReading) -> int:
    """Faults first, they are what can be mended; then merits; then plain facts."""
    return {-1: 0, 1: 1, 0: 2}[_polarity(name, reading)]


def _polarity(name: str, reading: AttributeReading) -> int:
    return _POLARITY.get((name, reading.level), 0)


def _probability(reading: AttributeReading) -> float:
    return reading.probabilities[reading.level]


def _without_name(message: str, name: str) -> str:
    return message.removeprefix(f"{name}: ")
