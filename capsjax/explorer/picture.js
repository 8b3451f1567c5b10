"use strict";
// Turns a picture into an image of the network's data set, exactly as capsjax.predict
// does: capsjax's data.picture and data.images, and Pillow's resize.

const FAINTEST = 0.1;

// A picture is { height, width, channels, values } with bytes, the last axis first.
// Returns the image; two of them, dark on light first, if its ground is unclear.
function makeImages({ image_shape, drawn }, picture) {
  if (!drawn) return [fit(image_shape[2] === 1 ? toGrey(picture) : picture, image_shape)];
  const grey = toGrey(picture);
  const frame = { height: drawn.frame, width: drawn.frame, channels: 1 };
  if (isMade(grey, drawn, image_shape)) return [fit(grey, image_shape)];
  const edge = ground(grey, Math.fround);
  const inverts = edge > 0.4 && edge < 0.6 ? [true, false] : [edge > 0.5];
  return inverts.map(invert =>
    fit({ ...frame, values: placed(grey, edge, drawn, invert) }, image_shape),
  );
}

function isMade(grey, drawn, [imageHeight, imageWidth]) {
  const { height, width, values } = grey;
  const isFrame = height === drawn.frame && width === drawn.frame;
  if (!isFrame && !(height === imageHeight && width === imageWidth)) return false;
  if (ground(grey, value => value) > FAINTEST) return false;
  if (!drawn.is_centred || values.every(value => value === 0)) return true;
  const centre = centreOfMass(values, height, width);
  const parts = [height, width];
  const off = centre.map(
    (middle, axis) => ((middle + 0.5) / parts[axis]) * drawn.frame - 0.5 - drawn.frame / 2,
  );
  return Math.max(...off.map(Math.abs)) < (isFrame ? 0.5 : 0.6) + 1e-6;
}

// The brightness of the edge, from 0 to 1: the median, in the precision of `number`.
function ground({ height, width, values }, number) {
  const edge = [...values.subarray(0, width), ...values.subarray((height - 1) * width)];
  for (let y = 0; y < height; y++) edge.push(values[y * width], values[(y + 1) * width - 1]);
  const sorted = Uint8Array.from(edge).sort();
  const [low, high] = [sorted.length / 2 - 1, sorted.length / 2].map(n => number(sorted[n] / 255));
  return number(low + high) / 2;
}

function centreOfMass(ink, height, width) {
  let mass = 0;
  let down = 0;
  let across = 0;
  for (let y = 0; y < height; y++)
    for (let x = 0; x < width; x++) {
      const value = ink[y * width + x];
      mass += value;
      down += y * value;
      across += x * value;
    }
  return [down / mass, across / mass];
}

// Scales and places a drawing as MNIST's makers did.
function placed({ height, width, values }, edge, drawn, invert) {
  const result = new Uint8Array(drawn.frame * drawn.frame);
  // The ink of each byte: 256 numbers instead of one for each pixel.
  const sign = invert ? -1 : 1;
  const ink = Float32Array.from({ length: 256 }, (_, v) => sign * (Math.fround(v / 255) - edge));
  let most = -Infinity;
  for (let n = 0; n < values.length; n++) if (ink[values[n]] > most) most = ink[values[n]];
  if (most < Math.fround(FAINTEST)) return result;
  for (let v = 0; v < 256; v++) ink[v] = Math.max(0, ink[v] / most);
  let top = height;
  let bottom = -1;
  let left = width;
  let right = -1;
  for (let y = 0, n = 0; y < height; y++)
    for (let x = 0; x < width; x++, n++) {
      if (ink[values[n]] <= 0.25) continue;
      if (y < top) top = y;
      if (x < left) left = x;
      if (x > right) right = x;
      bottom = y;
    }
  const h = bottom - top + 1;
  const w = right - left + 1;
  const cut = new Float32Array(h * w);
  for (let y = 0, n = 0; y < h; y++)
    for (let x = 0; x < w; x++) cut[n++] = ink[values[(top + y) * width + left + x]];
  const scale = drawn.extent / Math.max(h, w);
  const [rows, columns] = [h, w].map(n => Math.max(1, roundHalfEven(n * scale)));
  const small = resizeFloats(cut, h, w, rows, columns).map(value => Math.max(0, value));
  const brightest = largest(small);
  const bright = small.map(value => value / brightest);
  const middle = centreOfMass(bright, rows, columns);
  const [y0, x0] = [rows, columns].map((part, axis) =>
    Math.min(Math.max(roundHalfEven(drawn.frame / 2 - middle[axis]), 0), drawn.frame - part),
  );
  for (let y = 0; y < rows; y++)
    for (let x = 0; x < columns; x++)
      result[(y0 + y) * drawn.frame + x0 + x] = roundHalfEven(
        Math.fround(255 * bright[y * columns + x]),
      );
  return result;
}

function largest(values) {
  let most = -Infinity;
  for (let n = 0; n < values.length; n++) if (values[n] > most) most = values[n];
  return most;
}

// As Python and NumPy round.
function roundHalfEven(x) {
  const low = Math.floor(x);
  return x - low === 0.5 ? low + Math.abs(low % 2) : Math.round(x);
}

// ---- pictures

// The pixels of a canvas, without transparency: on black if what shows is light.
function fromPixels({ data, height, width }) {
  let shown = 0;
  let brightness = 0;
  let least = 255;
  for (let n = 0; n < data.length; n += 4) {
    shown += data[n + 3];
    least = Math.min(least, data[n + 3]);
    brightness += data[n + 3] * greyOf(data[n], data[n + 1], data[n + 2]);
  }
  const behind = least < 128 && brightness > 127 * shown ? 0 : 255;
  const values = new Uint8Array(3 * height * width);
  for (let n = 0, to = 0; n < data.length; n++)
    if (n % 4 < 3) {
      const opacity = 128 * data[n - (n % 4) + 3];
      const sum = data[n] * opacity + behind * (128 * 255 - opacity) + (128 << 7);
      values[to++] = (((sum >> 8) + sum) >> 8) >> 7;
    }
  return { height, width, channels: 3, values };
}

function greyOf(red, green, blue) {
  return (19595 * red + 38470 * green + 7471 * blue + 0x8000) >> 16;
}

function toGrey(picture) {
  if (picture.channels === 1) return picture;
  const { height, width, values } = picture;
  const grey = new Uint8Array(height * width);
  for (let n = 0; n < grey.length; n++)
    grey[n] = greyOf(values[3 * n], values[3 * n + 1], values[3 * n + 2]);
  return { height, width, channels: 1, values: grey };
}

// The middle of an image that the network sees, with pixels from 0 to 1.
function seenOf(
  { image_shape: [height, width, channels], seen_shape: [seenHeight, seenWidth] },
  values,
) {
  const top = Math.floor((height - seenHeight) / 2);
  const left = Math.floor((width - seenWidth) / 2);
  const result = new Float32Array(seenHeight * seenWidth * channels);
  for (let y = 0, n = 0; y < seenHeight; y++)
    for (let x = 0; x < seenWidth * channels; x++)
      result[n++] = values[((top + y) * width + left) * channels + x] / 255;
  return result;
}

// ---- Pillow's ImageOps.fit and Image.resize

function fit({ height, width, channels, values }, [toHeight, toWidth]) {
  const ratio = width / height;
  const wanted = toWidth / toHeight;
  const cropWidth = ratio > wanted ? wanted * height : width;
  const cropHeight = ratio < wanted ? width / wanted : height;
  const left = (width - cropWidth) / 2;
  const top = (height - cropHeight) / 2;
  const across = taps(width, toWidth, bicubic, 2, left, left + cropWidth).map(fixed);
  const down = taps(height, toHeight, bicubic, 2, top, top + cropHeight).map(fixed);
  // Sums of bytes by weights in units of 2 ** -22, rounded after each axis.
  const round = sum => Math.min(255, Math.max(0, Math.floor((sum + 2 ** 21) / 2 ** 22)));
  return resized(values, height, width, channels, across, down, Uint8Array, round);
}

function fixed({ first, weight }) {
  return {
    first,
    weight: weight.map(value => Math.trunc(value * 2 ** 22 + (value < 0 ? -0.5 : 0.5))),
  };
}

function resizeFloats(values, height, width, toHeight, toWidth) {
  const across = taps(width, toWidth, lanczos, 3);
  const down = taps(height, toHeight, lanczos, 3);
  return resized(values, height, width, 1, across, down, Float32Array, sum => sum);
}

// Rows first, or columns first where most is gained: the order of Pillow 13.
function resized(values, height, width, channels, across, down, Type, round) {
  const lost = [height - down.length, width - across.length];
  if (lost[0] > Math.max(0, 2 * lost[1])) {
    const short = resizedAxis(values, 1, height, width * channels, down, Type, round);
    return resizedAxis(short, down.length, width, channels, across, Type, round);
  }
  const narrow = resizedAxis(values, height, width, channels, across, Type, round);
  return resizedAxis(narrow, 1, height, across.length * channels, down, Type, round);
}

// Values [outer, size, inner] become [outer, taps, inner].
function resizedAxis(values, outer, size, inner, taps, Type, round) {
  const result = new Type(outer * taps.length * inner);
  for (let o = 0, n = 0; o < outer; o++)
    for (const { first, weight } of taps)
      for (let c = 0; c < inner; c++, n++) {
        let sum = 0;
        for (let k = 0, at = (o * size + first) * inner + c; k < weight.length; k++, at += inner)
          sum += weight[k] * values[at];
        result[n] = round(sum);
      }
  return result;
}

// The pixels that each new pixel is made of, and their weights.
function taps(size, toSize, filter, support, from = 0, to = size) {
  const begin = Math.fround(from);
  const scale = Math.fround(Math.fround(to) - begin) / toSize;
  const stretch = Math.max(1, scale);
  const reach = support * stretch;
  return Array.from({ length: toSize }, (_, n) => {
    const centre = begin + (n + 0.5) * scale;
    const first = Math.max(0, Math.trunc(centre - reach + 0.5));
    const end = Math.min(size, Math.trunc(centre + reach + 0.5));
    const weight = Array.from({ length: end - first }, (_, k) =>
      filter((k + first - centre + 0.5) / stretch),
    );
    const sum = weight.reduce((a, b) => a + b, 0);
    return { first, weight: weight.map(value => value / sum) };
  });
}

function lanczos(x) {
  return x >= -3 && x < 3 ? sinc(x) * sinc(x / 3) : 0;
}

function sinc(x) {
  return x === 0 ? 1 : Math.sin(Math.PI * x) / (Math.PI * x);
}

function bicubic(x) {
  const a = -0.5;
  const z = Math.abs(x);
  if (z < 1) return ((a + 2) * z - (a + 3)) * z * z + 1;
  return z < 2 ? (((z - 5) * z + 8) * z - 4) * a : 0;
}
