/** The model, away from the page's thread: the page stays smooth while a photo is read. */

import * as ort from "./node_modules/onnxruntime-web/dist/ort.wasm.bundle.min.mjs";
import { Calm, PhotoError } from "../js/calm.mjs";
import { decode } from "./decode.mjs";

ort.env.wasm.wasmPaths = new URL("./node_modules/onnxruntime-web/dist/", import.meta.url).href;
ort.env.logLevel = "error";

let calm;
let queue = Promise.resolve(); // one photo at a time, in order

async function fetchBytes(url) {
  const answer = await fetch(url);
  if (!answer.ok) throw new Error(`${answer.status} ${answer.statusText}`.trim());
  return new Uint8Array(await answer.arrayBuffer());
}

async function load(pack) {
  const base = new URL(pack.endsWith("/") ? pack : `${pack}/`, self.location.href);
  const progress = (done, total) => postMessage({ type: "progress", done, total });
  try {
    calm = await Calm.load(ort, (name) => fetchBytes(new URL(name, base)), progress);
  } catch (error) {
    postMessage({ type: "failed", message: error.message });
    return;
  }
  const { model, attributes, bundle } = calm.manifest;
  postMessage({ type: "ready", model: calm.model, meaning: model.score_meaning, bundle, attributes });
}

async function score(id, file) {
  try {
    const start = performance.now();
    const picture = await decode(file, calm.manifest.photo);
    const spent = performance.now() - start;
    const { ms, ...result } = await calm.score(picture);
    postMessage({ type: "scored", id, result: { ...result, ms: { decode: spent, ...ms, total: spent + ms.total } } });
  } catch (error) {
    const reason = error instanceof PhotoError ? error.message : `it could not be scored: ${error.message}`;
    postMessage({ type: "refused", id, message: reason });
  }
}

self.onmessage = ({ data }) => {
  queue = queue.then(() => (data.type === "load" ? load(data.pack) : score(data.id, data.file)));
};
