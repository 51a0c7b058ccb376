// The vectors of mixsiam_hub.ImageEncoder, in Node. A model folder holds two graphs, and they are all it takes:
//
//   onnx/preprocess.onnx   image: (1, H, W, 3) uint8 RGB of any size  ->  pixel_values: (1, 3, S, S) float32
//   onnx/model.onnx        pixel_values                               ->  image_embeds: (1, K) float32, and others
//
// The embedding is the second graph's first output; of an encoder without a head that is pooler_output.
// Resize, crop and normalisation are inside the first graph, so that no image library's own resize can change the
// vectors. sharp only decodes.

import path from "node:path";
import ort from "onnxruntime-node";
import sharp from "sharp";

export class ImageEncoder {
  #prepare;
  #network;

  constructor(prepare, network) {
    this.#prepare = prepare;
    this.#network = network;
  }

  /** Opens a model folder; `graph` may also be "model_fp16" or "model_quantized" (int8). */
  static async open(folder, graph = "model") {
    const open = (name) => ort.InferenceSession.create(path.join(folder, "onnx", `${name}.onnx`));
    return new ImageEncoder(await open("preprocess"), await open(graph));
  }

  /**
   * Embeds one image, a path or an encoded file's bytes. Returns a Float32Array of K numbers and length 1: the dot
   * product of two is their cosine.
   */
  async embed(image) {
    const { pixels, width, height } = await decode(image);
    const tensor = new ort.Tensor("uint8", pixels, [1, height, width, 3]);
    const { pixel_values } = await this.#prepare.run({ image: tensor });
    const [embedding] = this.#network.outputNames;
    const results = await this.#network.run({ pixel_values }, [embedding]);
    return normalise(results[embedding].data);
  }
}

/**
 * To 8-bit RGB as ImageEncoder reads a file: the colour profile ignored, turned upright by its EXIF, transparency over
 * white. sharp does none of these unless told, and its own flatten() rounds down where Pillow rounds. CMYK comes out
 * near, not equal: libvips takes a press's inks for it.
 */
async function decode(image) {
  const upright = sharp(image, { ignoreIcc: true }).autoOrient().ensureAlpha();
  const { data, info } = await upright.raw().toBuffer({ resolveWithObject: true });
  const pixels = new Uint8Array(info.width * info.height * 3);
  for (let from = 0, to = 0; from < data.length; from += 4) {
    const alpha = data[from + 3];
    for (let channel = 0; channel < 3; channel++) {
      pixels[to++] = Math.round((data[from + channel] * alpha + 255 * (255 - alpha)) / 255);
    }
  }
  return { pixels, width: info.width, height: info.height };
}

function normalise(vector) {
  const length = Math.hypot(...vector) || 1;
  return vector.map((x) => x / length);
}
