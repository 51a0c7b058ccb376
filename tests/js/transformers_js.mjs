// The stock transformers.js pipeline, as its documentation calls it:
//
//   node transformers_js.mjs MODEL_FOLDER OPTIONS IMAGE...
//
// with OPTIONS as JSON, {"pool": true} for pooled features; prints {"dtype"}, what it loaded, and then {"file", "vector"}
// or {"file", "error"} for each image.

import path from "node:path";
import { env, pipeline } from "@huggingface/transformers";

const [folder, options, ...files] = process.argv.slice(2);
env.allowRemoteModels = false;
env.localModelPath = path.dirname(path.resolve(folder));

const extract = await pipeline("image-feature-extraction", path.basename(folder));
console.log(JSON.stringify({ dtype: extract.model.sessions.model.config.dtype }));
for (const file of files) {
  try {
    const { data } = await extract(file, JSON.parse(options));
    console.log(JSON.stringify({ file, vector: [...data] }));
  } catch (error) {
    console.log(JSON.stringify({ file, error: error.message }));
  }
}
