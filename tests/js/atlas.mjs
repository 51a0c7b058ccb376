// Opens a page of embedding-atlas and prints its text: node atlas.mjs '{chromium, url, ready}'
//
// `ready` is a text on it; until that stands there, it is not printed.

import { chromium } from "playwright-core";

const { chromium: executablePath, url, ready } = JSON.parse(process.argv[2]);
const browser = await chromium.launch({ executablePath, args: ["--no-sandbox", "--no-first-run"] });
try {
  const page = await browser.newPage();
  await page.goto(url);
  await page.getByText(ready).first().waitFor({ timeout: 120_000 });
  console.log(JSON.stringify({ text: await page.evaluate(() => document.body.innerText) }));
} finally {
  await browser.close();
}
