// One visit to the browser example, as its user makes it: node visit.mjs '{chromium, url, graph, picked, dropped}'
//
// `graph` is the radio button to choose, or null to keep the page's own choice; `picked` are files for its file
// chooser, `dropped` are dropped on it. Prints what the visitor sees, and which requests the page made.

import { readFile } from "node:fs/promises";
import path from "node:path";
import { chromium } from "playwright-core";

const ARGUMENTS = [
  "--no-sandbox",
  "--disable-gpu",
  "--disable-quic",
  "--no-first-run",
  "--disable-background-networking",
  "--disable-component-update",
  "--disable-sync",
];

const { chromium: executablePath, url, graph, picked, dropped } = JSON.parse(process.argv[2]);
const browser = await chromium.launch({ executablePath, args: ARGUMENTS });
try {
  const page = await browser.newPage();
  const requests = [];
  page.on("request", (request) => requests.push(`${request.method()} ${request.url()}`));
  await page.goto(url);
  await settled(page);
  if (graph) await page.click(`label:has([value=${graph}])`);
  await settled(page);
  const toLoad = requests.length;
  if (picked.length) await page.setInputFiles("#files", picked);
  if (dropped.length) await drop(page, dropped);
  await settled(page);
  const seen = await page.evaluate(() => ({
    graph: document.querySelector("[name=graph]:checked")?.value ?? null,
    sizes: [...document.querySelectorAll("#graphs label")].map((label) => label.innerText),
    status: document.querySelector("#status").textContent,
    errors: [...document.querySelectorAll("#errors li")].map((line) => line.textContent),
  }));
  const { images } = (await page.isEnabled("#download")) ? await vectors(page) : { images: [] };
  const neighbours = [];
  for (const tile of await page.locator("#gallery button").all()) {
    await tile.focus();
    await page.keyboard.press("Enter");
    neighbours.push(await page.locator("#neighbours .name").allTextContents());
  }
  console.log(
    JSON.stringify({ ...seen, images, neighbours, requests, requests_after_loading: requests.slice(toLoad) }),
  );
} finally {
  await browser.close();
}

/** Waits until the page has nothing left to do. */
function settled(page) {
  return page.waitForSelector("#status[aria-busy=false]", { timeout: 300_000 });
}

async function drop(page, files) {
  const read = async (file) => ({ name: path.basename(file), base64: (await readFile(file)).toString("base64") });
  const dataTransfer = await page.evaluateHandle(
    (contents) => {
      const transfer = new DataTransfer();
      for (const { name, base64 } of contents)
        transfer.items.add(new File([Uint8Array.from(atob(base64), (c) => c.charCodeAt(0))], name));
      return transfer;
    },
    await Promise.all(files.map(read)),
  );
  await page.dispatchEvent("#drop", "drop", { dataTransfer });
}

/** What "Download vectors" saves. */
async function vectors(page) {
  const download = page.waitForEvent("download");
  await page.click("#download");
  return JSON.parse(await readFile(await (await download).path()));
}
