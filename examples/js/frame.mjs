/**
 * The uniform frame around a photograph, as docs/bundle.md says (section Frames): the same boxes as the Python runtime,
 * to the pixel.
 *
 * @typedef {{data: Uint8Array | Uint8ClampedArray, width: number, height: number, channels?: number}} Picture
 *   Rows from the top, pixel after pixel, red, green and blue first; 4 channels where none are given, as in ImageData.
 * @typedef {{left: number, top: number, right: number, bottom: number}} FrameBox pixels of border on each side
 */

const TOLERANCES = [16, 6]; // levels: above the noise of JPEG near an edge; for a photograph almost of the frame's colour
const RINGING = 3; // lines before an edge in which JPEG's noise may exceed the tolerance
const TRIM = 2; // lines beyond an edge that blending and JPEG may have mixed with the frame
const ROUNDS = 8; // frames around one another
const SMALLEST = 8; // pixels
const FOUR_SIDES = 240; // percent, summed over four edges
const EACH_OF_TWO = 40;
const TWO_SIDES = 130;
const TWO_OF_FOUR = 160;

/**
 * The frame around an upright picture, or null; at least a fifth of either side is left.
 * @param {Picture} picture @returns {FrameBox | null}
 */
export function findFrame(picture) {
  const { width, height } = picture;
  let box = { left: 0, top: 0, right: 0, bottom: 0 };
  for (let round = 0; round < ROUNDS; round++) {
    const inside = windowOf(picture, box);
    const found = TOLERANCES.reduce((frame, tolerance) => frame ?? outermost(inside, tolerance), null);
    if (!found) break;
    const next = {
      left: box.left + found.left,
      top: box.top + found.top,
      right: box.right + found.right,
      bottom: box.bottom + found.bottom,
    };
    if (5 * (width - next.left - next.right) < width || 5 * (height - next.top - next.bottom) < height) break;
    box = next;
  }
  return 100 * Math.max(box.left, box.top, box.right, box.bottom) < Math.min(width, height) ? null : box;
}

/** What is inside a box, without copying. */
function windowOf({ data, width, height, channels = 4 }, { left, top, right, bottom }) {
  return {
    data,
    width: width - left - right,
    height: height - top - bottom,
    at: (x, y) => ((top + y) * width + left + x) * channels,
  };
}

function outermost(picture, tolerance) {
  const { width, height } = picture;
  if (Math.min(width, height) < SMALLEST) return null;
  const row = (y) => Array.from({ length: width }, (_, x) => picture.at(x, y));
  const column = (x) => Array.from({ length: height }, (_, y) => picture.at(x, y));
  const rows = [row(0), row(height - 1)];
  const columns = [column(0), column(width - 1)];
  let far = farFromCommonColour(picture, tolerance, [...rows, ...columns]);
  const found = far && fourSides(far, width, height);
  if (found) return found;
  // An object on a plain ground has straight sides more often than a ground of one colour has bars of that colour.
  const least = far ? TWO_OF_FOUR : TWO_SIDES;
  far = farFromCommonColour(picture, tolerance, rows);
  let pair = far && twoSides(countRows(far, width, 0, width, height), width, least);
  if (pair) return { left: 0, top: pair[0], right: 0, bottom: pair[1] };
  far = farFromCommonColour(picture, tolerance, columns);
  pair = far && twoSides(countColumns(far, width, 0, height), height, least);
  return pair && { left: pair[0], top: 0, right: pair[1], bottom: 0 };
}

/** A mask [height * width] of what is not of the lines' median colour; null unless 7/8 of every line is of it. */
function farFromCommonColour(picture, tolerance, lines) {
  const { data, width, height, at } = picture;
  const pixels = lines.flat();
  const middle = Math.floor((pixels.length - 1) / 2);
  const [red, green, blue] = [0, 1, 2].map((c) => Uint8Array.from(pixels, (p) => data[p + c]).sort()[middle]);
  const isFar = (p) =>
    Math.abs(data[p] - red) > tolerance ||
    Math.abs(data[p + 1] - green) > tolerance ||
    Math.abs(data[p + 2] - blue) > tolerance;
  if (lines.some((line) => 8 * line.filter(isFar).length > line.length)) return null;
  const far = new Uint8Array(width * height);
  for (let y = 0, i = 0; y < height; y++) for (let x = 0; x < width; x++, i++) far[i] = isFar(at(x, y)) ? 1 : 0;
  return far;
}

/** For every row: how much of it is far, between two columns. */
function countRows(far, width, left, right, height) {
  const counts = new Int32Array(height);
  for (let y = 0; y < height; y++) for (let x = left; x < right; x++) counts[y] += far[y * width + x];
  return counts;
}

/** For every column: how much of it is far, between two rows. */
function countColumns(far, width, top, bottom) {
  const counts = new Int32Array(width);
  for (let y = top; y < bottom; y++) for (let x = 0; x < width; x++) counts[x] += far[y * width + x];
  return counts;
}

function fourSides(far, width, height) {
  // As much as the narrowest photograph shows in a row.
  const rough = span(countRows(far, width, 0, width, height), (count) => 16 * count > width);
  if (!rough) return null;
  let [top, bottom] = rough;
  let columns = edges(countColumns(far, width, top, bottom), bottom - top);
  if (!columns) return null;
  const [left, right] = [columns[0].depth, width - columns[1].depth];
  const rows = edges(countRows(far, width, left, right, height), right - left);
  if (!rows) return null;
  [top, bottom] = [rows[0].depth, height - rows[1].depth];
  columns = edges(countColumns(far, width, top, bottom), bottom - top);
  if (!columns) return null;
  const percents = [...rows, ...columns].map((edge) => edge.percent);
  if (percents.filter((percent) => percent === 0).length > 1) return null;
  if (percents.reduce((a, b) => a + b) < FOUR_SIDES) return null;
  const [across, down] = [depths(...columns), depths(...rows)];
  return across && down && { left: across[0], top: down[0], right: across[1], bottom: down[1] };
}

function twoSides(counts, length, least) {
  const found = edges(counts, length);
  if (!found) return null;
  const [first, last] = found.map((edge) => edge.percent);
  return Math.min(first, last) >= EACH_OF_TWO && first + last >= least ? depths(...found) : null;
}

/** Widths to cut. An edge that cannot be seen, white sky in a white frame, is as deep as the opposite one. */
function depths(first, last) {
  const before = first.percent === 0 ? last.depth : first.depth;
  const after = last.percent === 0 ? first.depth : last.depth;
  return before <= first.depth && after <= last.depth ? [before + TRIM, after + TRIM] : null;
}

/** Both edges of a picture whose lines, `length` pixels long, differ from the border in `counts` pixels each. */
function edges(counts, length) {
  const found = span(counts, (count) => 4 * count > length);
  return found && [edge(counts, length, found[0]), edge(counts.slice().reverse(), length, counts.length - found[1])];
}

function edge(counts, length, depth) {
  if (depth === 0) return { depth: 0, percent: 0 };
  const inside = Math.max(...counts.subarray(depth, depth + 3));
  const outside = Math.min(...counts.subarray(Math.max(depth - RINGING, 0), depth));
  return { depth, percent: 4 * outside <= inside ? Math.floor((100 * inside) / length) : 0 };
}

/** Begin of the first and end of the last three lines in a row; fewer are JPEG's ringing. */
function span(counts, many) {
  let first = -1;
  let last = -1;
  for (let i = 0; i + 2 < counts.length; i++) {
    if (!many(counts[i]) || !many(counts[i + 1]) || !many(counts[i + 2])) continue;
    if (first < 0) first = i;
    last = i + 3;
  }
  return first < 0 ? null : [first, last];
}
