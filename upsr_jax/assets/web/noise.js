// The noise that the command draws by NumPy for seed 0, noise_window in upsr_jax/upscale/tiles.py:
// random bits by Philox 4x64-10 (Salmon et al., 2011), made normal by the ziggurat of Marsaglia and
// Tsang (2000) in single precision.

const BLOCK = 256;
const LAYERS = 256;
const LAST = 3.6541528853610088; // where the tail begins
const AREA = 0.004928673233974658; // of each layer
const INTEGERS = 2 ** 23; // of a float's mantissa

function makeTables() {
  const density = (x) => Math.exp(-0.5 * x * x);
  const [edge, height] = [new Float32Array(LAYERS), new Float32Array(LAYERS)];
  const limit = new Uint32Array(LAYERS);
  const base = AREA / density(LAST);
  [edge[0], height[0], limit[0]] = [base / INTEGERS, 1, (LAST / base) * INTEGERS];
  let x = LAST;
  for (let i = LAYERS - 1; i > 0; i--) {
    [edge[i], height[i]] = [x / INTEGERS, density(x)];
    const inner = i > 1 ? Math.sqrt(-2 * Math.log(AREA / x + density(x))) : 0;
    limit[i] = (inner / x) * INTEGERS;
    x = inner;
  }
  return { edge, height, limit };
}

const { edge, height, limit } = makeTables();

// A product of 32-bit integers has 64 bits: `low` and `high` are its halves.
let low = 0;
let high = 0;

function multiply(a, b) {
  const first = a * (b & 0xffff); // below 2^48, so doubles are exact
  low = Math.imul(a, b) >>> 0;
  high = Math.floor((a * (b >>> 16) + Math.floor(first / 65536)) / 65536);
}

/** Multiply two 64-bit integers; `product` gets the 128 bits, the lowest 32 first. */
function multiplyLong(product, aLow, aHigh, bLow, bHigh) {
  multiply(aLow, bLow);
  product[0] = low;
  let second = high;
  multiply(aLow, bHigh);
  second += low;
  let third = high;
  multiply(aHigh, bLow);
  second += low;
  third += high + Math.floor(second / 2 ** 32);
  multiply(aHigh, bHigh);
  third += low;
  product[1] = second;
  product[2] = third;
  product[3] = high + Math.floor(third / 2 ** 32);
}

/** Build the function that gives the random 32-bit integers of a block, one a call. */
function makeBits(row, column) {
  const counter = new Uint32Array([0, 0, 0, 0, row, 0, column, 0]);
  const [state, key] = [new Uint32Array(8), new Uint32Array(4)];
  const [p, q] = [new Uint32Array(4), new Uint32Array(4)];
  let next = 8;
  return () => {
    if (next === 8) {
      counter[0] += 1; // a block takes far fewer than 2^32
      state.set(counter);
      key.fill(0);
      for (let round = 0; round < 10; round++) {
        multiplyLong(p, 0xe14c6c93, 0xd2e7470e, state[0], state[1]);
        multiplyLong(q, 0x95121157, 0xca5a8263, state[4], state[5]);
        state[0] = q[2] ^ state[2] ^ key[0];
        state[1] = q[3] ^ state[3] ^ key[1];
        state[2] = q[0];
        state[3] = q[1];
        state[4] = p[2] ^ state[6] ^ key[2];
        state[5] = p[3] ^ state[7] ^ key[3];
        state[6] = p[0];
        state[7] = p[1];
        key[1] += 0x9e3779b9 + (key[0] + 0x7f4a7c15 >= 2 ** 32);
        key[0] += 0x7f4a7c15;
        key[3] += 0xbb67ae85 + (key[2] + 0x84caa73b >= 2 ** 32);
        key[2] += 0x84caa73b;
      }
      next = 0;
    }
    return state[next++];
  };
}

function drawNormal(bits) {
  const uniform = () => (bits() >>> 8) / 2 ** 24;
  for (;;) {
    const drawn = bits();
    const layer = drawn & 0xff;
    const size = drawn >>> 9;
    const x = Math.fround(size * edge[layer]) * (drawn & 0x100 ? -1 : 1);
    if (size < limit[layer]) return x;
    if (layer > 0) {
      const between = (height[layer - 1] - height[layer]) * uniform() + height[layer];
      if (between < Math.exp(-0.5 * x * x)) return x;
      continue;
    }
    for (;;) {
      const beyond = -Math.log1p(-uniform()) / LAST;
      const y = -Math.log1p(-uniform());
      if (2 * y > beyond * beyond) return (size >>> 8) & 1 ? -(LAST + beyond) : LAST + beyond;
    }
  }
}

function drawBlock(row, column) {
  const bits = makeBits(row, column);
  const noise = new Float32Array(BLOCK * BLOCK * 3);
  for (let i = 0; i < noise.length; i++) noise[i] = drawNormal(bits);
  return noise;
}

/** Build the function that cuts a window out of the field of noise, as [3, height, width]. */
export function makeNoise() {
  const blocks = new Map();
  return (top, left, height, width) => {
    const first = Math.floor(top / BLOCK);
    for (const key of blocks.keys()) if (Math.floor(key / 2 ** 20) < first) blocks.delete(key);
    const find = (row, column) => {
      const key = row * 2 ** 20 + column;
      if (!blocks.has(key)) blocks.set(key, drawBlock(row, column));
      return blocks.get(key);
    };
    const noise = new Float32Array(3 * height * width);
    for (let y = 0; y < height; y++) {
      const row = Math.floor((top + y) / BLOCK);
      let block, column;
      for (let x = 0; x < width; x++) {
        if (column !== Math.floor((left + x) / BLOCK)) {
          column = Math.floor((left + x) / BLOCK);
          block = find(row, column);
        }
        const from = 3 * (((top + y) % BLOCK) * BLOCK + ((left + x) % BLOCK));
        for (let c = 0; c < 3; c++) noise[(c * height + y) * width + x] = block[from + c];
      }
    }
    return noise;
  };
}
