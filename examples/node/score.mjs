/**
 * Score photos in Node.js: `node score.mjs PACK PHOTO...` prints one JSON object per photo, as `calm score --json` does.
 *
 * Exit code: 0 all good, 1 some photos failed, 2 wrong use or a pack that cannot be loaded.
 */

import "./no_telemetry.mjs"; // before onnxruntime-node
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import * as ort from "onnxruntime-node";
import sharp from "sharp";
import { Calm, LIMITS, PhotoError, checkFile, checkPicture } from "../js/calm.mjs";

/** Photo file -> upright sRGB picture over the pad colour. Raises PhotoError. */
async function decode(path, spec) {
  let bytes;
  try {
    bytes = await readFile(path);
  } catch (error) {
    throw new PhotoError(`cannot be read (${error.code ?? error.message}); check the path`);
  }
  checkFile(bytes.length);
  const [r, g, b] = spec.pad_color;
  try {
    const image = sharp(bytes, { limitInputPixels: LIMITS.pixels, failOn: "truncated" });
    const { width, height } = await image.metadata();
    checkPicture(width, height);
    const { data, info } = await image
      .autoOrient()
      .toColourspace("srgb")
      .flatten({ background: { r, g, b } })
      .raw({ depth: "uchar" })
      .toBuffer({ resolveWithObject: true });
    return { data, width: info.width, height: info.height, channels: info.channels };
  } catch (error) {
    if (error instanceof PhotoError) throw error;
    throw new PhotoError(`not a picture that can be decoded (${error.message.trim()}); export it as JPEG`);
  }
}

async function main([pack, ...photos]) {
  if (!pack || photos.length === 0) {
    console.error("usage: node score.mjs PACK PHOTO...");
    return 2;
  }
  let calm;
  try {
    calm = await Calm.load(ort, (name) => readFile(join(pack, name)));
  } catch (error) {
    console.error(`score.mjs: ${pack}: ${error.message}`);
    return 2;
  }
  let failed = 0;
  for (const path of photos) {
    try {
      const start = performance.now();
      const picture = await decode(path, calm.manifest.photo);
      const spent = performance.now() - start;
      const { ms, ...result } = await calm.score(picture);
      console.log(JSON.stringify({ path, ...result, ms: { decode: spent, ...ms, total: spent + ms.total } }));
    } catch (error) {
      if (!(error instanceof PhotoError)) throw error;
      failed += 1;
      console.log(JSON.stringify({ path, error: { type: error.name, message: `${path}: ${error.message}` } }));
    }
  }
  await calm.close();
  return failed ? 1 : 0;
}

process.exitCode = await main(process.argv.slice(2));
