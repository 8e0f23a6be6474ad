// The network, beside the page so that the page never stands still: a picture in, predictions in its own pixels out.
//
// Takes { open: demo.json's content }, then { run: number, source: Blob or ImageBitmap }.
// Gives { progress: text }, { ready: { threads } }, { answer } or { failed: { sentence, fatal } }: after what is fatal
// it is of no more use.

import * as ort from "./runtime/ort.wasm.min.mjs";
import { boxToOriginal, countLabels, place, resized } from "./resize.js";

/** Rows that are read from the browser at once: 12 MB for a photo of 12 megapixels. */
const BAND = 768;

/** What is wrong with a picture or a file, in words for the person at the page; the network goes on. */
class Sentence extends Error {}

/** Of a picture whose colours `painted` cannot read. */
class Transparent extends Error {}

let demo = null;
let session = null;

self.onmessage = async ({ data }) => {
  try {
    if (data.open) {
      demo = data.open;
      self.postMessage({ ready: await open() });
    } else {
      const { answer, transfer } = await predicted(data.source);
      self.postMessage({ answer: { run: data.run, ...answer } }, transfer);
    }
  } catch (error) {
    const sentence = error instanceof Sentence ? error.message : explained(error, data.open ? "load" : "run");
    self.postMessage({ failed: { sentence, fatal: Boolean(data.open) || !(error instanceof Sentence) } });
  }
};

function explained(error, what) {
  const text = String(error?.message ?? error);
  const memory = /memory|allocat|abort|RangeError/i.test(`${error?.name} ${text}`);
  const begins = what === "load" ? "The network could not be loaded" : "The network could not run";
  return `${begins}${memory ? ", probably for lack of memory" : ""}: ${text}`;
}

async function open() {
  if (!self.OffscreenCanvas) {
    throw new Sentence("This browser is too old: Chrome 91, Firefox 105 and Safari 16.4 will do.");
  }
  // Threads share memory, which browsers allow on pages that are secure and isolated from other hosts.
  const threads = self.crossOriginIsolated ? Math.min(4, navigator.hardwareConcurrency || 1) : 1;
  ort.env.wasm.numThreads = threads;
  ort.env.wasm.wasmPaths = new URL("./runtime/", import.meta.url).href;
  ort.env.wasm.initTimeout = 120_000; // a thread that does not start would be waited for without end
  ort.env.logLevel = "error";
  const bytes = await fetched(demo.model);
  self.postMessage({ progress: "Starting the runtime …" });
  session = await ort.InferenceSession.create(bytes, { executionProviders: ["wasm"] });
  const { size: [height, width], pixels } = demo.input;
  // The first run makes room; it would be the slowest of those that are timed.
  await run(pixels === "uint8" ? new Uint8Array(3 * height * width) : new Float32Array(3 * height * width));
  return { threads };
}

/** A file's bytes, with progress: over a slow network this takes its time. */
async function fetched(file) {
  const response = await fetch(new URL(file, import.meta.url));
  if (!response.ok) throw new Sentence(`${file} is not there (${response.status}); was the page copied as a whole?`);
  const bytes = new Uint8Array(demo.bytes);
  const reader = response.body.getReader();
  let length = 0;
  for (let part = await reader.read(); !part.done; part = await reader.read()) {
    if (length + part.value.length > bytes.length) throw new Sentence(`${file} has changed; load the page anew`);
    bytes.set(part.value, length);
    length += part.value.length;
    const megabytes = (number) => (number / 1e6).toFixed(1);
    self.postMessage({ progress: `Loading the network: ${megabytes(length)} of ${megabytes(bytes.length)} MB` });
  }
  if (length < bytes.length) throw new Sentence(`${file} was cut short on its way; load the page again`);
  return bytes;
}

async function run(input) {
  const { size: [height, width], layout, pixels } = demo.input;
  const shape = layout === "nhwc" ? [1, height, width, 3] : [1, 3, height, width];
  return session.run({ images: new ort.Tensor(pixels === "uint8" ? "uint8" : "float32", input, shape) });
}

async function predicted(source) {
  const began = performance.now();
  const bitmap = await decoded(source);
  const size = [bitmap.height, bitmap.width];
  let input;
  try {
    input = resizedBitmap(bitmap);
  } finally {
    bitmap.close();
  }
  const modelBegan = performance.now();
  const outputs = await run(input);
  const milliseconds = { model: performance.now() - modelBegan };
  const placement = place(size, demo.input);
  const answer = { size, milliseconds };
  const transfer = [];
  if (demo.kind === "detection") {
    answer.boxes = found(outputs, placement, size);
  } else {
    const labels = Uint8Array.from(outputs.labels.data);
    Object.assign(answer, { labels, placement, counts: countLabels(
      labels, demo.input.size[1], placement, size, demo.classes.names.length) });
    transfer.push(labels.buffer);
  }
  for (const output of Object.values(outputs)) output.dispose();
  milliseconds.worker = performance.now() - began;
  return { answer, transfer };
}

function found({ boxes, scores, labels, count }, placement, size) {
  return Array.from({ length: Number(count.data[0]) }, (_, k) => ({
    box: boxToOriginal(boxes.data.subarray(4 * k, 4 * k + 4), placement, size),
    score: scores.data[k],
    label: Number(labels.data[k]),
  }));
}

/** The picture turned as its EXIF data say, with the colours of the file. */
async function decoded(source) {
  if (source instanceof ImageBitmap) return source;
  try {
    return await createImageBitmap(source, { colorSpaceConversion: "none", premultiplyAlpha: "none" });
  } catch {
    throw new Sentence(`${source.name || "This"} is no picture that this browser can read, or it is too large for it.`);
  }
}

function resizedBitmap(bitmap) {
  const { width, height } = bitmap;
  try {
    return resized({ width, height, row: rows(bitmap, painted(bitmap)) }, demo.input);
  } catch (error) {
    if (!(error instanceof Transparent)) throw error;
    return resized({ width, height, row: rows(bitmap, unblended(bitmap)) }, demo.input);
  }
}

/** row(y) of a function that reads whole bands of rows. */
function rows({ width, height }, read) {
  let top = -1;
  let band = null;
  return (y) => {
    if (band === null || y < top || y >= top + BAND) {
      top = y;
      band = read(top, Math.min(BAND, height - top));
    }
    return band.subarray(4 * width * (y - top), 4 * width * (y - top + 1));
  };
}

/** Reads bands by a canvas in memory. It multiplies colours by alpha, so that of transparent pixels some are lost. */
function painted(bitmap) {
  const canvas = new OffscreenCanvas(bitmap.width, Math.min(BAND, bitmap.height));
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.globalCompositeOperation = "copy";
  return (top, count) => {
    context.drawImage(bitmap, 0, -top);
    const { data } = context.getImageData(0, 0, bitmap.width, count);
    for (let k = 3; k < data.length; k += 4) if (data[k] !== 255) throw new Transparent();
    return data;
  };
}

/** Reads bands by WebGL, which leaves the colours below transparent pixels as they are in the file, as Python does. */
function unblended(bitmap) {
  const gl = new OffscreenCanvas(1, 1).getContext("webgl");
  if (!gl || Math.max(bitmap.width, bitmap.height) > gl.getParameter(gl.MAX_TEXTURE_SIZE)) {
    throw new Sentence("This browser cannot read the colours of transparent pictures; save it as JPEG.");
  }
  gl.pixelStorei(gl.UNPACK_PREMULTIPLY_ALPHA_WEBGL, false);
  gl.pixelStorei(gl.UNPACK_COLORSPACE_CONVERSION_WEBGL, gl.NONE);
  const texture = gl.createTexture();
  gl.bindTexture(gl.TEXTURE_2D, texture);
  gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGBA, gl.RGBA, gl.UNSIGNED_BYTE, bitmap);
  gl.bindFramebuffer(gl.FRAMEBUFFER, gl.createFramebuffer());
  gl.framebufferTexture2D(gl.FRAMEBUFFER, gl.COLOR_ATTACHMENT0, gl.TEXTURE_2D, texture, 0);
  return (top, count) => {
    const data = new Uint8Array(4 * bitmap.width * count);
    gl.readPixels(0, top, bitmap.width, count, gl.RGBA, gl.UNSIGNED_BYTE, data);
    return data;
  };
}
