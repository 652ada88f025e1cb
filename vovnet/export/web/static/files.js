// Opens image files: their size first, because decoding a huge one would fill the memory.

const STORED_SIDE = 1600; // pixels of the longer side that the page keeps of an image, to draw it

/**
 * Return the pixels of an image file.
 *
 * @param {File} file in any format that the browser reads.
 * @param {object} model of model.json: `max_pixels`, and the size that it takes, if that is only one.
 */
export async function opened(file, model) {
  const kind = file.type && !file.type.startsWith("image/") ? ` (it is ${file.type})` : "";
  const size = await headerSize(file);
  if (!size) throw new Error(`expected an image that this browser reads, such as PNG or JPEG${kind}`);
  const pixels = size.width * size.height;
  if (pixels > model.max_pixels) {
    const millions = (value) => (value / 1e6).toFixed(value < 1e7 ? 1 : 0);
    throw new Error(
      `has ${millions(pixels)} megapixels (${size.width}×${size.height}), and the page takes at most ` +
        `${millions(model.max_pixels)}; make it smaller`
    );
  }
  const fixed = model.input.size;
  if (fixed && (fixed[0] !== size.height || fixed[1] !== size.width))
    throw new Error(`has ${size.width}×${size.height} pixels, and this detector takes only ${fixed[1]}×${fixed[0]}`);
  try {
    return await createImageBitmap(file, {premultiplyAlpha: "none", colorSpaceConversion: "none"});
  } catch {
    throw new Error("the image is truncated or damaged, or too large for this browser");
  }
}

/** Return the size of an image file from its header: nothing is decoded, however large it is. */
async function headerSize(file) {
  const image = new Image();
  image.src = URL.createObjectURL(file);
  try {
    await new Promise((resolve, reject) => Object.assign(image, {onload: resolve, onerror: reject}));
    return image.naturalWidth && image.naturalHeight ? {width: image.naturalWidth, height: image.naturalHeight} : null;
  } catch {
    return null;
  } finally {
    URL.revokeObjectURL(image.src);
    image.src = "";
  }
}

/** Return a copy of an image, as a canvas, that is small enough to keep. */
export function stored(bitmap) {
  const scale = Math.min(1, STORED_SIDE / Math.max(bitmap.width, bitmap.height));
  const kept = document.createElement("canvas");
  kept.width = Math.max(1, Math.round(bitmap.width * scale));
  kept.height = Math.max(1, Math.round(bitmap.height * scale));
  const context = kept.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.fillStyle = "#ffffff"; // under transparent pixels
  context.fillRect(0, 0, kept.width, kept.height);
  context.drawImage(bitmap, 0, 0, kept.width, kept.height);
  return kept;
}
