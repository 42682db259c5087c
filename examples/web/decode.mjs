/** The browser's own decoder as the source of pictures: upright, in sRGB, over the pad colour. */

import { PhotoError, checkFile, checkPicture, reduce, reductionFactor } from "../js/calm.mjs";

const STRIP_PIXELS = 4_000_000; // phones refuse a canvas as large as their photos

/**
 * Photo file -> picture, shrunk in whole blocks while it is read. Raises PhotoError.
 * @param {Blob} file @param {import("../js/picture.mjs").PhotoSpec} spec
 * @returns {Promise<import("../js/picture.mjs").Picture>}
 */
export async function decode(file, spec) {
  checkFile(file.size);
  let bitmap;
  try {
    bitmap = await createImageBitmap(file, { imageOrientation: "from-image", colorSpaceConversion: "default" });
  } catch {
    throw new PhotoError("not a picture this browser can decode; export it as JPEG");
  }
  try {
    checkPicture(bitmap.width, bitmap.height);
    return readPixels(bitmap, spec);
  } finally {
    bitmap.close();
  }
}

function readPixels(bitmap, spec) {
  const { width, height } = bitmap;
  const n = reductionFactor(width, height, spec.size);
  const strip = n * Math.max(1, Math.floor(STRIP_PIXELS / (width * n))); // whole blocks, so that strips leave no seam
  const canvas = new OffscreenCanvas(width, Math.min(strip, height));
  const context = canvas.getContext("2d", { alpha: false, colorSpace: "srgb", willReadFrequently: true });
  if (!context) throw new PhotoError("this browser has no canvas left for it; close other pages and try again");
  context.fillStyle = `rgb(${spec.pad_color.join(" ")})`;
  const picture = { width: Math.ceil(width / n), height: Math.ceil(height / n), channels: 3 };
  const data = new Uint8Array(picture.width * picture.height * 3);
  for (let y = 0; y < height; y += strip) {
    const rows = Math.min(strip, height - y);
    context.fillRect(0, 0, width, rows);
    context.drawImage(bitmap, 0, -y);
    const pixels = context.getImageData(0, 0, width, rows);
    const shrunk = reduce({ data: pixels.data, width, height: rows, channels: 4 }, n); // n = 1 drops the alpha channel
    data.set(shrunk.data, (y / n) * picture.width * 3);
  }
  return { data, ...picture };
}
