// From the command line. Prints a line of JSON for each image: {"file", "vector"}, or {"file", "error"} where it cannot
// be read.
//
//   npm ci
//   node embed.mjs MODEL_FOLDER IMAGE... > vectors.jsonl

import { ImageEncoder } from "./encoder.mjs";

const [folder, ...files] = process.argv.slice(2);
if (!files.length) {
  console.error("usage: node embed.mjs MODEL_FOLDER IMAGE...");
  process.exit(2);
}

const encoder = await ImageEncoder.open(folder);
for (const file of files) {
  try {
    console.log(JSON.stringify({ file, vector: [...(await encoder.embed(file))] }));
  } catch (error) {
    console.log(JSON.stringify({ file, error: error.message }));
    process.exitCode = 1;
  }
}
