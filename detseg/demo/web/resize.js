// How a picture of any size becomes the network's input, and the way back: detseg/resize.py once more. Sizes are
// [height, width]. tests/test_demo.py holds the two together.

/** Where a picture of `original` size lies in the network's input: input = picture * scale + offset, per axis. */
export function place(original, { size, resize }) {
  const [height, width] = resize === "letterbox" ? inner(original, size) : size;
  return {
    scale: [height / original[0], width / original[1]],
    offset: [Math.floor((size[0] - height) / 2), Math.floor((size[1] - width) / 2)],
    size: [height, width],
  };
}

/** The size of a picture between letterbox's bars. */
function inner(original, size) {
  const scale = Math.min(size[0] / original[0], size[1] / original[1]);
  return original.map((side) => Math.max(1, halfToEven(side * scale)));
}

/** As Python rounds. */
function halfToEven(value) {
  const whole = Math.round(value);
  return whole - value === 0.5 && whole % 2 !== 0 ? whole - 1 : whole;
}

/**
 * The network's input: a Uint8Array or a Float32Array in the file's layout.
 *
 * picture: { height, width, row(y) }, where row(y) gives the RGBA bytes of one row. Rows are asked for from the top
 * down and only where they are needed, so that a large photo is never in memory as a whole.
 */
export function resized(picture, given) {
  const { size: [height, width], pixels, layout, fill } = given;
  const bytes = pixels === "uint8";
  // Its assignment rounds halves to even, as numpy's rint does.
  const input = bytes ? new Uint8ClampedArray(3 * height * width) : new Float32Array(3 * height * width);
  const [step, plane] = layout === "nhwc" ? [3, 1] : [1, height * width];
  for (let k = 0; k < height * width; k++) {
    for (let c = 0; c < 3; c++) input[k * step + c * plane] = fill[c];
  }
  const placement = place([picture.height, picture.width], given);
  const [top, left] = placement.offset;
  const lying = given.resize === "tensorflow_stretch" ? points : bytes ? middles : singleMiddles;
  const rows = neighbours(picture.height, placement.size[0], lying);
  const columns = neighbours(picture.width, placement.size[1], lying);
  const line = interpolatedRows(picture, columns);
  for (let y = 0; y < placement.size[0]; y++) {
    const upper = line(rows.first[y]);
    const lower = line(rows.second[y]);
    const share = rows.share[y];
    for (let x = 0; x < placement.size[1]; x++) {
      const to = ((top + y) * width + left + x) * step;
      for (let c = 0; c < 3; c++) {
        input[to + c * plane] = between(upper[3 * x + c], lower[3 * x + c], share);
      }
    }
  }
  return bytes ? new Uint8Array(input.buffer) : input;
}

/** Between which two pixels of `given` each of `wanted` lies, and the second one's share, without antialias. */
function neighbours(given, wanted, lying) {
  const first = new Int32Array(wanted);
  const second = new Int32Array(wanted);
  const share = new Float32Array(wanted);
  for (let k = 0; k < wanted; k++) {
    const at = Math.min(Math.max(lying(k, given, wanted), 0), given - 1);
    first[k] = Math.floor(at);
    second[k] = Math.min(first[k] + 1, given - 1);
    share[k] = at - first[k];
  }
  return { first, second, share };
}

// Where the k-th of `wanted` pixels lies among those given. For bytes Python asks OpenCV, which works in double
// precision; otherwise torch, which rounds scale and position to single precision. The difference is visible in the
// last digits of boxes.

/** At half-pixel centres. */
function middles(k, given, wanted) {
  return (k + 0.5) * (given / wanted) - 0.5;
}

/** The same in single precision. */
function singleMiddles(k, given, wanted) {
  return Math.fround((k + 0.5) * Math.fround(given / wanted) - 0.5);
}

/** Pixels are points at whole numbers: TensorFlow's first bilinear kernel. */
function points(k, given, wanted) {
  return Math.fround(k * Math.fround(given / wanted));
}

/** In single precision, for where bytes are rounded the last digit decides. */
function between(a, b, share) {
  return Math.fround(a + Math.fround(b - a) * share);
}

/** A function that gives the RGB values of a row, interpolated along it; it keeps the last two. */
function interpolatedRows(picture, { first, second, share }) {
  const kept = [0, 1].map(() => ({ y: -1, values: new Float32Array(3 * first.length) }));
  return (y) => {
    const known = kept.find((one) => one.y === y);
    if (known) return known.values;
    const oldest = kept[0].y < kept[1].y ? kept[0] : kept[1];
    const row = picture.row(y);
    for (let x = 0; x < first.length; x++) {
      for (let c = 0; c < 3; c++) {
        oldest.values[3 * x + c] = between(row[4 * first[x] + c], row[4 * second[x] + c], share[x]);
      }
    }
    oldest.y = y;
    return oldest.values;
  };
}

/** A box [x1, y1, x2, y2] of the network's input in a picture's pixels, cut to it. */
export function boxToOriginal(box, { scale, offset }, [height, width]) {
  return Array.from(box, (value, k) => {
    const axis = k % 2 === 0 ? 1 : 0;
    return Math.min(Math.max((value - offset[axis]) / scale[axis], 0), axis === 1 ? width : height);
  });
}

/** For each of `length` pixels along an axis of the picture, the network's pixel in which its centre lies. */
function sources(length, placement, axis) {
  const scale = placement.size[axis] / length;
  return Int32Array.from({ length }, (_, k) => Math.floor((k + 0.5) * scale + placement.offset[axis]));
}

/**
 * A label map of the network's, `stride` wide, in an image of `size`: the picture's own, or a smaller one to look at.
 */
export function labelsToOriginal(labels, stride, placement, [height, width]) {
  const rows = sources(height, placement, 0);
  const columns = sources(width, placement, 1);
  const restored = new Uint8Array(height * width);
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) restored[y * width + x] = labels[rows[y] * stride + columns[x]];
  }
  return restored;
}

/** How many pixels of a picture have each label, without making its label map. */
export function countLabels(labels, stride, placement, [height, width], numClasses) {
  const rows = new Map();
  for (const row of sources(height, placement, 0)) rows.set(row, (rows.get(row) ?? 0) + 1);
  const columns = new Map();
  for (const column of sources(width, placement, 1)) columns.set(column, (columns.get(column) ?? 0) + 1);
  const counts = new Array(numClasses).fill(0);
  for (const [row, times] of rows) {
    for (const [column, across] of columns) counts[labels[row * stride + column]] += times * across;
  }
  return counts;
}
