"use strict";
// The page: what people do changes `state`; `think` computes, `render` shows.

const MOST_ROUNDS = 8;
const MOST_SHOWN = 12;
const state = {
  strokes: [], // lists of points on the board
  test: null, // the index of a test image
  picture: null, // the bytes of a prepared image that was opened
  chosen: null, // a class; null for the longest capsule's
  rounds: 1,
  moved: {}, // pose components that a slider has changed
  place: null, // [row, column] of primary capsules
  isPinned: false, // whether the place stays when the pointer leaves
  step: null, // of the walk-through
  seen: null, // what `think` found
};
window.explorer = { state }; // Also the sign that the page is whole.

const $ = id => document.getElementById(id);
const make = (tag, properties = {}, ...children) => {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
};
const escaped = text => text.replace(/[&<>"]/g, one => `&#${one.charCodeAt(0)};`);
const context = canvas => canvas.getContext("2d", { willReadFrequently: true });
let net;

// ---- opening

async function openPage() {
  if (typeof DecompressionStream === "undefined")
    throw new Error("it needs a browser of 2023 or newer");
  let about;
  let bytes;
  try {
    about = JSON.parse($("about").textContent);
    const packed = new Blob([fromBase64($("weights").textContent)]).stream();
    bytes = await new Response(
      packed.pipeThrough(new DecompressionStream("deflate")),
    ).arrayBuffer();
  } catch {
    throw new Error("it is damaged. Make or copy it again");
  }
  net = await openNetwork(about, bytes, fromBase64($("convolve").textContent));
  Object.assign(window.explorer, { net });
  build();
  restore();
  document.body.dataset.state = "ready";
}

function fromBase64(text) {
  return Uint8Array.from(atob(text.trim()), one => one.charCodeAt(0));
}

// ---- the parts that stay

const rows = [];
const sliders = [];
const samples = [];

function build() {
  state.rounds = net.routing.num_iterations;
  const isGrey = net.image_shape[2] === 1;
  const [noun] = net.nouns;
  $("input-title").textContent = isGrey ? "1. Draw" : "1. Choose an image";
  $("pad").ariaLabel = isGrey
    ? "Drawing board. Draw by mouse, pen or finger; without them pick a test image below."
    : "The image that the network gets.";
  $("input-text").textContent =
    `${isGrey ? "Draw by mouse, pen or finger. " : ""}A picture may also be dropped on this page.`;
  $("classes-text").textContent =
    `A bar past the dashed line means: present${net.drawing_limit === null ? "" : ", if the capsule also draws what the network sees"}. The pictures on the right show what each capsule would draw. Choose a class to look at its capsule.`;
  $("clear").hidden = $("undo").hidden = !isGrey;
  if (!isGrey) $("pad").style.cursor = "default";
  $("samples-title").textContent =
    `${isGrey ? "Or pick" : "Pick"} a test ${net.drawn ? "digit" : "image"}`;
  $("credit").textContent = net.credit ?? "";
  const correct = net.accuracy
    ? `; it names ${(100 * net.accuracy).toFixed(2)} % of the test images right`
    : "";
  $("about-network").textContent =
    `The network: ${net.name}, ${net.num_parameters.toLocaleString("en")} parameters, trained on ${net.data} for ${net.step.toLocaleString("en")} steps${correct}. Its weights are rounded to 16 bits here.`;

  const images = fromBase64(net.samples.images);
  const size = net.image_shape.reduce((a, b) => a * b, 1);
  for (let n = 0; n * size < images.length; n++) {
    const image = images.subarray(n * size, (n + 1) * size);
    const canvas = make("canvas");
    const label = net.samples.labels[n];
    const button = make(
      "button",
      {
        ariaLabel: `test ${noun} ${n + 1}${label === undefined ? "" : `, labelled ${net.class_names[label]}`}`,
        onclick: () => change({ strokes: [], test: n, picture: null }),
      },
      canvas,
    );
    show(canvas, seenOf(net, image), net.seen_shape);
    $("samples").append(button);
    samples.push({ image, button });
  }
  $("samples-block").hidden = !samples.length;

  net.class_names.forEach((name, label) => {
    const bar = make("i");
    const number = make("output");
    const thumb = make("canvas", { ariaHidden: "true" });
    const track = make("span", { className: "bar" }, bar);
    const row = make(
      "button",
      {
        className: "class",
        onclick: () => change({ chosen: state.chosen === label ? null : label }),
      },
      make("span", { className: "name", textContent: name, title: name }),
      track,
      number,
      thumb,
    );
    row.dataset.label = label;
    $("classes").append(row);
    rows.push({ row, bar, track, number, thumb, name });
  });
  $("capsules").style.setProperty(
    "--name",
    `${Math.min(14, Math.max(...net.class_names.map(name => name.length)) + 1)}ch`,
  );

  for (let k = 0; k < net.class_dim; k++) {
    const input = make("input", { type: "range", min: -1, max: 1, step: 0.005 });
    const number = make("output");
    const near = make("i", { className: "near" });
    const start = make("i", { className: "start" });
    const row = make(
      "div",
      { className: "slider" },
      make("span", { textContent: k + 1 }),
      make("span", { className: "range" }, near, start, input),
      number,
    );
    input.oninput = () => {
      state.moved[k] = +input.value;
      renderPose();
      remember();
    };
    $("sliders").append(row);
    sliders.push({ row, input, number, near, start });
  }

  const isIterative = net.routing.kind === "dynamic";
  const window_ = net.conv_kernel + net.primary_kernel - 1;
  const share = `${Math.round(100 / net.class_names.length)} %`;
  $("rounds-block").hidden = !isIterative;
  $("agreement").classList.toggle("one-step", !isIterative);
  $("num-rounds").max = mostRounds();
  $("routing-text").textContent =
    `Below the class capsules are many small ones. Each looks at a window of ${window_} x ${window_} pixels and votes: it predicts the pose of every class. ` +
    {
      dynamic: `At first it gives each class the same share of its vote${net.routing.none_of_the_above ? "" : `, ${share}`}. In each further round it gives more to the classes whose pose agrees with its vote. Votes that agree add up to a long capsule; votes that contradict each other cancel out.`,
      uniform: `It gives each class the same share of its vote, ${share}. Votes that agree add up to a long capsule; votes that contradict each other cancel out. This network's routing (uniform) has one step, so there are no rounds to play with.`,
      self_attention:
        "It gives more to the classes where its vote agrees with the sum of all votes. Votes that agree add up to a long capsule; votes that contradict each other cancel out. This network's routing (self-attention) has one step, so there are no rounds to play with.",
    }[net.routing.kind];
  $("reset").onclick = () => {
    state.moved = {};
    renderPose();
    remember();
  };
  window.onresize = schedule;
  listenToBoard();
  listenToAgreement();
  listenToLink();
  listenToTour();
}

function mostRounds() {
  return Math.max(MOST_ROUNDS, net.routing.num_iterations);
}

// ---- thinking

// Another image, class or number of rounds: sliders go back to the capsule's own pose.
function change(values) {
  const isImage = "strokes" in values;
  Object.assign(state, { moved: {} }, isImage ? { chosen: null } : {}, values);
  if (isImage) paint();
  schedule();
}

let isScheduled = false;
function schedule() {
  if (isScheduled) return;
  isScheduled = true;
  requestAnimationFrame(() => {
    isScheduled = false;
    think();
    render();
  });
}

// The prepared images: two if it is unclear which part of a picture is the ground.
function prepared() {
  if (state.picture) return state.picture;
  if (state.test !== null) return [samples[state.test].image];
  return state.strokes.length ? makeImages(net, boardPicture()) : [];
}

function think() {
  const begin = performance.now();
  state.seen = null;
  for (const image of prepared()) {
    const pixels = seenOf(net, image);
    const found = encode(net, pixels, net.routing.kind === "dynamic" ? mostRounds() : 1);
    const longest = largest(found.rounds[state.rounds - 1].activation);
    if (!state.seen || longest > state.seen.longest)
      state.seen = { ...found, image, pixels, longest, drawings: [] };
  }
  if (state.seen) state.seen.error = drawingError();
  window.explorer.milliseconds = performance.now() - begin;
}

// What a class capsule draws after a number of rounds.
function drawingOf(label, rounds = state.rounds) {
  const d = net.class_dim;
  const { pose } = state.seen.rounds[rounds - 1];
  const drawings = (state.seen.drawings[rounds] ??= []);
  return (drawings[label] ??= decode(net, pose.subarray(label * d, (label + 1) * d), label));
}

// Run.drawing_error: the brightest pixels of all present capsules, or of the longest.
// Always after the rounds of the training, which the limit belongs to.
function drawingError() {
  const usual = net.routing.num_iterations;
  const { activation } = state.seen.rounds[usual - 1];
  const labels = [...activation.keys()].filter(label => activation[label] >= net.present);
  if (!labels.length) labels.push(activation.indexOf(largest(activation)));
  const [first, ...others] = labels.map(label => drawingOf(label, usual));
  const drawing = first.map((value, n) => Math.max(value, ...others.map(one => one[n])));
  return unexplainedVariance(drawing, state.seen.pixels);
}

// Whether the capsules draw what the network sees; networks without a limit are not asked.
function isLike() {
  return net.drawing_limit === null || state.seen.error <= net.drawing_limit;
}

// As capsjax.predict says it.
function verdict(activation, like = true) {
  const order = [...activation.keys()].sort((a, b) => activation[b] - activation[a]);
  const names = order.map(label => net.class_names[label]);
  const [noun, nouns] = net.nouns;
  const present = activation.filter(length => length >= net.present).length;
  if (present === 0 || !like) return `no ${noun}`;
  if (net.num_shown !== 1)
    return names.slice(0, Math.min(present, net.num_shown ?? present)).join(" and ");
  return present === 1 ? names[0] : `${names[0]}, or two ${nouns}? (${names[0]} and ${names[1]})`;
}

function current() {
  const result = state.seen.rounds[state.rounds - 1];
  const { activation } = result;
  const label = state.chosen ?? activation.indexOf(largest(activation));
  return {
    ...result,
    label,
    name: net.class_names[label],
    own: result.pose.slice(label * net.class_dim, (label + 1) * net.class_dim),
  };
}

// ---- showing

const ready = new WeakMap(); // canvas -> its pixels
function show(canvas, image, [height, width, channels]) {
  if (canvas.width !== width || canvas.height !== height || !ready.has(canvas)) {
    Object.assign(canvas, { width, height });
    ready.set(canvas, new ImageData(width, height));
  }
  const pixels = ready.get(canvas);
  const { data } = pixels;
  for (let n = 0; n < width * height; n++) {
    for (let c = 0; c < 3; c++)
      data[4 * n + c] = 255 * image[n * channels + (channels === 3 ? c : 0)];
    data[4 * n + 3] = 255;
  }
  canvas.getContext("2d").putImageData(pixels, 0, 0);
}

function render() {
  const begin = performance.now();
  document.body.classList.toggle("empty", !state.seen);
  samples.forEach(({ button }, n) => {
    button.ariaPressed = n === state.test;
    button.tabIndex = n === (state.test ?? 0) ? 0 : -1;
  });
  $("undo").disabled = !state.strokes.length;
  $("hint").textContent =
    net.image_shape[2] !== 1 || state.seen ? "" : `draw a ${net.drawn ? "digit" : "picture"} here`;
  if (state.seen) {
    renderCapsules();
    renderPose();
    renderRouting();
  } else renderNothing();
  window.explorer.renderMilliseconds = performance.now() - begin;
  $("echo").textContent = $("verdict").textContent;
  remember();
}

function renderNothing() {
  $("verdict").textContent = net.drawn
    ? "Draw a digit."
    : net.image_shape[2] === 1
      ? "Draw something."
      : "Choose an image.";
  $("because").textContent = "";
  for (const { row, bar, number, thumb } of rows) {
    bar.style.width = number.textContent = "";
    thumb.style.opacity = 0;
    row.disabled = true;
    row.ariaPressed = false;
  }
  for (const { input, number } of sliders) {
    input.disabled = true;
    input.value = 0;
    number.textContent = "";
  }
  for (const id of ["seen", "drawn"])
    show($(id), new Float32Array(net.seen_shape.reduce((a, b) => a * b, 1)), net.seen_shape);
  $("reset").disabled = true;
}

function renderCapsules() {
  const { activation, label } = current();
  const [noun] = net.nouns;
  const like = isLike();
  $("verdict").textContent = verdict(activation, like);
  $("because").textContent = reason(activation, like);
  show($("seen"), state.seen.pixels, net.seen_shape);
  const drawn = new Set(longest(activation, MOST_SHOWN));
  rows.forEach(({ row, bar, track, number, thumb, name }, k) => {
    const length = activation[k].toFixed(2);
    bar.style.width = `${100 * Math.min(1, activation[k])}%`;
    const isPresent = like && activation[k] >= net.present;
    track.classList.toggle("present", isPresent);
    number.textContent = length;
    row.disabled = false;
    row.ariaPressed = k === label;
    row.ariaLabel = `${noun} ${name}: capsule ${length} long, ${isPresent ? "present" : "absent"}`;
    const isDrawn = drawn.has(k) || k === label;
    thumb.style.opacity = isDrawn ? 0.35 + 0.65 * Math.min(1, activation[k]) : 0;
    if (isDrawn) show(thumb, drawingOf(k), net.seen_shape);
  });
}

function reason(activation, like) {
  const present = net.class_names.filter((_, k) => activation[k] >= net.present);
  if (!present.length) return "No capsule is longer than 0.5.";
  if (like)
    return present.length === 1
      ? `Only the capsule of ${present[0]} is longer than 0.5.`
      : `${present.length} capsules are longer than 0.5.`;
  const [error, limit] = [state.seen.error, net.drawing_limit].map(one => one.toFixed(2));
  const drawing =
    present.length === 1
      ? `Capsule ${present[0]} is long, but its drawing`
      : `${present.length} capsules are long, but their drawing`;
  return `${drawing} is something else: the difference is ${error}, and at most ${limit} for ${net.nouns[1]}.`;
}

// Two digits, and no minus before zero.
function rounded(value) {
  return (Math.round(100 * value) / 100 || 0).toFixed(2);
}

function longest(values, count) {
  return [...values.keys()].sort((a, b) => values[b] - values[a]).slice(0, count);
}

function renderPose() {
  const { own, label, name } = current();
  const pose = own.map((value, k) => state.moved[k] ?? value);
  const at = value => (Math.min(1, Math.max(-1, value)) + 1) / 2;
  sliders.forEach(({ row, input, number, near, start }, k) => {
    const from = at(own[k] - 0.25);
    const to = at(own[k] + 0.25);
    input.disabled = false;
    input.value = pose[k];
    number.textContent = rounded(pose[k]);
    row.classList.toggle("moved", k in state.moved);
    near.style.left = `calc(8px + (100% - 16px) * ${from})`;
    near.style.width = `calc((100% - 16px) * ${to - from})`;
    start.style.left = `calc(8px + (100% - 16px) * ${at(own[k])})`;
    input.ariaLabel = `number ${k + 1} of the pose of ${name}, starts at ${rounded(own[k])}`;
  });
  const isMoved = Object.keys(state.moved).length > 0;
  const drawing = isMoved ? decode(net, pose, label) : drawingOf(label);
  const [length] = safeNorm(pose, pose.length);
  window.explorer.drawing = drawing;
  show($("drawn"), drawing, net.seen_shape);
  $("drawn").ariaLabel = `what the capsule of ${name} draws`;
  $("drawn-of").textContent = `capsule ${name} draws`;
  $("reset").disabled = !isMoved;
  $("pose-length").textContent =
    `This pose is ${length.toFixed(2)} long${length > 1 ? ", more than any capsule can be" : ""}.`;
}

openPage().catch(error => {
  document.body.dataset.state = "failed";
  $("verdict").textContent = `This page can't run: ${error.message}.`;
});
