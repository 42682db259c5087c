"""The uniform frame around a photograph: borders, mats, letterbox and pillarbox bars, of any one colour.

docs/bundle.md specifies the algorithm (section Frames); examples/js/frame.mjs is the same in JavaScript.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

_TOLERANCES = (16, 6)  # levels: above the noise of JPEG near an edge; for a photograph almost of the frame's colour
_RINGING = 3  # lines before an edge in which JPEG's noise may exceed the tolerance
_TRIM = 2  # lines beyond an edge that blending and JPEG may have mixed with the frame
_ROUNDS = 8  # frames around one another
_SMALLEST = 8  # pixels
_FOUR_SIDES = 240  # percent, summed over four edges
_EACH_OF_TWO, _TWO_SIDES, _TWO_OF_FOUR = 40, 130, 160

_Pixels = npt.NDArray[np.uint8]  # [3, H, W], or [3, N] along a line
_Mask = npt.NDArray[np.bool_]
_Counts = npt.NDArray[np.int32]


class FrameBox(NamedTuple):
    """Pixels of border on each side of a picture."""

    left: int
    top: int
    right: int
    bottom: int


class _Edge(NamedTuple):
    depth: int  # lines of border outside of it
    percent: int  # of its length at which the picture differs from the border; 0: not straight


def find_frame(picture: Image.Image) -> FrameBox | None:
    """Frame around an upright RGB picture, or None; at least a fifth of either side is left.

    One colour along all four sides, or along two opposite ones, up to straight edges; several such frames around one
    another count as one. Raises ValueError for another mode than RGB.
    """
    if picture.mode != "RGB":
        raise ValueError(f'a frame is looked for in RGB pictures, this one is {picture.mode}; use convert("RGB")')
    pixels = np.stack([np.asarray(channel) for channel in picture.split()])
    width, height = picture.size
    left = top = right = bottom = 0
    for _ in range(_ROUNDS):
        window = pixels[:, top : height - bottom, left : width - right]
        found = next(filter(None, (_outermost(window, tolerance) for tolerance in _TOLERANCES)), None)
        if found is None:
            break
        box = FrameBox(left + found.left, top + found.top, right + found.right, bottom + found.bottom)
        if 5 * (width - box.left - box.right) < width or 5 * (height - box.top - box.bottom) < height:
            break
        left, top, right, bottom = box
    if 100 * max(left, top, right, bottom) < min(width, height):
        return None
    return FrameBox(left, top, right, bottom)


def frame_shares(box: FrameBox, size: tuple[int, int]) -> tuple[float, float, float, float]:
    """Left, top, right, bottom as shares of the width or height of the picture, to four digits."""
    width, height = size
    left, top, right, bottom = box
    return round(left / width, 4), round(top / height, 4), round(right / width, 4), round(bottom / height, 4)


def crop_frame(picture: Image.Image, box: FrameBox) -> Image.Image:
    """The picture without its frame."""
    return picture.crop((box.left, box.top, picture.width - box.right, picture.height - box.bottom))


def _outermost(pixels: _Pixels, tolerance: int) -> FrameBox | None:
    height, width = pixels.shape[1:]
    if min(height, width) < _SMALLEST:
        return None
    rows, columns = (pixels[:, 0], pixels[:, -1]), (pixels[:, :, 0], pixels[:, :, -1])
    far = _far_from_common_colour(pixels, tolerance, *rows, *columns)
    if far is not None and (found := _four_sides(far)):
        return found
    # An object on a plain ground has straight sides more often than a ground of one colour has bars of that colour.
    least = _TWO_SIDES if far is None else _TWO_OF_FOUR
    far = _far_from_common_colour(pixels, tolerance, *rows)
    if far is not None and (pair := _two_sides(_counts(far, axis=1), width, least)):
        return FrameBox(0, pair[0], 0, pair[1])
    far = _far_from_common_colour(pixels, tolerance, *columns)
    if far is not None and (pair := _two_sides(_counts(far, axis=0), height, least)):
        return FrameBox(pair[0], 0, pair[1], 0)
    return None


def _far_from_common_colour(pixels: _Pixels, tolerance: int, *lines: _Pixels) -> _Mask | None:
    """Mask [H, W] of what is not of the lines' median colour; None unless 7/8 of every line is of it."""
    ring = np.concatenate(lines, axis=1)
    middle = (ring.shape[1] - 1) // 2
    ring.partition(middle, axis=1)
    colour = ring[:, middle].astype(np.int16)
    low = np.maximum(colour - tolerance, 0).astype(np.uint8)
    span = np.minimum(colour + tolerance, 255).astype(np.uint8) - low
    if any(8 * np.count_nonzero(_far(line, low, span)) > line.shape[1] for line in lines):
        return None
    return _far(pixels, low, span)


def _far(pixels: _Pixels, low: _Pixels, span: _Pixels) -> _Mask:
    # uint8 wraps round, so that one comparison tells both sides of the range.
    red, green, blue = (pixels[channel] - low[channel] > span[channel] for channel in range(3))
    return np.asarray(red | green | blue)


def _counts(far: _Mask, axis: int) -> _Counts:
    return np.asarray(far.view(np.uint8).sum(axis=axis, dtype=np.int32))


def _four_sides(far: _Mask) -> FrameBox | None:
    height, width = far.shape
    rough = _span(16 * _counts(far, axis=1) > width)  # as much as the narrowest photograph shows in a row
    if rough is None:
        return None
    top, bottom = rough
    columns = _edges(_counts(far[top:bottom], axis=0), bottom - top)
    if columns is None:
        return None
    left, right = columns[0].depth, width - columns[1].depth
    rows = _edges(_counts(far[:, left:right], axis=1), right - left)
    if rows is None:
        return None
    top, bottom = rows[0].depth, height - rows[1].depth
    columns = _edges(_counts(far[top:bottom], axis=0), bottom - top)
    if columns is None:
        return None
    percents = [edge.percent for edge in (*rows, *columns)]
    if percents.count(0) > 1 or sum(percents) < _FOUR_SIDES:
        return None
    across, down = _depths(*columns), _depths(*rows)
    return FrameBox(across[0], down[0], across[1], down[1]) if across and down else None


def _two_sides(counts: _Counts, length: int, least: int) -> tuple[int, int] | None:
    edges = _edges(counts, length)
    if edges is None:
        return None
    first, last = edges[0].percent, edges[1].percent
    return _depths(*edges) if min(first, last) >= _EACH_OF_TWO and first + last >= least else None


def _depths(first: _Edge, last: _Edge) -> tuple[int, int] | None:
    """Widths to cut. An edge that cannot be seen, white sky in a white frame, is as deep as the opposite one."""
    before = last.depth if first.percent == 0 else first.depth
    after = first.depth if last.percent == 0 else last.depth
    return (before + _TRIM, after + _TRIM) if before <= first.depth and after <= last.depth else None


def _edges(counts: _Counts, length: int) -> tuple[_Edge, _Edge] | None:
    """Both edges of a picture whose lines, `length` pixels long, differ from the border in `counts` pixels each."""
    span = _span(4 * counts > length)
    if span is None:
        return None
    return _edge(counts, length, span[0]), _edge(counts[::-1], length, len(counts) - span[1])


def _edge(counts: _Counts, length: int, depth: int) -> _Edge:
    if depth == 0:
        return _Edge(0, 0)
    inside = int(counts[depth : depth + 3].max())
    outside = int(counts[max(depth - _RINGING, 0) : depth].min())
    return _Edge(depth, 100 * inside // length if 4 * outside <= inside else 0)


def _span(lines: npt.NDArray[np.bool_]) -> tuple[int, int] | None:
    """Begin of the first and end of the last three lines in a row; fewer are JPEG's ringing."""
    runs = np.flatnonzero(lines[:-2] & lines[1:-1] & lines[2:])
    return (int(runs[0]), int(runs[-1]) + 3) if len(runs) else None
