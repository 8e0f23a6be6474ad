// The page: where pictures come from, what is drawn on them and what is said of them. The network is in worker.js.

import { labelsToOriginal } from "./resize.js";

const element = (id) => document.getElementById(id);
const [picture, still, video, overlay] = ["picture", "still", "video", "overlay"].map(element);

/** Of so many frames the median time is told. */
const FRAMES = 30;

let demo = null;
/** null before it is started, and where it could not be. */
let worker = null;
let ready = false;
/** The run that the worker is at: { run, began, live }. */
let running = null;
/** The picture that is to be next. Only the newest waits, so that nothing is late. */
let waiting = null;
let runs = 0;
/** The stream of the live camera, while it is on. */
let camera = null;
let answer = null;
let times = [];
/** The score from which boxes are shown; null: those of each class from its own. */
let threshold = null;
const hidden = new Set();
/** The button of each class in the list, by label. */
const buttons = new Map();

/** For tests and for the curious: the last answer, in the picture's own pixels. */
window.detseg = { get answer() { return answer; }, get ready() { return ready; }, labels: () => labelMap(answer.size) };

// ------------------------------------------------------------------------------------------ the network

function start() {
  ready = false;
  worker = new Worker("worker.js", { type: "module" });
  worker.onmessage = ({ data }) => {
    if (data.progress) say(data.progress);
    if (data.ready) opened(data.ready);
    if (data.answer) answered(data.answer);
    if (data.failed) failed(data.failed);
  };
  worker.onerror = (event) => {
    event.preventDefault();
    const why = event.message ?? "one of its files is missing";
    failed({ sentence: `The runtime could not be started: ${why}`, fatal: true });
  };
  worker.postMessage({ open: demo });
}

function opened({ threads }) {
  ready = true;
  window.detseg.threads = threads;
  say(camera || waiting ? "" : "Ready.");
  next();
}

function failed({ sentence, fatal }) {
  running = null;
  complain(sentence);
  say("");
  forget();
  if (!fatal) {
    next();
    return;
  }
  // After an error inside the runtime its memory is not to be trusted; the next picture gets a new one.
  worker.terminate();
  worker = null;
  ready = false;
}

/** Asks for the predictions of a Blob or an ImageBitmap. */
function predict(source, began = performance.now()) {
  waiting?.source.close?.();
  waiting = { source, began };
  if (!worker && demo) start();
  else if (ready && !running) next();
}

function next() {
  if (!waiting) return;
  const { source, began } = waiting;
  waiting = null;
  running = { run: ++runs, began, live: camera !== null };
  if (!running.live) say("Looking …");
  worker.postMessage({ run: running.run, source }, source instanceof ImageBitmap ? [source] : []);
}

function answered(found) {
  const { began, live } = running;
  running = null;
  // What has become of it meanwhile: another picture waits, or the camera was switched off.
  if (live === (camera !== null) && (live || !waiting)) {
    answer = found;
    complain("");
    show();
    times.push({ model: found.milliseconds.model, whole: performance.now() - began });
    times = times.slice(-FRAMES);
    tellTimes();
  }
  next();
}

// ------------------------------------------------------------------------------------------ where pictures come from

function open(file, name = file.name) {
  stopCamera();
  forget();
  complain("");
  URL.revokeObjectURL(still.src);
  still.src = URL.createObjectURL(file);
  still.alt = name ?? "The picture";
  mark(name);
  predict(file);
}

/** Tells which of the sample pictures is shown, if it is one. */
function mark(name) {
  for (const button of element("samples").querySelectorAll("button")) {
    button.setAttribute("aria-current", button.dataset.name === name);
  }
}

/** A picture is shown as soon as its shape is known; where it is none, the worker says so. */
still.onload = () => frame(still.naturalWidth, still.naturalHeight);
still.onerror = () => { picture.hidden = true; };

function frame(width, height) {
  picture.style.setProperty("--ratio", width / height);
  picture.hidden = false;
  element("empty").hidden = true;
}

function openFirst(files, where) {
  const file = [...files].find((one) => one.type.startsWith("image/")) ?? files[0];
  if (file) open(file);
  else complain(`${where} holds no picture.`);
}

async function openSample({ file, name }) {
  try {
    const response = await fetch(file);
    if (!response.ok) throw new Error(`status ${response.status}`);
    open(await response.blob(), name);
  } catch (error) {
    complain(`${name} could not be loaded: ${error.message}`);
  }
}

const REFUSED = {
  NotAllowedError: "The browser was not allowed to use the camera; allow it in the settings of this page.",
  NotFoundError: "There is no camera here.",
  NotReadableError: "Another program uses the camera.",
};

async function startCamera() {
  complain("");
  let stream;
  try {
    const wish = { facingMode: "environment", width: { ideal: 1280 } };
    stream = await navigator.mediaDevices.getUserMedia({ video: wish });
  } catch (error) {
    complain(REFUSED[error.name] ?? `The camera could not be opened: ${error.message}`);
    return;
  }
  stopCamera();
  camera = stream;
  mark(null);
  stream.getVideoTracks()[0].onended = () => {
    if (camera !== stream) return;
    stopCamera();
    complain("The camera was switched off.");
  };
  forget();
  waiting = null;
  video.srcObject = stream;
  await video.play().catch((error) => complain(`The camera shows nothing: ${error.message}`));
  if (camera !== stream) return;
  frame(video.videoWidth, video.videoHeight);
  still.hidden = true;
  video.hidden = false;
  element("camera").setAttribute("aria-pressed", "true");
  say("");
  follow(stream);
}

/** One frame after the other for as long as this stream is the camera; those that come while one is being looked at
 * are let go. */
async function follow(stream) {
  while (camera === stream) {
    if (!running && !waiting && video.readyState >= 2) {
      const began = performance.now();
      if (video.videoWidth / video.videoHeight !== Number(picture.style.getPropertyValue("--ratio"))) {
        frame(video.videoWidth, video.videoHeight); // a phone was turned
      }
      const bitmap = await createImageBitmap(video).catch(() => null); // while a phone is turned, for example
      if (bitmap && camera === stream) predict(bitmap, began);
    }
    await new Promise(requestAnimationFrame);
  }
}

function stopCamera() {
  for (const track of camera?.getTracks() ?? []) track.stop();
  camera = null;
  times = [];
  video.srcObject = null;
  video.hidden = true;
  still.hidden = false;
  picture.hidden = true;
  element("empty").hidden = false;
  element("camera").setAttribute("aria-pressed", "false");
}

// ------------------------------------------------------------------------------------------ what is drawn and said

function say(text) {
  element("status").textContent = text;
}

function complain(sentence) {
  element("error").textContent = sentence;
  element("error").hidden = !sentence;
}

/** No answer is shown any more. */
function forget() {
  answer = null;
  show();
}

/** Draws the answer and lists its classes. */
function show() {
  const scale = Math.min(window.devicePixelRatio, 2);
  overlay.width = Math.round(picture.clientWidth * scale);
  overlay.height = Math.round(picture.clientHeight * scale);
  element("found").hidden = answer === null;
  if (answer === null) return;
  const context = overlay.getContext("2d");
  if (overlay.width > 0) {
    if (answer.boxes) drawBoxes(context, scale);
    else drawLabels(context);
  }
  list();
}

/** What is found with at least the chosen score or that of its class, best first. */
function sureBoxes() {
  return answer.boxes.filter(({ score, label }) => score >= (threshold ?? demo.thresholds[label]));
}

function drawBoxes(context, scale) {
  const visible = sureBoxes().filter(({ label }) => !hidden.has(label));
  const [down, across] = [overlay.height / answer.size[0], overlay.width / answer.size[1]];
  const corners = ({ box }) => [box[0] * across, box[1] * down, (box[2] - box[0]) * across, (box[3] - box[1]) * down];
  // The surest lie on top; the dark rim keeps a line visible where the background has its colour.
  for (const one of [...visible].reverse()) {
    for (const [style, width] of [["#101010", 4.5], [colour(one.label), 2.5]]) {
      context.strokeStyle = style;
      context.lineWidth = width * scale;
      context.strokeRect(...corners(one));
    }
  }
  context.font = `600 ${13 * scale}px system-ui, sans-serif`;
  context.textBaseline = "middle";
  const height = 19 * scale;
  for (const one of [...visible].reverse()) {
    const words = `${demo.classes.names[one.label]} ${one.score.toFixed(2)}`;
    const width = context.measureText(words).width + 9 * scale;
    const [left, top] = corners(one);
    const x = Math.max(0, Math.min(left - scale, overlay.width - width));
    const y = top >= height ? top - height : top;
    context.fillStyle = colour(one.label);
    context.fillRect(x, y, width, height);
    context.fillStyle = isBright(one.label) ? "#101010" : "#ffffff";
    context.fillText(words, x + 4.5 * scale, y + height / 2);
  }
}

function drawLabels(context) {
  const labels = labelMap([overlay.height, overlay.width]);
  const image = new ImageData(overlay.width, overlay.height);
  const pixels = new Uint32Array(image.data.buffer);
  const palette = Uint32Array.from(demo.classes.colours, ([red, green, blue], label) =>
    hidden.has(label) ? 0 : new Uint32Array(Uint8Array.of(red, green, blue, 255).buffer)[0]);
  for (let k = 0; k < labels.length; k++) pixels[k] = palette[labels[k]];
  context.putImageData(image, 0, 0);
}

/** The label map of the answer in an image of this size. */
function labelMap(size) {
  return labelsToOriginal(answer.labels, demo.input.size[1], answer.placement, size);
}

/** The list of classes: counts, or shares of the picture. Its buttons stay, so that they can be tapped at any frame. */
function list() {
  const counts = answer.counts ?? new Array(demo.classes.names.length).fill(0);
  if (answer.boxes) for (const { label } of sureBoxes()) counts[label]++;
  const total = answer.size[0] * answer.size[1];
  const words = (label) => (answer.boxes ? `${counts[label]}` : percent(counts[label] / total));
  for (const [label, button] of buttons) {
    button.parentElement.hidden = counts[label] === 0 && !hidden.has(label);
    button.parentElement.style.order = -counts[label];
    button.lastElementChild.textContent = words(label);
  }
  const seen = [...counts.keys()].filter((label) => counts[label] > 0).sort((a, b) => counts[b] - counts[a]);
  const said = seen.map((label) => answer.boxes ? `${counts[label]} ${demo.classes.names[label]}`
    : `${demo.classes.names[label]} ${words(label)}`).join(", ") || "Nothing as sure as that";
  overlay.setAttribute("aria-label", said);
  if (!camera) say(said); // what changes many times a second is not to be read aloud
}

function percent(share) {
  return share > 0 && share < 0.001 ? "< 0.1 %" : `${(100 * share).toFixed(1)} %`;
}

function tellTimes() {
  const median = (name) => times.map((one) => one[name]).sort((a, b) => a - b)[Math.floor((times.length - 1) / 2)];
  const { threads } = window.detseg;
  element("times").textContent = `Network ${median("model").toFixed(0)} ms, whole ${median("whole").toFixed(0)} ms`
    + `${times.length > 1 ? ` (median of ${times.length})` : ""}, ${threads} ${threads === 1 ? "thread" : "threads"}`;
}

function colour(label) {
  return `rgb(${demo.classes.colours[label].join(" ")})`;
}

function isBright(label) {
  const [red, green, blue] = demo.classes.colours[label];
  return 0.299 * red + 0.587 * green + 0.114 * blue > 128;
}

// ------------------------------------------------------------------------------------------ the controls

function build() {
  document.title = `${demo.title}, detseg demo`;
  element("title").textContent = demo.title;
  element("about").textContent = demo.about;
  for (const [label, name] of demo.classes.names.entries()) {
    const button = document.createElement("button");
    button.type = "button";
    button.setAttribute("aria-pressed", true);
    button.style.setProperty("--colour", colour(label));
    button.append(name, " ", document.createElement("span"));
    button.onclick = () => {
      if (!hidden.delete(label)) hidden.add(label);
      button.setAttribute("aria-pressed", !hidden.has(label));
      show();
    };
    buttons.set(label, button);
    const item = document.createElement("li");
    item.append(button);
    element("classes").append(item);
  }
  for (const sample of demo.samples) {
    const button = document.createElement("button");
    const image = new Image();
    Object.assign(image, { src: sample.thumbnail, alt: sample.name, loading: "lazy" });
    Object.assign(button, { type: "button", onclick: () => openSample(sample) });
    button.dataset.name = sample.name;
    button.append(image);
    const item = document.createElement("li");
    item.append(button);
    element("samples").append(item);
  }
  if (demo.kind === "detection") buildThreshold();
  else buildOpacity();
}

/** The slider begins between the thresholds of the classes, which hold until it is moved and whenever they are asked
 * for. One that all classes share is shown as the slider's own. */
function buildThreshold() {
  const [input, byClass] = [element("threshold"), element("by-class")];
  const choose = (score) => {
    threshold = score;
    byClass.setAttribute("aria-pressed", score === null);
    element("threshold-value").textContent = score === null && !byClass.hidden ? "" : Number(input.value).toFixed(2);
    if (answer) show();
  };
  element("threshold-setting").hidden = false;
  byClass.hidden = new Set(demo.thresholds).size === 1;
  input.value = demo.thresholds.reduce((sum, one) => sum + one) / demo.thresholds.length;
  input.oninput = () => choose(Number(input.value));
  byClass.onclick = () => choose(threshold === null ? Number(input.value) : null);
  choose(null);
}

function buildOpacity() {
  const input = element("opacity");
  element("opacity-setting").hidden = false;
  input.oninput = () => {
    overlay.style.opacity = input.value;
    element("opacity-value").textContent = `${Math.round(100 * input.value)} %`;
  };
  input.oninput();
}

for (const id of ["photo", "upload"]) {
  element(id).onchange = ({ target }) => {
    if (target.files.length) open(target.files[0]);
    target.value = ""; // so that the same file can be chosen again
  };
}
element("camera").onclick = () => (camera ? stopCamera() : startCamera());
element("camera").disabled = !navigator.mediaDevices?.getUserMedia;
element("insecure").hidden = window.isSecureContext;
document.onpaste = ({ clipboardData }) => openFirst(clipboardData.files, "The clipboard");
document.ondragover = (event) => {
  event.preventDefault();
  document.body.classList.add("dropping");
};
document.ondragleave = (event) => { if (!event.relatedTarget) document.body.classList.remove("dropping"); };
document.ondrop = (event) => {
  event.preventDefault();
  document.body.classList.remove("dropping");
  openFirst(event.dataTransfer.files, "What was dropped");
};
new ResizeObserver(show).observe(picture);

say("Loading …");
try {
  const response = await fetch("demo.json");
  if (!response.ok) throw new Error(`status ${response.status}`);
  demo = await response.json();
  build();
  start();
} catch (error) {
  say("");
  complain(`demo.json, which describes the network, could not be read: ${error.message}`);
}
