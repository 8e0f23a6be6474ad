@{ header("//") }@
//     npm install onnxruntime-web@@{ versions["onnxruntime-web"] }@
//
// and a bundler, or the package's dist/ folder beside the page.

import * as ort from "onnxruntime-web";
import { @{ "predict" if detector else "coloured, predict" }@ } from "./model.mjs";

const session = await ort.InferenceSession.create(@{ file_name|literal("js") }@, { executionProviders: ["wasm"] });

%% if detector
/** The objects in a picture: `file` of an <input type="file">, or a fetched Blob; threshold as of `predict`. */
export async function predictFile(file, threshold) {
%% else
/** The label map of a picture in colours, as an ImageData: `file` of an <input type="file">, or a Blob. */
export async function predictFile(file) {
%% endif
  const bitmap = await createImageBitmap(file, { imageOrientation: "from-image", colorSpaceConversion: "none" });
  const canvas = new OffscreenCanvas(bitmap.width, bitmap.height);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(bitmap, 0, 0);
  const picture = context.getImageData(0, 0, bitmap.width, bitmap.height); // height, width, data: RGBA
%% if detector
  return predict(ort, session, picture, threshold);
%% else
  return new ImageData(coloured(await predict(ort, session, picture)), picture.width);
%% endif
}
