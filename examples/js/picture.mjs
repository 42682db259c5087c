/**
 * From pixels to what the vision encoder reads, as docs/bundle.md says. Resizing is Pillow's, to the last bit but for
 * very tall pictures: neither a canvas nor an image library scales like it, and the score would notice.
 *
 * @typedef {{data: Uint8Array | Uint8ClampedArray, width: number, height: number, channels: number}} Picture
 *   Rows from the top, pixel after pixel, the first three channels red, green, blue in sRGB.
 * @typedef {{size: number, pad_color: number[], mean: number[], std: number[], fit: "pad" | "stretch",
 *   leave_out_frames: boolean}} PhotoSpec
 */

const PRECISION_BITS = 22; // Pillow's fixed-point filter weights
const SUPPORT = 2; // of the cubic filter, in pixels

/**
 * By how much a picture may be shrunk in whole blocks before it is scaled: 8, 4, 2 or 1.
 * @param {number} width @param {number} height @param {number} size the model's
 */
export function reductionFactor(width, height, size) {
  const longer = Math.max(width, height);
  return [8, 4, 2].find((n) => Math.floor(longer / n) >= 2 * size) ?? 1;
}

/**
 * Pillow's `reduce(n)`: every n x n block becomes its mean; blocks at the right and lower edge may be smaller.
 * @param {Picture} picture @param {number} n @returns {Picture} three channels
 */
export function reduce(picture, n) {
  const { data, width, height, channels } = picture;
  const out = { width: Math.ceil(width / n), height: Math.ceil(height / n), channels: 3 };
  const means = new Uint8Array(out.width * out.height * 3);
  for (let y = 0; y < out.height; y++) {
    const rows = Math.min(n, height - y * n);
    for (let x = 0; x < out.width; x++) {
      const columns = Math.min(n, width - x * n);
      const area = rows * columns;
      const multiplier = Math.floor(2 ** 24 / area);
      for (let c = 0; c < 3; c++) {
        let sum = Math.floor(area / 2);
        for (let dy = 0; dy < rows; dy++) {
          let at = ((y * n + dy) * width + x * n) * channels + c;
          for (let dx = 0; dx < columns; dx++, at += channels) sum += data[at];
        }
        means[(y * out.width + x) * 3 + c] = Math.floor((sum * multiplier) / 2 ** 24);
      }
    }
  }
  return { data: means, ...out };
}

/**
 * What decoders do with large pictures, after them: a picture of twice the model's size or more.
 * @param {Picture} picture @param {number} size the model's @returns {Picture}
 */
export function shrink(picture, size) {
  const factor = reductionFactor(picture.width, picture.height, size);
  return factor > 1 ? reduce(picture, factor) : picture;
}

/**
 * The picture without a border of so many pixels on each side.
 * @param {Picture} picture @param {{left: number, top: number, right: number, bottom: number}} border
 * @returns {Picture}
 */
export function crop(picture, { left, top, right, bottom }) {
  const { data, channels } = picture;
  const [width, height] = [picture.width - left - right, picture.height - top - bottom];
  const kept = new Uint8Array(width * height * channels);
  for (let y = 0; y < height; y++) {
    const start = ((y + top) * picture.width + left) * channels;
    kept.set(data.subarray(start, start + width * channels), y * width * channels);
  }
  return { data: kept, width, height, channels };
}

/** The cubic filter with a = -0.5. */
function cubic(x) {
  x = Math.abs(x);
  if (x < 1) return (1.5 * x - 2.5) * x * x + 1;
  if (x < 2) return (((x - 5) * x + 8) * x - 4) * -0.5;
  return 0;
}

/** For every output pixel of one axis: the first input pixel it sees, and the weight of that and the following ones. */
function filterWeights(from, to) {
  const scale = from / to;
  const stretch = Math.max(scale, 1); // antialiasing: the filter grows with the reduction
  const support = SUPPORT * stretch;
  return Array.from({ length: to }, (_, i) => {
    const centre = (i + 0.5) * scale;
    const first = Math.max(0, Math.trunc(centre - support + 0.5));
    const last = Math.min(from, Math.trunc(centre + support + 0.5));
    const exact = Array.from({ length: last - first }, (_, k) => cubic((k + first - centre + 0.5) / stretch));
    const sum = exact.reduce((a, b) => a + b, 0);
    const weights = exact.map((w) => {
      const fixed = (w / sum) * 2 ** PRECISION_BITS;
      return Math.trunc(fixed + (fixed < 0 ? -0.5 : 0.5));
    });
    return { first, weights: Int32Array.from(weights) };
  });
}

/** Filter along one axis. `step`: distance of two pixels along it, `lines`: where each line starts, both in values. */
function filterAxis(source, target, weights, sourceStep, targetStep, lines) {
  for (const [sourceStart, targetStart] of lines) {
    let out = targetStart;
    for (const { first, weights: row } of weights) {
      let sum = 2 ** (PRECISION_BITS - 1);
      let at = sourceStart + first * sourceStep;
      for (let k = 0; k < row.length; k++, at += sourceStep) sum += source[at] * row[k];
      target[out] = Math.min(255, Math.max(0, Math.floor(sum / 2 ** PRECISION_BITS)));
      out += targetStep;
    }
  }
}

/**
 * Pillow's `resize((width, height), BICUBIC)`: antialiased, first along the rows, then along the columns, eight bits
 * in between. (From version 13 on, Pillow begins with the columns of pictures above twice as high as wide, and of some that
 * are stretched from less than twice the size: there single values differ by a few of 255.)
 * @param {Picture} picture @param {number} width @param {number} height @returns {Picture} three channels
 */
export function resizeBicubic(picture, width, height) {
  const { data, width: fromWidth, height: fromHeight, channels } = picture;
  const wide = new Uint8Array(width * fromHeight * 3);
  const rows = [];
  for (let y = 0; y < fromHeight; y++) {
    for (let c = 0; c < 3; c++) rows.push([y * fromWidth * channels + c, y * width * 3 + c]);
  }
  filterAxis(data, wide, filterWeights(fromWidth, width), channels, 3, rows);
  if (fromHeight === height) return { data: wide, width, height, channels: 3 };
  const done = new Uint8Array(width * height * 3);
  const columns = Array.from({ length: width * 3 }, (_, i) => [i, i]);
  filterAxis(wide, done, filterWeights(fromHeight, height), width * 3, width * 3, columns);
  return { data: done, width, height, channels: 3 };
}

/** Python's `round`: halves go to the even number. */
function roundHalfEven(x) {
  const down = Math.floor(x);
  if (x - down !== 0.5) return Math.round(x);
  return down % 2 === 0 ? down : down + 1;
}

/** Width and height at which the model reads a picture. */
function modelSize(picture, { size, fit }) {
  if (fit === "stretch") return [size, size];
  const scale = size / Math.max(picture.width, picture.height);
  return [picture.width, picture.height].map((side) => Math.max(1, roundHalfEven(side * scale)));
}

/**
 * Picture -> pixel_values [3, S, S]: scaled to fit, centred on the pad colour, normalised, channels first.
 * @param {Picture} picture upright, as `shrink` gives it @param {PhotoSpec} spec @returns {Float32Array}
 */
export function toPixelValues(picture, spec) {
  const { size, pad_color: pad, mean, std } = spec;
  const [width, height] = modelSize(picture, spec);
  const fitted = resizeBicubic(picture, width, height);
  const [left, top] = [Math.floor((size - width) / 2), Math.floor((size - height) / 2)];
  const values = new Float32Array(3 * size * size);
  const f32 = Math.fround;
  for (let c = 0; c < 3; c++) {
    const table = Float32Array.from({ length: 256 }, (_, v) => f32(f32(f32(v / 255) - f32(mean[c])) / f32(std[c])));
    const plane = values.subarray(c * size * size, (c + 1) * size * size).fill(table[pad[c]]);
    for (let y = 0; y < height; y++) {
      for (let x = 0; x < width; x++) {
        plane[(y + top) * size + x + left] = table[fitted.data[(y * width + x) * 3 + c]];
      }
    }
  }
  return values;
}
