@{ header("//") }@
//     npm install --ignore-scripts
%% if detector
//     node predict.mjs @{ file }@ PICTURE.ppm [THRESHOLD]
//
// prints the objects in the picture as one line of JSON: boxes in its own pixels (left, top, right, bottom), scores,
// labels and names, best first; those of at least THRESHOLD (the threshold of their class).
%% else
//     node predict.mjs @{ file }@ PICTURE.ppm LABELS.pgm [COLOURS.ppm]
//
// writes the picture's label map, of each pixel a place in `classes`, and, if asked, the same in colours.
%% endif

import { readFileSync@{ "" if detector else ", writeFileSync" }@ } from "node:fs";
import * as ort from "onnxruntime-node";
import { @{ "predict" if detector else "coloured, predict" }@ } from "./model.mjs";

/** A binary PPM (P6, 8 bits), the simplest file of RGB pixels; an app has a decoder of its own. */
function readPpm(path) {
  const content = readFileSync(path);
  const text = content.toString("latin1", 0, 4096);
  const head = /^P6\s+(?:#.*\n\s*)*(\d+)\s+(?:#.*\n\s*)*(\d+)\s+(?:#.*\n\s*)*255\s/.exec(text);
  if (!head) throw new Error(`${path} is no binary PPM of 8 bits (P6)`);
  const [width, height] = [Number(head[1]), Number(head[2])];
  const data = content.subarray(head[0].length);
  if (data.length < height * width * 3) throw new Error(`${path} is cut short`);
  return { height, width, data, channels: 3 };
}

%% if detector
const [model, path, threshold] = process.argv.slice(2);
if (!path) throw new Error("usage: node predict.mjs MODEL.onnx PICTURE.ppm [THRESHOLD]");
%% else
const [model, path, labels, colours] = process.argv.slice(2);
if (!labels) throw new Error("usage: node predict.mjs MODEL.onnx PICTURE.ppm LABELS.pgm [COLOURS.ppm]");
%% endif
const session = await ort.InferenceSession.create(readFileSync(model));
const picture = readPpm(path);
%% if detector
const found = await predict(ort, session, picture, threshold === undefined ? undefined : Number(threshold));
const column = (name) => found.map((one) => one[name]);
console.log(JSON.stringify({
  boxes: column("box"), scores: column("score"), labels: column("label"), names: column("name"),
}));
%% else
const map = await predict(ort, session, picture);
const size = `${picture.width} ${picture.height} 255\n`;
writeFileSync(labels, Buffer.concat([Buffer.from(`P5 ${size}`), map]));
if (colours) {
  const rgb = Buffer.from(coloured(map).filter((_, k) => k % 4 !== 3));
  writeFileSync(colours, Buffer.concat([Buffer.from(`P6 ${size}`), rgb]));
}
%% endif
