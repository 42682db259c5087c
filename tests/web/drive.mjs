/**
 * Drive examples/web in headless Chromium: `node drive.mjs CHROMIUM URL SCREENSHOT|- PHOTO...`
 *
 * The first photo is dropped on the page, the others are chosen. Prints one JSON object: what the page says of each
 * photo, what its footer says, the origins of all requests, and errors of the console.
 */

import { readFile } from "node:fs/promises";
import { basename } from "node:path";
import { chromium } from "playwright-core";

const TIMEOUT = 240_000;
const FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
  "--disable-component-update", "--disable-sync"];

const [executablePath, url, screenshot, ...photos] = process.argv.slice(2);
const browser = await chromium.launch({ executablePath, args: FLAGS, timeout: TIMEOUT });
try {
  const page = await browser.newPage({ viewport: { width: 1040, height: 900 } });
  page.setDefaultTimeout(TIMEOUT);
  const origins = new Set();
  const errors = [];
  page.on("request", (request) => {
    const { protocol, origin } = new URL(request.url());
    if (protocol.startsWith("http")) origins.add(origin);
  });
  page.on("console", (message) => message.type() === "error" && errors.push(message.text()));
  page.on("pageerror", (error) => errors.push(error.message));
  await page.goto(url);
  await page.waitForSelector("#drop:not([data-state='loading'])");
  const state = await page.getAttribute("#drop", "data-state");
  if (state === "ready" && photos.length) {
    const bytes = (await readFile(photos[0])).toString("base64");
    const transfer = await page.evaluateHandle(([data, name]) => {
      const transfer = new DataTransfer();
      const file = new File([Uint8Array.from(atob(data), (c) => c.charCodeAt(0))], name);
      transfer.items.add(file);
      return transfer;
    }, [bytes, basename(photos[0])]);
    await page.dispatchEvent("#drop", "drop", { dataTransfer: transfer });
    if (photos.length > 1) await page.setInputFiles("#files", photos.slice(1));
    const wanted = photos.length;
    await page.waitForFunction((n) => document.querySelectorAll(".card.scored, .card.failed").length === n, wanted);
  }
  const results = await page.$$eval(".card", (cards) => cards.map((card) => ({
    photo: card.dataset.photo,
    shown: card.querySelector(".score b")?.textContent ?? null,
    bars: card.querySelectorAll(".histogram i").length,
    attributes: card.querySelectorAll(".attribute").length,
    result: card.dataset.result ? JSON.parse(card.dataset.result) : null,
    text: card.innerText,
  })));
  const said = { state, status: await page.innerText("#status"), footer: await page.innerText("footer") };
  if (screenshot !== "-") await page.screenshot({ path: screenshot, fullPage: true });
  console.log(JSON.stringify({ ...said, origins: [...origins], errors, results: results.reverse() }));
} finally {
  await browser.close();
}
