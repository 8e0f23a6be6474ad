@{ header("//") }@
// A picture to what the file takes, and what it gives to the picture's own pixels; the same in browsers and in Node.

%% if detector
/** In the order of the labels: name, id in the training data, colour for pictures, score from which it is shown. */
%% else
/** In the order of the labels: name, the id in the training data, the colour of the label map. */
%% endif
export const classes = [
%% for class in classes
  { name: @{ class.name|literal("js") }@, id: @{ class.id }@, colour: [@{ class.colour|join(", ") }@]@{ ", threshold: " ~ class.threshold if detector }@ },
%% endfor
];

const HEIGHT = @{ height }@, WIDTH = @{ width }@; // of the file's input
%% if not stretch
const FILL = [@{ fill|join(", ") }@]; // the colour of the bars
%% endif

/** The nearest whole number, halves to even. */
function rounded(value) {
  const floor = Math.floor(value), rest = value - floor;
  return rest > 0.5 || (rest === 0.5 && floor % 2 !== 0) ? floor + 1 : floor;
}

%% if stretch
/** Where a picture lies in the input (input = picture * scale + offset): everywhere, each axis scaled on its own. */
export function place(height, width) {
  return { top: 0, left: 0, height: HEIGHT, width: WIDTH, scaleY: HEIGHT / height, scaleX: WIDTH / width };
}
%% else
/** Where a picture lies in the input (input = picture * scale + offset): as large as fits, between bars. */
export function place(height, width) {
  const scale = Math.min(HEIGHT / height, WIDTH / width);
  const innerHeight = Math.max(1, rounded(height * scale)), innerWidth = Math.max(1, rounded(width * scale));
  return {
    top: Math.floor((HEIGHT - innerHeight) / 2), left: Math.floor((WIDTH - innerWidth) / 2),
    height: innerHeight, width: innerWidth, scaleY: innerHeight / height, scaleX: innerWidth / width,
  };
}
%% endif

/** For each place along an axis of the input the two pixels it lies between, and how near it is to the second. */
function neighbours(from, to) {
  return Array.from({ length: to }, (_, k) => {
%% if points
    // Pixels are points, no antialias: TensorFlow's first bilinear kernel.
    const position = Math.fround(k * Math.fround(from / to));
%% elif uint8
    const position = Math.fround((k + 0.5) * (from / to) - 0.5); // half-pixel centres, no antialias
%% else
    const position = Math.fround((k + 0.5) * Math.fround(from / to)) - 0.5; // half-pixel centres, no antialias
%% endif
    const first = Math.floor(position);
    if (first < 0) return { first: 0, second: 0, weight: 0 };
    if (first >= from - 1) return { first: from - 1, second: from - 1, weight: 0 };
    return { first, second: first + 1, weight: position - first };
  });
}

/**
 * @{ given }@
 *
 * picture: { height, width, data, channels }, row by row from the top left as the picture is seen; 3 channels (RGB), or
 * 4 as a canvas gives them (RGBA).
 */
export function networkInput({ height, width, data, channels = 4 }) {
  const placed = place(height, width);
  const rows = neighbours(height, placed.height), columns = neighbours(width, placed.width);
  const input = new @{ "Uint8Array" if uint8 else "Float32Array" }@(HEIGHT * WIDTH * 3);
%% if not stretch
%% if nhwc
  for (let k = 0; k < input.length; k++) input[k] = FILL[k % 3];
%% else
  FILL.forEach((value, c) => input.fill(value, c * HEIGHT * WIDTH, (c + 1) * HEIGHT * WIDTH));
%% endif
%% endif
  for (let y = 0; y < placed.height; y++) {
    const above = rows[y].first * width, below = rows[y].second * width, wy = rows[y].weight;
    for (let x = 0; x < placed.width; x++) {
      const { first, second, weight: wx } = columns[x];
      for (let c = 0; c < 3; c++) {
        const upper = data[(above + first) * channels + c] * (1 - wx) + data[(above + second) * channels + c] * wx;
        const lower = data[(below + first) * channels + c] * (1 - wx) + data[(below + second) * channels + c] * wx;
        const value = upper * (1 - wy) + lower * wy;
        const pixel = (placed.top + y) * WIDTH + placed.left + x;
        input[@{ "pixel * 3 + c" if nhwc else "c * HEIGHT * WIDTH + pixel" }@] = @{ "rounded(value)" if uint8 else "value" }@;
      }
    }
  }
  return input;
}

%% if detector
/**
 * The objects in a picture, best first: { name, score, label, box: [left, top, right, bottom] } in its own pixels.
 *
 * They are suppressed already: only the first `count` rows of the outputs are read. ort: onnxruntime-node or
 * onnxruntime-web; session: an `ort.InferenceSession` of the file; threshold: replaces that of each class.
 */
export async function predict(ort, session, picture, threshold) {
  const images = new ort.Tensor("@{ "uint8" if uint8 else "float32" }@", networkInput(picture), [@{ shape|join(", ") }@]);
  const { boxes, scores, labels, count } = await session.run({ images });
  const placed = place(picture.height, picture.width);
  const toX = (value) => Math.min(Math.max((value - placed.left) / placed.scaleX, 0), picture.width);
  const toY = (value) => Math.min(Math.max((value - placed.top) / placed.scaleY, 0), picture.height);
  const found = [];
  for (let k = 0; k < count.data[0]; k++) {
    const score = scores.data[k], label = labels.data[k];
    if (score >= (threshold ?? classes[label].threshold)) {
      const [left, top, right, bottom] = boxes.data.subarray(4 * k, 4 * k + 4);
      found.push({ name: classes[label].name, score, label, box: [toX(left), toY(top), toX(right), toY(bottom)] });
    }
  }
  return found;
}
%% else
/**
 * The label map of a picture, at its own size: of each pixel a place in `classes`, as a Uint8Array.
 *
 * ort: onnxruntime-node or onnxruntime-web; session: an `ort.InferenceSession` of the file.
 */
export async function predict(ort, session, picture) {
  const images = new ort.Tensor("@{ "uint8" if uint8 else "float32" }@", networkInput(picture), [@{ shape|join(", ") }@]);
  const { labels } = await session.run({ images });
  const { height, width } = picture, placed = place(height, width);
  const columns = Array.from({ length: width }, (_, x) => Math.trunc((x + 0.5) * placed.scaleX + placed.left));
  const map = new Uint8Array(height * width);
  for (let y = 0; y < height; y++) {
    const row = Math.trunc((y + 0.5) * placed.scaleY + placed.top) * WIDTH;
    for (let x = 0; x < width; x++) map[y * width + x] = labels.data[row + columns[x]];
  }
  return map;
}

/** A label map in the colours of its classes, as RGBA for an `ImageData`. */
export function coloured(map) {
  const pixels = new Uint8ClampedArray(map.length * 4);
  map.forEach((label, k) => pixels.set([...classes[label].colour, 255], 4 * k));
  return pixels;
}
%% endif
