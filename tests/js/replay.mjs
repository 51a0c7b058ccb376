// Replays a model folder's known answers: node replay.mjs MODEL_FOLDER
//
// prints {"min_cosine", "cosines": {file: cosine}}.

import { readFile } from "node:fs/promises";
import path from "node:path";
import { ImageEncoder } from "../../examples/node/encoder.mjs";

const [folder] = process.argv.slice(2);
const answers = path.join(folder, "known_answers");
const { min_cosine, files } = JSON.parse(await readFile(path.join(answers, "vectors.json")));
const encoder = await ImageEncoder.open(folder);
const cosines = {};
for (const { file, vector } of files) {
  const got = await encoder.embed(path.join(answers, file)); // of length 1; the known answer is not
  cosines[file] = got.reduce((sum, x, i) => sum + x * vector[i], 0) / Math.hypot(...vector);
}
console.log(JSON.stringify({ min_cosine, cosines }));
