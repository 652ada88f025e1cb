// Runs the detector, so that the page answers while it computes. Messages in: {model} once, then {id, bitmap}.
// Messages out: {loaded, total} in bytes, {ready}, {failed}, {id, found} and {id, error}.

import * as ort from "./ort/ort.js";
import {imageValues} from "./pixels.js";

let session = null;
let input = null;

self.onmessage = async ({data: message}) => {
  if (message.model) {
    try {
      await open(message.model);
      self.postMessage({ready: true});
    } catch (error) {
      self.postMessage({failed: text(error)});
    }
    return;
  }
  try {
    const found = await detect(message.bitmap);
    const {boxes, scores, labels, masks, keypoints} = found;
    const parts = [boxes, scores, labels, masks, keypoints].filter(Boolean).map((part) => part.buffer);
    self.postMessage({id: message.id, found}, parts);
  } catch (error) {
    self.postMessage({id: message.id, error: text(error)});
  } finally {
    message.bitmap.close();
  }
};

async function open(model) {
  input = model.input;
  const files = ["ort/runtime.wasm.gz", model.file];
  const loaded = files.map(() => 0);
  const buffers = await Promise.all(
    files.map((file, position) =>
      download(file, (bytes) => {
        loaded[position] = bytes;
        self.postMessage({loaded: loaded[0] + loaded[1], total: model.bytes});
      })
    )
  );
  ort.env.wasm.wasmBinary = await unpacked(buffers[0]);
  // Threads share memory, which browsers allow only to pages that are served with COOP and COEP headers.
  ort.env.wasm.numThreads = self.crossOriginIsolated ? Math.min(4, navigator.hardwareConcurrency || 1) : 1;
  const options = {executionProviders: ["wasm"], logSeverityLevel: 3}; // it prints errors alone
  session = await ort.InferenceSession.create(buffers[1], options);
}

async function download(file, report) {
  const response = await fetch(file);
  if (!response.ok) throw new Error(`${file}: the server answered ${response.status} ${response.statusText}`);
  const blocks = [];
  let bytes = 0;
  for (let reader = response.body.getReader(), step; !(step = await reader.read()).done; ) {
    blocks.push(step.value);
    report((bytes += step.value.length));
  }
  return new Uint8Array(await new Blob(blocks).arrayBuffer());
}

/** Unpack gzip. A server may have said that the file is a packed one, and the browser has unpacked it already. */
async function unpacked(bytes) {
  if (bytes[0] !== 0x1f || bytes[1] !== 0x8b) return bytes;
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

async function detect(bitmap) {
  const {width, height} = bitmap;
  const {values, blended} = imageValues(bitmap, input.channels, input.dtype);
  const start = performance.now();
  const outputs = await session.run({image: new ort.Tensor(input.dtype, values, [input.channels, height, width])});
  const seconds = (performance.now() - start) / 1000;
  const count = Number(outputs.count.data[0]);
  const rows = (name, type) => {
    const output = outputs[name];
    if (!output) return null;
    const each = output.dims.slice(1).reduce((product, side) => product * side, 1);
    return type.from(output.data.subarray(0, count * each), Number);
  };
  const found = {
    count,
    seconds,
    blended,
    boxes: rows("boxes", Float32Array),
    scores: rows("scores", Float32Array),
    labels: rows("labels", Int32Array),
    masks: rows("masks", Float32Array),
    keypoints: rows("keypoints", Float32Array),
    grid: outputs.masks ? outputs.masks.dims[1] : 0,
  };
  for (const output of Object.values(outputs)) output.dispose();
  return found;
}

function text(error) {
  // WebAssembly that runs out of memory throws numbers or a RangeError.
  const said = error instanceof Error ? error.message : String(error);
  const memory = typeof error === "number" || error instanceof RangeError || /alloc|memory|aborted/i.test(said);
  return memory ? "it needs more memory than the browser gives; take a smaller image" : said;
}
