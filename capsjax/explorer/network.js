"use strict";
// The network of capsjax, forward only. Functions have the names that they have in
// capsjax's ops, votes, routings, layers and models. Arrays are flat, the last axis first.

// ---- ops

// Plain sums of squares: JavaScript computes in 64 bits, where they neither overflow nor
// vanish.
function safeNorm(x, dim) {
  const result = new Float32Array(x.length / dim);
  for (let n = 0; n < result.length; n++) {
    let sum = 0;
    for (let k = n * dim; k < (n + 1) * dim; k++) sum += x[k] * x[k];
    result[n] = Math.sqrt(sum);
  }
  return result;
}

function scaled(s, dim, scale) {
  const norm = safeNorm(s, dim);
  const result = new Float32Array(s.length);
  for (let n = 0; n < norm.length; n++) {
    const factor = scale(norm[n]);
    for (let k = n * dim; k < (n + 1) * dim; k++) result[k] = s[k] * factor;
  }
  return result;
}

function squash(s, dim) {
  return scaled(s, dim, norm => {
    const q = Math.min(norm, 1 / norm);
    return q / (1 + q * q);
  });
}

function exponentialSquash(s, dim) {
  return scaled(s, dim, norm => (norm === 0 ? 1 : -Math.expm1(-norm) / norm));
}

// ---- votes

// u_hat[i, j, d] = sum_c W[i, j, d, c] u[i, c]
function castVotes(capsules, weight, c) {
  const votes = new Float32Array(weight.length / c);
  const perInput = (votes.length * c) / capsules.length;
  for (let u = 0, m = 0, at = 0; u < capsules.length; u += c) {
    for (const end = m + perInput; m < end; m++) {
      let sum = 0;
      for (let k = 0; k < c; k++) sum += weight[at++] * capsules[u + k];
      votes[m] = sum;
    }
  }
  return votes;
}

// ---- routings: from votes [i, j, d] to one Routed for each round

const ROUTINGS = {
  dynamic: dynamicRouting,
  uniform: uniformRouting,
  self_attention: selfAttention,
};

function dynamicRouting(votes, { i, j, d, bias, numIterations, none_of_the_above: nowhere }) {
  const logit = new Float32Array(i * j);
  const rounds = [];
  for (let round = 0; round < numIterations; round++) {
    if (round) addAgreement(logit, votes, rounds[round - 1].pose, { i, j, d });
    const coupling = softmax(logit, { i, j, nowhere });
    rounds.push(routed(squash(weightedSum(votes, coupling, { i, j, d, bias }), d), d, coupling));
  }
  return rounds;
}

function uniformRouting(votes, { i, j, d, bias }) {
  const coupling = new Float32Array(i * j).fill(1 / j);
  return [routed(squash(weightedSum(votes, coupling, { i, j, d, bias }), d), d, coupling)];
}

function selfAttention(votes, { i, j, d, bias, scale }) {
  const query = weightedSum(votes, new Float32Array(i * j).fill(1), { i, j, d });
  for (let m = 0; m < j * d; m++) query[m] /= scale ?? Math.sqrt(d);
  const logit = new Float32Array(i * j);
  addAgreement(logit, votes, query, { i, j, d });
  const coupling = softmax(logit, { i, j });
  // The trained bias joins behind the softmax.
  const share = bias ? coupling.map((value, n) => value + bias[n]) : coupling;
  return [routed(exponentialSquash(weightedSum(votes, share, { i, j, d }), d), d, coupling, share)];
}

function routed(pose, d, coupling, share = coupling) {
  return { pose, activation: safeNorm(pose, d), coupling, share };
}

// b[i, j] += u_hat[i, j] . v[j]
function addAgreement(logit, votes, pose, { i, j, d }) {
  for (let n = 0, at = 0; n < i * j;) {
    for (let v = 0; v < j * d; n++) {
      let agreement = 0;
      for (const end = v + d; v < end; v++) agreement += votes[at++] * pose[v];
      logit[n] += agreement;
    }
  }
}

// Over the outputs j; `nowhere` is one more output with a logit of zero, which is dropped.
function softmax(logit, { i, j, nowhere }) {
  const coupling = new Float32Array(i * j);
  for (let n = 0; n < i * j; n += j) {
    let most = nowhere ? 0 : -Infinity;
    for (let m = n; m < n + j; m++) most = Math.max(most, logit[m]);
    let sum = nowhere ? Math.exp(-most) : 0;
    for (let m = n; m < n + j; m++) sum += coupling[m] = Math.exp(logit[m] - most);
    for (let m = n; m < n + j; m++) coupling[m] /= sum;
  }
  return coupling;
}

// s[j] = sum_i c[i, j] u_hat[i, j] + bias[j]
function weightedSum(votes, share, { i, j, d, bias }) {
  const s = new Float64Array(j * d);
  if (bias) s.set(bias);
  for (let n = 0, at = 0; n < i * j;) {
    for (let v = 0; v < j * d; n++) {
      const c = share[n];
      for (const end = v + d; v < end; v++) s[v] += c * votes[at++];
    }
  }
  return s;
}

// What each input gives to each output: its share of the vote's part along the pose.
function contributions(votes, { pose, activation, share }, { i, j, d }) {
  const result = new Float32Array(i * j);
  for (let n = 0, at = 0; n < i * j; n++) {
    const m = n % j;
    let along = 0;
    for (let k = 0; k < d; k++) along += votes[at++] * pose[m * d + k];
    result[n] = activation[m] > 0 ? (share[n] * along) / activation[m] : 0;
  }
  return result;
}

// ---- layers

// One kernel [size, size, channels, features] over an image [height, width, channels],
// without padding. In WebAssembly, or the same loops in JavaScript.
function convolution(net, image, [height, width, channels], kernel, size, stride = 1) {
  const features = kernel.length / (size * size * channels);
  const rows = Math.floor((height - size) / stride) + 1;
  const columns = Math.floor((width - size) / stride) + 1;
  const result = new Float32Array(net.buffer, net.results, rows * columns * features).fill(0);
  if (net.convolve && features % 8 === 0) {
    new Float32Array(net.buffer, net.images, image.length).set(image);
    net.convolve(
      net.images,
      width,
      channels,
      kernel.byteOffset,
      size,
      4 * features,
      stride,
      net.results,
      rows,
      columns,
    );
  } else {
    let weight = 0;
    for (let dy = 0; dy < size; dy++)
      for (let dx = 0; dx < size; dx++)
        for (let c = 0; c < channels; c++, weight += features) {
          let sum = 0;
          for (let y = 0; y < rows; y++)
            for (let x = 0; x < columns; x++, sum += features) {
              const value = image[((y * stride + dy) * width + x * stride + dx) * channels + c];
              if (value !== 0)
                for (let f = 0; f < features; f++) result[sum + f] += value * kernel[weight + f];
            }
        }
  }
  return { values: result.slice(), shape: [rows, columns, features] };
}

function relu(x) {
  return x.map(value => Math.max(0, value));
}

function sigmoid(x) {
  return x.map(value => 1 / (1 + Math.exp(-value)));
}

function addBias(x, bias, scale = 1) {
  for (let n = 0; n < x.length; n++) x[n] = scale * x[n] + bias[n % bias.length];
  return x;
}

function primaryCaps(net, features, shape) {
  const { weights, primary_kernel, primary_stride, primary_scale, primary_relu, primary_dim } = net;
  const {
    values,
    shape: [height, width],
  } = convolution(
    net,
    features,
    shape,
    weights["primary_caps/conv/kernel"],
    primary_kernel,
    primary_stride,
  );
  const s = addBias(values, weights["primary_caps/bias"], primary_scale);
  return { capsules: squash(primary_relu ? relu(s) : s, primary_dim), height, width };
}

function denseCaps(net, capsules, numIterations) {
  const { weights, class_names, class_dim, primary_dim, routing } = net;
  const sizes = { i: capsules.length / primary_dim, j: class_names.length, d: class_dim };
  const votes = castVotes(capsules, weights["class_caps/weight"], primary_dim);
  const options = { ...routing, ...sizes, bias: weights["class_caps/bias"], numIterations };
  return { ...sizes, votes, rounds: ROUTINGS[routing.kind](votes, options) };
}

// A fully connected layer is a convolution of one pixel.
function dense(net, x, name) {
  const kernel = net.weights[`decoder/${name}/kernel`];
  return addBias(
    convolution(net, x, [1, 1, x.length], kernel, 1).values,
    net.weights[`decoder/${name}/bias`],
  );
}

// ---- model: CapsNet

function primary(net, image) {
  const { values, shape } = convolution(
    net,
    image,
    net.seen_shape,
    net.weights["conv/kernel"],
    net.conv_kernel,
  );
  return primaryCaps(net, relu(addBias(values, net.weights.conv_bias)), shape);
}

// Pixels from 0 to 1. `rounds` has the result of each round.
function encode(net, image, numIterations = net.routing.num_iterations) {
  const { capsules, height, width } = primary(net, image);
  return { capsules, height, width, ...denseCaps(net, capsules, numIterations) };
}

// Draws from the pose of one class; all others are masked, and zeros cost nothing.
function decode(net, pose, label) {
  let hidden = new Float32Array(net.class_names.length * net.class_dim);
  hidden.set(pose, label * net.class_dim);
  const last = net.decoder_features.length;
  for (let n = 0; n < last; n++) hidden = relu(dense(net, hidden, `Dense_${n}`));
  return sigmoid(dense(net, hidden, `Dense_${last}`));
}

// The share of an image's variance that a drawing leaves unexplained.
function unexplainedVariance(drawing, image) {
  let sum = 0;
  for (const value of image) sum += value;
  const mean = sum / image.length;
  let error = 0;
  let spread = 0;
  for (let n = 0; n < image.length; n++) {
    error += (image[n] - drawing[n]) ** 2;
    spread += (image[n] - mean) ** 2;
  }
  return spread > 0 ? error / spread : 1;
}

// ---- weights

// Opens the network that the page holds: `about` describes it, `bytes` are its weights,
// `wasm` is convolve.wasm. Weights and the operands of convolutions share one buffer,
// which WebAssembly works in.
async function openNetwork(about, bytes, wasm) {
  const aligned = size => 16 * Math.ceil(size / 16);
  let size = 0;
  const places = about.arrays.map(({ shape }) => {
    const place = { offset: size, length: shape.reduce((a, b) => a * b, 1) };
    size += aligned(4 * place.length);
    return place;
  });
  const images = size;
  const results = images + aligned(4 * about.largest);
  size = results + aligned(4 * about.largest);
  const pages = Math.ceil(size / 65536);
  let buffer;
  let convolve = null;
  try {
    const memory = new WebAssembly.Memory({ initial: pages });
    const { instance } = await WebAssembly.instantiate(wasm, { explorer: { memory } });
    ({ buffer } = memory);
    ({ convolve } = instance.exports);
  } catch {
    buffer = new ArrayBuffer(size); // No WebAssembly here, or none allowed.
  }
  const weights = {};
  let at = 0;
  about.arrays.forEach(({ name, dtype }, n) => {
    const { offset, length } = places[n];
    const values = (weights[name] = new Float32Array(buffer, offset, length));
    if (dtype === "float16") readHalves(new Uint16Array(bytes, at, length), values);
    else values.set(new Float32Array(bytes, at, length));
    at += 4 * Math.ceil(((dtype === "float16" ? 2 : 4) * length) / 4);
  });
  return { ...about, weights, buffer, images, results, convolve };
}

// Float16Array is too new for most browsers.
function readHalves(halves, values) {
  for (let n = 0; n < halves.length; n++) {
    const half = halves[n];
    const sign = half & 0x8000 ? -1 : 1;
    const exponent = (half >> 10) & 31;
    const fraction = half & 1023;
    values[n] =
      sign * (exponent ? 2 ** (exponent - 15) * (1 + fraction / 1024) : 2 ** -24 * fraction);
  }
}
