// Runs the model over a photo, tile by tile, away from the page. Tiles lie, blend and see the noise
// as they do in upsr_jax/upscale/tiles.py, so that the pixels are the command's.

import { makeNoise } from "./noise.js";

const SCALE = 4;
const LUMA = [0.299, 0.587, 0.114]; // BT.601
const MOST_THREADS = 8;

let loading; // a promise of the model

self.onmessage = async ({ data }) => {
  try {
    if (data.load) await (loading = load(data.load));
    else await upscale(await loading, data.photo);
  } catch (error) {
    self.postMessage({ failed: String(error?.message ?? error) });
  }
};

/** Start a runtime, "webgpu" or "wasm", and load the model. */
async function load(runtime) {
  const [settings, ort, weights] = await Promise.all([
    fetchFile("settings.json").then((response) => response.json()),
    import(`./runtime/${runtime}.js`),
    fetchFile("model.onnx").then((response) => response.arrayBuffer()),
  ]);
  const module = new URL(`runtime/${runtime}_module`, self.location.href).href;
  const cores = Math.min(navigator.hardwareConcurrency || 1, MOST_THREADS);
  const threads = self.crossOriginIsolated ? cores : 1;
  ort.env.wasm.wasmPaths = { mjs: `${module}.js`, wasm: `${module}.wasm` };
  ort.env.wasm.numThreads = threads;
  ort.env.logLevel = "error";
  const session = await ort.InferenceSession.create(weights, {
    executionProviders: [runtime],
    logSeverityLevel: 3, // errors alone
  });
  const ofCpu = `${threads} ${threads > 1 ? "threads" : "thread"}`;
  const on = runtime === "webgpu" ? "the graphics card" : ofCpu;
  self.postMessage({ loaded: on, model: settings.model, license: settings.license });
  return { ort, session, ...settings };
}

async function fetchFile(name) {
  const response = await fetch(name);
  if (!response.ok) throw new Error(`${name} can't be had from this address: ${response.status}`);
  return response;
}

/** Upscale RGB of [height, width, 4]; rows of the result are posted from the top down. */
async function upscale(model, { pixels, width, height }) {
  const { size, overlap } = model;
  const [tops, lefts] = [tileStarts(height, size, overlap), tileStarts(width, size, overlap)];
  const rowWeights = tileWeights(tops, SCALE * size, SCALE * overlap);
  const columnWeights = tileWeights(lefts, SCALE * size, SCALE * overlap);
  const [mirrorRow, mirrorColumn] = [mirror(height), mirror(width)];
  const bandWidth = SCALE * (lefts.at(-1) + size);
  const noise = makeNoise();
  const isGrey = hasNoColour(pixels);
  let band = new Float32Array(3 * SCALE * size * bandWidth);

  for (const [row, top] of tops.entries()) {
    for (const [column, left] of lefts.entries()) {
      const tile = new Float32Array(3 * size * size);
      for (let y = 0; y < size; y++) {
        for (let x = 0; x < size; x++) {
          const from = 4 * (mirrorRow(top + y) * width + mirrorColumn(left + x));
          for (let c = 0; c < 3; c++) tile[(c * size + y) * size + x] = pixels[from + c] / 255;
        }
      }
      const window = [top, left, size, size].map((place) => SCALE * place);
      const result = await run(model, tile, noise(...window));
      add(band, bandWidth, SCALE * left, result, rowWeights[row], columnWeights[column]);
      self.postMessage({ done: row * lefts.length + column + 1, of: tops.length * lefts.length });
    }
    const finished = SCALE * ((tops[row + 1] ?? top + size) - top);
    const rows = Math.min(finished, SCALE * (height - top));
    if (rows > 0) {
      const bytes = toBytes(band, bandWidth, rows, SCALE * width, isGrey);
      self.postMessage({ rows: bytes, top: SCALE * top }, [bytes.buffer]);
    }
    const rest = band.subarray(3 * finished * bandWidth);
    band = new Float32Array(band.length);
    band.set(rest);
  }
  self.postMessage({ finished: true });
}

/** Run the model on a tile [3, size, size] in 0..1; the result is [3, 4 size, 4 size]. */
async function run({ ort, session, size }, tile, noise) {
  const feeds = { image: new ort.Tensor("float32", tile, [1, 3, size, size]) };
  if (session.inputNames.includes("noise")) {
    feeds.noise = new ort.Tensor("float32", noise, [1, 3, SCALE * size, SCALE * size]);
  }
  const { upscaled } = await session.run(feeds);
  if (!upscaled.data.every(Number.isFinite)) throw new Error("the model gave no numbers");
  return upscaled.data;
}

/** List where the tiles of one axis start: neighbours overlap, the last is moved inward. */
function tileStarts(length, tile, overlap) {
  const starts = [];
  for (let start = 0; start < length - tile; start += tile - overlap) starts.push(start);
  return [...starts, Math.max(0, length - tile)];
}

/** Weigh each tile along one axis by ramps over the overlaps; in every place the sum is 1. */
function tileWeights(starts, tile, overlap) {
  const total = new Float64Array(starts.at(-1) * SCALE + tile);
  const weights = starts.map((start, i) => {
    const weight = new Float64Array(tile);
    for (let x = 0; x < tile; x++) {
      const fromLeft = i > 0 ? Math.min((x + 1) / (overlap + 1), 1) : 1;
      const fromRight = i < starts.length - 1 ? Math.min((tile - x) / (overlap + 1), 1) : 1;
      weight[x] = fromLeft * fromRight;
      total[SCALE * start + x] += weight[x];
    }
    return weight;
  });
  return weights.map((weight, i) => {
    return Float32Array.from(weight, (each, x) => each / total[SCALE * starts[i] + x]);
  });
}

/** Build the function that reflects a place beyond the end of an axis back into it. */
function mirror(length) {
  const period = Math.max(2 * length - 2, 1);
  return (place) => Math.min(place % period, period - (place % period));
}

function hasNoColour(pixels) {
  for (let i = 0; i < pixels.length; i += 4) {
    if (pixels[i] !== pixels[i + 1] || pixels[i] !== pixels[i + 2]) return false;
  }
  return true;
}

/** Add a weighted tile [3, n, n] to a band [rows, bandWidth, 3], from column `left` on. */
function add(band, bandWidth, left, tile, rowWeights, columnWeights) {
  const side = rowWeights.length;
  for (let y = 0; y < side; y++) {
    for (let x = 0; x < side; x++) {
      const to = 3 * (y * bandWidth + left + x);
      const weight = rowWeights[y] * columnWeights[x];
      for (let c = 0; c < 3; c++) band[to + c] += weight * tile[(c * side + y) * side + x];
    }
  }
}

/** Round rows of a band to RGBA of `width`; those of a grey photo get the luma alone. */
function toBytes(band, bandWidth, rows, width, isGrey) {
  const bytes = new Uint8ClampedArray(4 * rows * width).fill(255); // which rounds what it is given
  for (let y = 0; y < rows; y++) {
    for (let x = 0; x < width; x++) {
      const from = 3 * (y * bandWidth + x);
      const to = 4 * (y * width + x);
      const luma = isGrey && LUMA.reduce((sum, share, c) => sum + share * band[from + c], 0);
      for (let c = 0; c < 3; c++) bytes[to + c] = 255 * (isGrey ? luma : band[from + c]);
    }
  }
  return bytes;
}
