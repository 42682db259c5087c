/** A pack made by `calm export pack`: read, and checked byte for byte before anything of it is loaded. */

const FORMAT = 2;
const PACK = "pack.json";

/** The pack is missing, was changed or is of another format. The message says which file and what to do. */
export class PackError extends Error {
  name = "PackError";
}

async function sha256(bytes) {
  if (!globalThis.crypto?.subtle) {
    throw new PackError("digests cannot be checked here: browsers offer them on https:// and http://localhost only");
  }
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
  return Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** The digest is that of pack.json with an empty digest in its place. */
async function readManifest(bytes) {
  const text = new TextDecoder().decode(bytes);
  let manifest;
  try {
    manifest = JSON.parse(text);
  } catch (error) {
    throw new PackError(`${PACK} is not JSON (${error.message}); copy the pack again`);
  }
  if (manifest.format_version !== FORMAT) {
    throw new PackError(`${PACK} has format version ${manifest.format_version}, this program reads ${FORMAT}; make it again`);
  }
  const blank = text.replace(`"digest": "${manifest.digest}"`, '"digest": ""');
  if ((await sha256(new TextEncoder().encode(blank))) !== manifest.digest) {
    throw new PackError(`${PACK} has changed since it was made; copy the pack again`);
  }
  return manifest;
}

/**
 * Read a whole pack. Raises PackError for a file that is missing or has changed.
 * @param {(name: string) => Promise<Uint8Array>} read one file of the pack by name
 * @param {(done: number, total: number) => void} [progress] bytes read so far
 * @returns {Promise<{manifest: any, files: Map<string, Uint8Array>}>}
 */
export async function openPack(read, progress = () => {}) {
  const manifest = await readManifest(await readOne(read, PACK));
  const wanted = [...Object.values(manifest.graphs), manifest.prompt.path];
  const total = wanted.reduce((sum, name) => sum + (manifest.files[name]?.bytes ?? 0), 0);
  const files = new Map();
  let done = 0;
  for (const name of wanted) {
    const entry = manifest.files[name];
    if (!entry) throw new PackError(`${name} is not listed in ${PACK}; make the pack again`);
    const bytes = await readOne(read, name);
    if (bytes.length !== entry.bytes || (await sha256(bytes)) !== entry.sha256) {
      throw new PackError(`${name} has changed since the pack was made (SHA-256 differs); copy the pack again`);
    }
    files.set(name, bytes);
    done += entry.bytes;
    progress(done, total);
  }
  return { manifest, files };
}

async function readOne(read, name) {
  try {
    return await read(name);
  } catch (error) {
    throw new PackError(`${name} of the pack cannot be read (${error.message}); docs/embedding.md says how to make one`);
  }
}
