// A worker: decodes and embeds off the page's thread, so that the page stays responsive.
//
// One request at a time. {load: {folder, file}} is answered by some {progress: {received, total}}, in bytes, and then
// {result: bytes}; {embed: file} by {result: vector}; and either by {error: message} where it fails.

const RUNTIME = "./node_modules/onnxruntime-web/dist/ort.wasm.min.mjs";

let ort, prepare, network;

onmessage = async ({ data: { load, embed } }) => {
  try {
    const result = load ? await open(load, (progress) => postMessage({ progress })) : await vectorOf(embed);
    postMessage({ result });
  } catch (error) {
    postMessage({ error: error.message ?? String(error) });
  }
};

async function open({ folder, file }, onProgress) {
  ort ??= await import(RUNTIME).catch(() => fail("onnxruntime-web is missing beside this page; run: npm ci"));
  const bytes = await download(new URL(file, folder), onProgress);
  const size = bytes.length;
  prepare ??= await session(await download(new URL("onnx/preprocess.onnx", folder)));
  const old = network;
  network = undefined; // a released session that stayed here would be released again at the next try
  await old?.release();
  network = await session(bytes);
  return size;
}

/** With one thread, unless the page is served cross-origin isolated: onnxruntime-web sees to that itself. */
function session(bytes) {
  return ort.InferenceSession.create(bytes).catch(({ message }) =>
    fail(`onnxruntime-web cannot start; if its wasm file is missing, run: npm ci (${message})`),
  );
}

async function download(url, onProgress = () => {}) {
  const response = await fetch(url).catch(() => fail(`${url} cannot be reached`));
  if (!response.ok) fail(`${url}: the server answers ${response.status}`);
  const total = Number(response.headers.get("content-length"));
  const parts = [];
  let received = 0;
  const reader = response.body.getReader();
  for (let part = await reader.read(); !part.done; part = await reader.read()) {
    parts.push(part.value);
    received += part.value.length;
    onProgress({ received, total });
  }
  return new Uint8Array(await new Blob(parts).arrayBuffer());
}

async function vectorOf(file) {
  const { data, width, height } = await decode(file);
  const image = new ort.Tensor("uint8", data, [1, height, width, 3]);
  const { pixel_values } = await prepare.run({ image });
  const [embedding] = network.outputNames; // the head's output; without a head, pooled features
  const { data: vector } = (await network.run({ pixel_values }, [embedding]))[embedding];
  const length = Math.hypot(...vector) || 1;
  return vector.map((x) => x / length);
}

/**
 * To 8-bit RGB as mixsiam_hub.ImageEncoder reads a file: turned upright by its EXIF (the browser's default), the
 * colour profile ignored, transparency over white.
 */
async function decode(file) {
  const bitmap = await createImageBitmap(file, { colorSpaceConversion: "none" }).catch(() =>
    fail("it is not an image that this browser can read"),
  );
  const { width, height } = bitmap;
  // A canvas that is read often stays in main memory; a graphics card would be free to change the lowest bits.
  const context = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
  context.fillStyle = "white";
  context.fillRect(0, 0, width, height);
  context.drawImage(bitmap, 0, 0);
  bitmap.close();
  const rgba = context.getImageData(0, 0, width, height).data;
  const data = new Uint8Array(width * height * 3);
  for (let from = 0, to = 0; from < rgba.length; from += 4) {
    data[to++] = rgba[from];
    data[to++] = rgba[from + 1];
    data[to++] = rgba[from + 2];
  }
  return { data, width, height };
}

function fail(message) {
  throw new Error(message);
}
