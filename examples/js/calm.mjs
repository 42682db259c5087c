/**
 * Score photos with a CALM pack on any ONNX Runtime for JavaScript: onnxruntime-node, onnxruntime-web.
 *
 * docs/bundle.md is the specification this follows; a test holds its scores to those of the Python runtime.
 */

import { findFrame } from "./frame.mjs";
import { openPack } from "./pack.mjs";
import { crop, shrink, toPixelValues } from "./picture.mjs";

export { PackError } from "./pack.mjs";
export { reduce, reductionFactor } from "./picture.mjs";

/** One photo cannot be scored; the next one can. The message says why and what to do. */
export class PhotoError extends Error {
  name = "PhotoError";
}

export const LIMITS = { bytes: 100_000_000, pixels: 200_000_000, side: 32 };

/** Raises PhotoError for a file that is empty or too large. @param {number} bytes */
export function checkFile(bytes) {
  if (bytes === 0) throw new PhotoError("the file is empty; copy the photo again");
  if (bytes > LIMITS.bytes) throw new PhotoError(`${bytes} bytes, the limit is ${LIMITS.bytes}; save it smaller`);
}

/** Raises PhotoError for a picture that is too large or too small. @param {number} width @param {number} height */
export function checkPicture(width, height) {
  if (width * height > LIMITS.pixels) {
    throw new PhotoError(`${width} x ${height} pixels, the limit is ${LIMITS.pixels}; save it smaller`);
  }
  if (Math.min(width, height) < LIMITS.side) {
    throw new PhotoError(`${width} x ${height} pixels, the shorter side must be ${LIMITS.side} or more`);
  }
}

/** Softmax in double precision. Raises Error when a logit is not finite. @param {ArrayLike<number>} logits */
export function softmax(logits) {
  const values = Array.from(logits);
  if (!values.every(Number.isFinite)) throw new Error("the model produced numbers that are not finite");
  const highest = Math.max(...values);
  const powers = values.map((value) => Math.exp(value - highest));
  const sum = powers.reduce((a, b) => a + b, 0);
  return powers.map((power) => power / sum);
}

/** Rating histogram -> mean and standard deviation. @param {number[]} histogram @param {number} low lowest rating */
export function moments(histogram, low) {
  const mean = histogram.reduce((sum, p, i) => sum + p * (low + i), 0);
  const square = histogram.reduce((sum, p, i) => sum + p * (low + i) ** 2, 0);
  return { mean, std: Math.sqrt(Math.max(0, square - mean ** 2)) };
}

/** Pixels of border on each side -> [left, top, right, bottom] as shares of width and height, to four digits. */
function shares({ left, top, right, bottom }, { width, height }) {
  return [left / width, top / height, right / width, bottom / height].map((share) => Number(share.toFixed(4)));
}

/**
 * Where a score lies among the reference photographs, 0 to 100: linear between two quantiles, of equal ones the last.
 * @param {number} score @param {number[]} quantiles ascending
 */
export function percentile(score, quantiles) {
  const steps = quantiles.length - 1;
  const last = quantiles.findLastIndex((quantile) => quantile <= score);
  if (last < 0) return 0;
  if (last === steps) return 100;
  const share = (score - quantiles[last]) / (quantiles[last + 1] - quantiles[last]);
  return (100 * (last + share)) / steps;
}

/** The models of one pack, loaded once. */
export class Calm {
  /** @private use `Calm.load` */
  constructor(ort, manifest, sessions, prompt) {
    this.manifest = manifest;
    this.model = `${manifest.model.name} ${manifest.model.version}`;
    this._ort = ort;
    this._sessions = sessions;
    this._prompt = prompt; // [before + after, D]
  }

  /**
   * @param {any} ort the module onnxruntime-node or onnxruntime-web
   * @param {(name: string) => Promise<Uint8Array>} read one file of the pack by name
   * @param {(done: number, total: number) => void} [progress]
   * @param {object} [options] session options of ONNX Runtime
   * @returns {Promise<Calm>} Raises PackError.
   */
  static async load(ort, read, progress, options = {}) {
    const { manifest, files } = await openPack(read, progress);
    const sessions = {};
    for (const [stage, name] of Object.entries(manifest.graphs)) {
      sessions[stage] = await ort.InferenceSession.create(files.get(name), options);
      files.delete(name); // the session has its own copy
    }
    const bytes = files.get(manifest.prompt.path);
    const prompt = new Float32Array(bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.length));
    return new Calm(ort, manifest, sessions, prompt);
  }

  /**
   * Score one upright sRGB picture.
   * @param {import("./picture.mjs").Picture} picture
   * @returns {Promise<object>} the record `calm score --json` prints, without the path
   */
  async score(picture) {
    const { photo, score, technical, reference } = this.manifest;
    const ms = {};
    const timed = async (stage, work) => {
      const start = performance.now();
      const result = await work();
      ms[stage] = performance.now() - start;
      return result;
    };
    const { pixels, frame } = await timed("resize", () => {
      const shrunk = shrink(picture, photo.size);
      const box = photo.leave_out_frames ? findFrame(shrunk) : null;
      const read = box ? crop(shrunk, box) : shrunk;
      return { pixels: toPixelValues(read, photo), frame: box && shares(box, shrunk) };
    });
    const { Tensor } = this._ort;
    const image = new Tensor("float32", pixels, [1, 3, photo.size, photo.size]);
    const { photo_embeds, ...hidden } = await timed("vision", () =>
      this._sessions.vision_encoder.run({ pixel_values: image }),
    );
    const aligned = await timed("aligner", () => this._sessions.aligner.run(hidden));
    const logits = await timed("llm", () => this._prefill(aligned.image_embeds.data));
    const read = ({ token_ids }) => softmax(token_ids.map((id) => logits[id]));
    const histogram = read(score);
    const { mean, std } = moments(histogram, score.low);
    ms.total = Object.values(ms).reduce((a, b) => a + b, 0);
    return {
      score: mean,
      technical: moments(read(technical), technical.low).mean,
      percentile: percentile(mean, reference.quantiles),
      std,
      histogram,
      scale: [score.low, score.high],
      frame,
      attributes: this._readAttributes(aligned.attribute_logits.data),
      model: this.model,
      bundle: this.manifest.bundle,
      ms,
    };
  }

  /** Free the models. */
  async close() {
    await Promise.all(Object.values(this._sessions).map((session) => session.release()));
  }

  /** Prompt with the visual tokens [T, D] in their slot -> logits [V] at the answer position. */
  async _prefill(imageEmbeds) {
    const { llm, prompt } = this.manifest;
    const { Tensor } = this._ort;
    const cut = prompt.before.length * llm.hidden_size;
    const embeds = new Float32Array(this._prompt.length + imageEmbeds.length);
    embeds.set(this._prompt.subarray(0, cut));
    embeds.set(imageEmbeds, cut);
    embeds.set(this._prompt.subarray(cut), cut + imageEmbeds.length);
    const length = embeds.length / llm.hidden_size;
    const feeds = {
      inputs_embeds: new Tensor("float32", embeds, [1, length, llm.hidden_size]),
      attention_mask: new Tensor("int64", new BigInt64Array(length).fill(1n), [1, length]),
    };
    for (let layer = 0; layer < llm.layers; layer++) {
      for (const half of ["key", "value"]) {
        const empty = new Tensor("float32", new Float32Array(0), [1, llm.kv_heads, 0, llm.head_dim]);
        feeds[`past_key_values.${layer}.${half}`] = empty;
      }
    }
    const { logits } = await this._sessions.llm.run(feeds, ["logits"]);
    return logits.data;
  }

  /** Attribute logits [A, 3] -> name -> scale, most probable level, probability of each level. */
  _readAttributes(logits) {
    const readings = this.manifest.attributes.map((attribute, row) => {
      const probabilities = softmax(logits.subarray(row * 3, row * 3 + 3));
      const names = attribute.levels.map((level) => level.name);
      return [
        attribute.name,
        {
          scale: attribute.scale,
          level: names[probabilities.indexOf(Math.max(...probabilities))],
          probabilities: Object.fromEntries(names.map((name, i) => [name, probabilities[i]])),
        },
      ];
    });
    return Object.fromEntries(readings);
  }
}
