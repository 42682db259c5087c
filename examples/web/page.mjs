/** The page: takes photos in, shows what the worker says. `?pack=URL` names another pack than `pack/`. */

const SCALES = { low: "Light & colour", middle: "Composition", high: "Impression" };
const STAGES = { decode: "decode", resize: "resize", vision: "vision encoder", aligner: "aligner", llm: "LLM" };

const $ = (id) => document.getElementById(id);
const drop = $("drop");
const worker = new Worker(new URL("./worker.mjs", import.meta.url), { type: "module" });
const cards = new Map();
let about = null;

const pack = new URLSearchParams(location.search).get("pack") ?? "pack/";
worker.postMessage({ type: "load", pack: new URL(pack, location.href).href });

worker.onmessage = ({ data }) => {
  const handlers = { progress: showProgress, ready: showReady, failed: showFailure, scored: showScore, refused };
  handlers[data.type](data);
};
worker.onerror = (event) => {
  event.preventDefault();
  showFailure({ message: "the scoring script does not load; run npm ci in this folder, and take a recent browser" });
};

$("files").addEventListener("change", ({ target }) => {
  add(target.files);
  target.value = ""; // the same photo may be chosen again
});
for (const name of ["dragenter", "dragover", "dragleave", "drop"]) {
  addEventListener(name, (event) => {
    event.preventDefault();
    drop.classList.toggle("over", name === "dragenter" || name === "dragover");
    if (name === "drop") add(event.dataTransfer.files);
  });
}
addEventListener("paste", ({ clipboardData }) => add(clipboardData.files));

function add(files) {
  if (!about) return;
  for (const file of files) {
    const card = $("card").content.firstElementChild.cloneNode(true);
    card.classList.add("waiting");
    card.dataset.photo = file.name;
    const image = card.querySelector("img");
    image.src = URL.createObjectURL(file);
    image.onload = image.onerror = () => URL.revokeObjectURL(image.src);
    card.querySelector("figcaption").textContent = file.name;
    card.querySelector(".timing").textContent = "Reading";
    $("results").prepend(card);
    const id = crypto.randomUUID();
    cards.set(id, card);
    worker.postMessage({ type: "score", id, file });
  }
}

function showProgress({ done, total }) {
  $("progress").value = done / total;
  $("status").textContent = `${megabytes(done)} of ${megabytes(total)} MB`;
}

function showReady(ready) {
  about = ready;
  drop.dataset.state = "ready";
  $("files").disabled = false;
  $("invite").textContent = "Drop photos here, paste one, or choose files";
  $("status").textContent = "JPEG, PNG, WebP, and whatever else this browser can show";
  $("meaning").textContent = ready.meaning;
  $("model").replaceChildren(`${ready.model}, bundle `, element("code", "", ready.bundle.slice(0, 12)));
  $("model").title = ready.bundle;
}

function showFailure({ message }) {
  drop.dataset.state = "failed";
  $("files").disabled = true;
  $("invite").textContent = "The model could not be loaded";
  $("status").textContent = message;
}

function showScore({ id, result }) {
  const card = take(id);
  card.classList.add("scored");
  card.dataset.result = JSON.stringify(result);
  card.querySelector(".score b").textContent = result.score.toFixed(1);
  card.querySelector(".score span").textContent = `± ${result.std.toFixed(1)}`;
  const histogram = card.querySelector(".histogram");
  const [low, high] = result.scale;
  const highest = Math.max(...result.histogram);
  result.histogram.forEach((p, i) => {
    const bar = element("i");
    bar.style.height = `${(100 * p) / highest}%`;
    bar.title = `${low + i}: ${percent(p)}`;
    histogram.append(bar);
  });
  const spoken = result.histogram.map((p, i) => `${low + i}: ${percent(p)}`).join(", ");
  histogram.setAttribute("aria-label", `Probability of each rating. ${spoken}`);
  card.querySelectorAll(".scale span").forEach((end, i) => (end.textContent = [low, high][i]));
  const among = [`better than ${Math.floor(result.percentile)} of 100`, `technical ${result.technical.toFixed(1)}`];
  if (result.frame) among.push("frame left out");
  card.querySelector(".among").textContent = among.join(", ");
  card.querySelector(".attributes").append(...Object.keys(SCALES).map((scale) => attributeGroup(scale, result)));
  const stages = Object.entries(STAGES).map(([stage, name]) => `${name} ${milliseconds(result.ms[stage])}`);
  card.querySelector(".timing").textContent = `Scored in ${milliseconds(result.ms.total)}: ${stages.join(", ")}`;
}

function attributeGroup(scale, result) {
  const group = element("section");
  group.append(element("h2", "", SCALES[scale]));
  for (const attribute of about.attributes.filter((one) => one.scale === scale)) {
    const reading = result.attributes[attribute.name];
    const row = element("div", "attribute");
    const title = element("p");
    title.append(element("span", "", attribute.name), element("span", "", reading.level));
    const bar = element("div", "bar");
    for (const level of attribute.levels) {
      const p = reading.probabilities[level.name];
      const part = element("i", { 1: "good", "-1": "bad" }[level.polarity] ?? "");
      part.classList.toggle("likely", level.name === reading.level);
      part.style.flexGrow = p;
      part.title = `${level.name}: ${percent(p)}`;
      bar.append(part);
    }
    row.append(title, bar);
    group.append(row);
  }
  return group;
}

function refused({ id, message }) {
  const card = take(id);
  card.classList.add("failed");
  card.replaceChildren(element("p", "", card.dataset.photo), element("p", "", `Not scored: ${message}`));
}

function take(id) {
  const card = cards.get(id);
  cards.delete(id);
  card.classList.remove("waiting");
  return card;
}

function element(tag, className = "", text = "") {
  const made = document.createElement(tag);
  made.className = className;
  made.textContent = text;
  return made;
}

const megabytes = (bytes) => (bytes / 1e6).toFixed(1);
const milliseconds = (ms) => `${ms < 10 ? ms.toFixed(1) : ms.toFixed(0)} ms`;
const percent = (p) => `${(100 * p).toFixed(0)}%`;
