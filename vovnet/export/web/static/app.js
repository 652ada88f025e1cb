// The page: takes images, lets the worker detect, and draws and counts what has at least the score of the slider.

import {Detector} from "./detector.js";
import {draw} from "./drawing.js";
import {opened, stored} from "./files.js";
import {countsOf, countsTable, detectionsTable, save} from "./tables.js";

const MOST_IMAGES = 50;
const MOST_WIDTH = 3200; // pixels of a drawing

const element = (id) => document.getElementById(id);
const images = []; // {name, width, height, kept, detections, seconds, note, figure, canvas, caption}
let model = null;
let detector = null;
let waiting = Promise.resolve(); // images are detected one after the other
let pending = 0;
let lastSeconds = null;

function add(files) {
  element("errors").replaceChildren();
  const taken = [...files].slice(0, Math.max(0, MOST_IMAGES - images.length - pending));
  const left = files.length - taken.length;
  if (left) complain(`${plural(left, "image")} left out: the page keeps ${MOST_IMAGES} at a time`);
  pending += taken.length;
  showStatus();
  for (const file of taken) {
    waiting = waiting.then(async () => {
      try {
        await one(file);
      } catch (error) {
        complain(`${file.name}: ${error.message}`);
      }
      pending--;
      showStatus();
    });
  }
}

async function one(file) {
  const bitmap = await opened(file, model);
  const {width, height} = bitmap;
  const kept = stored(bitmap);
  const found = await detector.detect(bitmap);
  lastSeconds = found.seconds;
  const notes = [];
  if (found.blended) notes.push("transparent pixels were read as black or rounded");
  if (found.count === model.limit) notes.push(`the detector's limit of ${model.limit} detections was reached`);
  const image = {name: file.name, width, height, kept, seconds: found.seconds, note: notes.join("; ")};
  image.detections = detectionsOf(found);
  images.push(image);
  show(image);
}

/** Return the detections, best first, with boxes as x, y, width and height in pixels. */
function detectionsOf({count, boxes, scores, labels, masks, keypoints, grid}) {
  const more = model.box_format === "xyxy_inclusive" ? 1 : 0;
  const points = keypoints && keypoints.length / count / 3;
  const all = Array.from({length: count}, (_, row) => {
    const corners = [...boxes.subarray(4 * row, 4 * row + 4)];
    const [x0, y0, x1, y1] = corners;
    return {
      category: model.categories[labels[row] - 1],
      score: scores[row],
      corners,
      // In float32, as `vovnet predict` computes them.
      box: [x0, y0, Math.fround(Math.fround(x1 - x0) + more), Math.fround(Math.fround(y1 - y0) + more)],
      mask: masks && {grid, values: masks.subarray(row * grid * grid, (row + 1) * grid * grid)},
      points: points && Array.from({length: points}, (_, point) => triple(keypoints, row * points + point)),
    };
  });
  return all.sort((one, other) => other.score - one.score);
}

function triple(values, position) {
  return [...values.subarray(3 * position, 3 * position + 3)];
}

// What is shown.

const resized = new ResizeObserver((entries) => {
  for (const entry of entries) paint(images.find((image) => image.canvas === entry.target));
});

function show(image) {
  image.canvas = document.createElement("canvas");
  image.canvas.setAttribute("role", "img");
  image.canvas.style.aspectRatio = `${image.width} / ${image.height}`;
  image.caption = document.createElement("div");
  const remove = button("Remove", () => forget(image));
  remove.setAttribute("aria-label", `Remove ${image.name}`);
  const caption = document.createElement("figcaption");
  caption.append(image.caption, remove);
  image.figure = document.createElement("figure");
  image.figure.append(image.canvas, caption);
  element("images").append(image.figure);
  resized.observe(image.canvas);
  update();
}

function forget(image) {
  const place = images.indexOf(image);
  resized.unobserve(image.canvas);
  image.figure.remove();
  images.splice(place, 1);
  update();
  // The button that had the focus is gone.
  (images[Math.min(place, images.length - 1)]?.figure.querySelector("button") ?? element("choose")).focus();
}

function paint(image) {
  if (!image?.canvas.clientWidth) return;
  const ratio = window.devicePixelRatio || 1;
  const width = Math.min(MOST_WIDTH, Math.round(image.canvas.clientWidth * ratio));
  const height = Math.max(1, Math.round((width * image.height) / image.width));
  if (image.canvas.width !== width || image.canvas.height !== height) Object.assign(image.canvas, {width, height});
  const shown = image.detections.filter((one) => one.score >= threshold());
  draw(image.canvas, image.kept, shown, width / image.width, ratio);
}

const threshold = () => Number(element("threshold").value);

function update() {
  element("output").hidden = !images.length;
  element("threshold-value").value = threshold().toFixed(2);
  const totals = model.categories.map(() => 0);
  for (const image of images) {
    const counts = countsOf(image.detections, model.categories, threshold());
    counts.forEach((count, position) => (totals[position] += count));
    const found = counts.flatMap((count, position) => (count ? [`${count} ${model.categories[position].name}`] : []));
    const text = found.join(", ") || "nothing";
    image.canvas.setAttribute("aria-label", `${image.name}: ${text}`);
    const facts = [`${image.width}×${image.height} pixels`, `${image.seconds.toFixed(2)} s`];
    const small = document.createElement("small");
    small.textContent = [...facts, ...(image.note ? [image.note] : [])].join(", ");
    const name = document.createElement("strong");
    name.textContent = image.name;
    image.caption.replaceChildren(name, `: ${text}`, small);
    paint(image);
  }
  showCounts(totals);
  showStatus();
}

function showCounts(totals) {
  const few = model.categories.length <= 12; // of many categories, those that were found
  const rows = model.categories.filter((_, position) => few || totals[position]);
  element("counts").tBodies[0].replaceChildren(
    ...rows.map((category) => {
      const row = document.createElement("tr");
      const [name, count] = [document.createElement("th"), document.createElement("td")];
      const swatch = document.createElement("span");
      swatch.className = "swatch";
      swatch.style.backgroundColor = category.colour;
      name.scope = "row";
      name.append(swatch, category.name);
      count.textContent = totals[category.position];
      row.append(name, count);
      return row;
    })
  );
  element("total").textContent = totals.reduce((sum, count) => sum + count, 0);
}

function showStatus() {
  const parts = [];
  if (pending) parts.push(`Detecting: ${plural(pending, "image")} to go.`);
  if (images.length) {
    const objects = plural(Number(element("total").textContent), "object");
    const where = plural(images.length, "image");
    parts.push(`${objects} with a score of at least ${threshold().toFixed(2)} in ${where}.`);
  }
  if (images.length && lastSeconds !== null) parts.push(`The last image took ${lastSeconds.toFixed(2)} s.`);
  element("status").textContent = parts.join(" ") || "Ready: choose an image.";
}

const plural = (count, word) => `${count} ${word}${count === 1 ? "" : "s"}`;

function complain(message) {
  const line = document.createElement("li");
  line.textContent = message;
  element("errors").append(line);
}

function button(text, action) {
  const made = document.createElement("button");
  made.type = "button";
  made.append(text);
  made.addEventListener("click", action);
  return made;
}

// What people do.

function listen() {
  element("choose").addEventListener("click", () => element("files").click());
  element("files").addEventListener("change", () => {
    add([...element("files").files]);
    element("files").value = ""; // so that the same file can be chosen again
  });
  const drop = element("drop");
  const over = (event, on) => {
    event.preventDefault();
    drop.classList.toggle("over", on);
  };
  document.addEventListener("dragover", (event) => over(event, true));
  document.addEventListener("dragleave", (event) => over(event, false));
  document.addEventListener("drop", (event) => {
    over(event, false);
    add([...event.dataTransfer.files]);
  });
  document.addEventListener("paste", (event) => add([...event.clipboardData.files]));
  element("threshold").addEventListener("input", () => requestAnimationFrame(update));
  element("save-counts").addEventListener("click", () =>
    save("counts.csv", countsTable(images, model.categories, threshold()))
  );
  element("save-detections").addEventListener("click", () => save("detections.csv", detectionsTable(images)));
  element("clear").addEventListener("click", () => {
    for (const image of [...images]) forget(image);
  });
}

function showExamples() {
  for (const {file, name} of model.examples) {
    const made = button("", async () => {
      try {
        const response = await fetch(file);
        if (!response.ok) throw new Error(`the server answered ${response.status}`);
        add([new File([await response.blob()], name, {type: "image/png"})]);
      } catch (error) {
        complain(`${name}: ${error.message}`);
      }
    });
    const image = document.createElement("img");
    Object.assign(image, {src: file, alt: ""});
    made.append(image, `Example ${name}`);
    element("examples").append(made);
  }
}

function describe() {
  element("title").textContent = document.title = model.title;
  const size = (model.model_bytes / 1e6).toFixed(1);
  element("about").textContent =
    `Model: ${size} MB, exported by vovnet ${model.vovnet}. It runs with ONNX Runtime Web ${model.runtime} ` +
    "(© Microsoft Corporation, MIT licence), on the processor of this device. ";
  const licence = document.createElement("a");
  Object.assign(licence, {href: "ort/LICENSE.txt", textContent: "Licence of ONNX Runtime Web"});
  element("about").append(licence);
  Object.assign(element("threshold"), {min: model.least, value: model.threshold});
}

async function start() {
  const controls = [...document.querySelectorAll("#input button")];
  for (const one of controls) one.disabled = true;
  try {
    const response = await fetch("model.json");
    if (!response.ok) throw new Error(`model.json: the server answered ${response.status} ${response.statusText}`);
    model = await response.json();
    model.categories.forEach((category, position) => (category.position = position));
    describe();
    element("status").textContent = `Loading the detector: ${(model.bytes / 1e6).toFixed(1)} MB.`;
    detector = new Detector(model, (share) => Object.assign(element("progress"), {hidden: false, value: share}));
    await detector.start();
    element("progress").hidden = true;
  } catch (error) {
    element("status").textContent = "The detector cannot be started.";
    complain(error.message);
    return;
  }
  for (const one of controls) one.disabled = false;
  listen();
  showExamples();
  showStatus();
}

start();
