// The pixels of an image as the detector takes them: without colour conversion, transparency dropped and not blended.

/**
 * Return the (channels, height, width) values of an image.
 *
 * @param {ImageBitmap} bitmap made with `premultiplyAlpha: "none"` and `colorSpaceConversion: "none"`.
 * @param {number} channels 3 for RGB, 1 for grey.
 * @param {"uint8" | "float32"} dtype 0 to 255, or 0 to 1.
 * @returns {{values: Uint8Array | Float32Array, blended: boolean}} `blended`: the browser could not tell the colours
 *     under transparent pixels.
 */
export function imageValues(bitmap, channels, dtype) {
  const {width, height} = bitmap;
  const context = new OffscreenCanvas(width, height).getContext("2d", {willReadFrequently: true});
  context.drawImage(bitmap, 0, 0);
  let {data} = context.getImageData(0, 0, width, height);
  let blended = false;
  if (hasTransparency(data)) {
    // A 2D canvas keeps colours multiplied by their alpha, and loses those of transparent pixels. A texture does not.
    const straight = texturePixels(bitmap);
    blended = straight === null;
    data = straight ?? data;
  }
  const values = planes(data, width * height, channels);
  return {values: dtype === "uint8" ? values : Float32Array.from(values, (value) => value / 255), blended};
}

function hasTransparency(data) {
  for (let i = 3; i < data.length; i += 4) if (data[i] !== 255) return true;
  return false;
}

/** Return the RGBA bytes of a bitmap through WebGL; null where the browser has none, or the image is too large. */
function texturePixels(bitmap) {
  const {width, height} = bitmap;
  const gl = new OffscreenCanvas(1, 1).getContext("webgl2");
  if (!gl) return null;
  try {
    if (Math.max(width, height) > gl.getParameter(gl.MAX_TEXTURE_SIZE)) return null;
    const texture = gl.createTexture();
    gl.bindTexture(gl.TEXTURE_2D, texture);
    gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGBA, gl.RGBA, gl.UNSIGNED_BYTE, bitmap);
    gl.bindFramebuffer(gl.FRAMEBUFFER, gl.createFramebuffer());
    gl.framebufferTexture2D(gl.FRAMEBUFFER, gl.COLOR_ATTACHMENT0, gl.TEXTURE_2D, texture, 0);
    const data = new Uint8Array(4 * width * height);
    gl.readPixels(0, 0, width, height, gl.RGBA, gl.UNSIGNED_BYTE, data);
    return gl.getError() === gl.NO_ERROR ? data : null;
  } finally {
    gl.getExtension("WEBGL_lose_context")?.loseContext(); // its memory goes at once
  }
}

function planes(data, area, channels) {
  const values = new Uint8Array(channels * area);
  for (let i = 0; i < area; i++) {
    const red = data[4 * i], green = data[4 * i + 1], blue = data[4 * i + 2];
    if (channels === 1) {
      values[i] = (red * 19595 + green * 38470 + blue * 7471 + 32768) >> 16; // ITU-R BT.601, rounded as Pillow does
    } else {
      values[i] = red;
      values[area + i] = green;
      values[2 * area + i] = blue;
    }
  }
  return values;
}
