// Draws detections into a canvas: translucent masks, boxes, keypoints, and names where they hide nothing.

const MASK_OPACITY = 0.42;
const POINT_SCORE = 0.5; // points with a lower score are not drawn

/**
 * Draw an image with its detections.
 *
 * @param {HTMLCanvasElement} canvas already as large as it is shown, in device pixels.
 * @param {CanvasImageSource} image in any size.
 * @param {Array<object>} shown best first: `box` [x, y, width, height] and `points` in pixels of the original, `mask`.
 * @param {number} scale pixels of the canvas in a pixel of the original.
 * @param {number} ratio device pixels in a CSS pixel.
 */
export function draw(canvas, image, shown, scale, ratio) {
  const context = canvas.getContext("2d", {willReadFrequently: true}); // masks are mixed into what is drawn
  context.imageSmoothingQuality = "high";
  context.drawImage(image, 0, 0, canvas.width, canvas.height);
  const line = Math.max(1, Math.round(1.5 * ratio));
  const backwards = [...shown].reverse(); // the best on top
  for (const one of backwards) if (one.mask) drawMask(context, one, scale, line);
  context.lineJoin = "miter";
  for (const one of backwards) {
    context.strokeStyle = one.category.colour;
    context.lineWidth = line;
    context.strokeRect(...one.box.map((value) => value * scale));
  }
  for (const one of backwards) if (one.points) drawPoints(context, one, scale, line);
  drawNames(context, shown, scale, ratio);
}

/** Draw the part of a mask (grid × grid probabilities over the box) that is above 0.5, with its outline. */
function drawMask(context, {mask, corners, category}, scale, line) {
  const part = pasted(mask, corners, scale, context.canvas.width, context.canvas.height);
  if (part === null) return;
  const {left, top, width, height, inside} = part;
  const pixels = context.getImageData(left, top, width, height);
  const colour = [1, 3, 5].map((start) => parseInt(category.colour.slice(start, start + 2), 16));
  const at = (x, y) => x >= 0 && y >= 0 && x < width && y < height && inside[y * width + x];
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      if (!inside[y * width + x]) continue;
      const core = at(x - line, y) && at(x + line, y) && at(x, y - line) && at(x, y + line);
      const opacity = core ? MASK_OPACITY : 1;
      for (let c = 0, i = 4 * (y * width + x); c < 3; c++, i++)
        pixels.data[i] = pixels.data[i] * (1 - opacity) + colour[c] * opacity;
    }
  }
  context.putImageData(pixels, left, top);
}

/** Return which pixels of the canvas a mask covers. The places are torchvision's `paste_masks_in_image`. */
function pasted({values, grid}, [x0, y0, x1, y1], scale, canvasWidth, canvasHeight) {
  const cells = grid + 2; // with a border of zeros
  const columns = samples((x0 + x1) / 2, ((x1 - x0) / 2) * (cells / grid), cells, scale, canvasWidth);
  const rows = samples((y0 + y1) / 2, ((y1 - y0) / 2) * (cells / grid), cells, scale, canvasHeight);
  const width = columns.places.length, height = rows.places.length;
  if (!width || !height) return null;
  const inside = new Uint8Array(width * height);
  const value = (row, column) =>
    row < 1 || column < 1 || row > grid || column > grid ? 0 : values[(row - 1) * grid + column - 1];
  rows.places.forEach(([low, high, weight], y) =>
    columns.places.forEach(([before, after, share], x) => {
      const upper = value(low, before) * (1 - share) + value(low, after) * share;
      const lower = value(high, before) * (1 - share) + value(high, after) * share;
      inside[y * width + x] = upper * (1 - weight) + lower * weight > 0.5 ? 1 : 0;
    })
  );
  return {left: columns.first, top: rows.first, width, height, inside};
}

/** For each pixel of the canvas along a side of a box: the cells before and after it, and the weight of the latter. */
function samples(centre, half, cells, scale, limit) {
  const start = Math.trunc(centre - half), pixels = Math.max(Math.trunc(centre + half) - start + 1, 1);
  const first = Math.max(0, Math.floor(start * scale)), last = Math.min(limit, Math.ceil((start + pixels) * scale));
  const places = [];
  for (let i = first; i < last; i++) {
    const place = Math.max(0, (((i + 0.5) / scale - start) * cells) / pixels - 0.5);
    const low = Math.min(Math.floor(place), cells - 1);
    places.push([low, Math.min(low + 1, cells - 1), Math.min(place - low, 1)]);
  }
  return {first, places};
}

function drawPoints(context, {points, category}, scale, line) {
  const {skeleton = [], points: colours = []} = category;
  if (!colours.length) return; // where only some categories have a skeleton, the points of the others mean nothing
  const places = points.map(([x, y, score]) => (score >= POINT_SCORE ? [x * scale, y * scale] : null));
  for (const [first, second] of skeleton) {
    const [one, other] = [places[first], places[second]];
    if (!one || !other) continue;
    const strokes = [["#000000", line + 2], [edgeColour(colours[first], colours[second]), line]];
    for (const [colour, width] of strokes) {
      context.beginPath();
      context.moveTo(...one);
      context.lineTo(...other);
      context.strokeStyle = colour;
      context.lineWidth = width;
      context.stroke();
    }
  }
  places.forEach((place, position) => {
    if (!place) return;
    context.beginPath();
    context.arc(...place, line + 1.5, 0, 2 * Math.PI);
    context.fillStyle = colours[position] ?? "#009e73";
    context.fill();
    context.strokeStyle = "#000000";
    context.lineWidth = Math.max(1, line / 2);
    context.stroke();
  });
}

function edgeColour(one, other) {
  return one === other ? one : "#ffffff"; // a line between the sides belongs to none
}

/** Write names and scores, the best first. One with no place where it hides nothing is left out: the table counts. */
function drawNames(context, shown, scale, ratio) {
  const boxes = shown.map(({box}) => box.map((value) => value * scale));
  const size = letters(boxes, ratio), pad = Math.round(size / 4), height = size + 2 * pad;
  context.font = `${size}px system-ui, sans-serif`;
  context.textBaseline = "middle";
  const {width: canvasWidth, height: canvasHeight} = context.canvas;
  const taken = [];
  shown.forEach(({category, score}, position) => {
    const [x, y, , boxHeight] = boxes[position];
    const others = boxes.filter((_, other) => other !== position);
    for (const text of [`${category.name} ${score.toFixed(2)}`, category.name]) {
      const width = context.measureText(text).width + 2 * pad;
      const left = Math.max(0, Math.min(x, canvasWidth - width));
      const tops = [y - height, y, y + boxHeight, y + boxHeight - height];
      const places = tops.map((top) => [left, Math.max(0, Math.min(top, canvasHeight - height)), width, height]);
      const free = (place) => !taken.some((one) => common(place, one) > 0) && !hides(place, others);
      const place = places.find(free) ?? (shown.length === 1 ? places[0] : null);
      if (!place) continue;
      taken.push(place);
      context.fillStyle = category.colour;
      context.fillRect(...place);
      context.fillStyle = category.dark ? "#ffffff" : "#000000";
      context.fillText(text, place[0] + pad, place[1] + height / 2);
      break;
    }
  });
}

/** Return the height of letters: those of many small boxes are smaller. */
function letters(boxes, ratio) {
  if (boxes.length <= 3) return Math.round(13 * ratio);
  const sides = boxes.map(([, , width, height]) => Math.min(width, height)).sort((one, other) => one - other);
  return Math.round(Math.max(9 * ratio, Math.min(13 * ratio, 0.22 * sides[sides.length >> 1])));
}

/** Return true if a name would hide another object: it covers more than 30 % of its box, as in `vovnet predict`. */
function hides(place, boxes) {
  return boxes.some((box) => common(place, box) > 0.3 * box[2] * box[3]);
}

/** Return the area that two rectangles share. */
function common([x, y, width, height], [left, top, otherWidth, otherHeight]) {
  const wide = Math.min(x + width, left + otherWidth) - Math.max(x, left);
  const high = Math.min(y + height, top + otherHeight) - Math.max(y, top);
  return Math.max(0, wide) * Math.max(0, high);
}
