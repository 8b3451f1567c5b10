"use strict";
// The page: what people do changes `state`; `think` computes, `render` shows.

const MOST_ROUNDS = 8, NUM_LINES = 20, NUM_SENDERS = 5, MOST_SHOWN = 12, PEN = 22, BOARD = 280;
const state = {
  strokes: [],      // lists of points on the board
  test: null,       // the index of a test image
  picture: null,    // the bytes of a prepared image that was opened
  chosen: null,     // a class; null for the longest capsule's
  rounds: 1,
  moved: {},        // pose components that a slider has changed
  place: null,      // [row, column] of primary capsules
  isPinned: false,  // whether the place stays when the pointer leaves
  step: null,       // of the walk-through
  seen: null,       // what `think` found
};
window.explorer = { state };  // Also the sign that the page is whole.

const $ = id => document.getElementById(id);
const make = (tag, properties = {}, ...children) => {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
};
const escaped = text => text.replace(/[&<>"]/g, one => `&#${one.charCodeAt(0)};`);
const percent = share => `${Math.round(100 * share)}`;
const context = canvas => canvas.getContext("2d", { willReadFrequently: true });
let net;

// ---- opening

async function open() {
  if (typeof DecompressionStream === "undefined") throw new Error("it needs a browser of 2023 or newer");
  let about, bytes;
  try {
    about = JSON.parse($("about").textContent);
    const packed = new Blob([fromBase64($("weights").textContent)]).stream();
    bytes = await new Response(packed.pipeThrough(new DecompressionStream("deflate"))).arrayBuffer();
  } catch { throw new Error("it is damaged. Make or copy it again"); }
  net = await openNetwork(about, bytes, fromBase64($("convolve").textContent));
  Object.assign(window.explorer, { net });
  build();
  restore();
  document.body.dataset.state = "ready";
}

function fromBase64(text) { return Uint8Array.from(atob(text.trim()), one => one.charCodeAt(0)); }

open().catch(error => {
  document.body.dataset.state = "failed";
  $("verdict").textContent = `This page can't run: ${error.message}.`;
});

// ---- the parts that stay

const rows = [], sliders = [], samples = [];

function build() {
  state.rounds = net.routing.num_iterations;
  const isGrey = net.image_shape[2] === 1, [noun, nouns] = net.nouns;
  $("input-title").textContent = isGrey ? "1. Draw" : "1. Choose an image";
  $("pad").ariaLabel = isGrey ? "Drawing board. Draw by mouse, pen or finger; without them pick a test image below." : "The image that the network gets.";
  $("clear").hidden = $("undo").hidden = !isGrey;
  if (!isGrey) $("pad").style.cursor = "default";
  $("samples-title").textContent = `${isGrey ? "Or pick" : "Pick"} a test ${net.drawn ? "digit" : "image"}`;
  $("credit").textContent = net.credit ?? "";
  const correct = net.accuracy ? `; it names ${(100 * net.accuracy).toFixed(2)} % of the test images right` : "";
  $("about-network").textContent = `The network: ${net.name}, ${net.num_parameters.toLocaleString("en")} parameters, trained on ${net.data} for ${net.step.toLocaleString("en")} steps${correct}. Its weights are rounded to 16 bits here.`;

  const images = fromBase64(net.samples.images), size = net.image_shape.reduce((a, b) => a * b, 1);
  for (let n = 0; n * size < images.length; n++) {
    const image = images.subarray(n * size, (n + 1) * size), canvas = make("canvas");
    const label = net.samples.labels[n];
    const button = make("button", { ariaLabel: `test ${noun} ${n + 1}${label === undefined ? "" : `, labelled ${net.class_names[label]}`}`, onclick: () => change({ strokes: [], test: n, picture: null }) }, canvas);
    show(canvas, seenOf(net, image), net.seen_shape);
    $("samples").append(button);
    samples.push({ image, button });
  }
  $("samples-block").hidden = !samples.length;

  net.class_names.forEach((name, label) => {
    const bar = make("i"), number = make("output"), thumb = make("canvas", { ariaHidden: "true" });
    const track = make("span", { className: "bar" }, bar);
    const row = make("button", { className: "class", onclick: () => change({ chosen: state.chosen === label ? null : label }) },
      make("span", { className: "name", textContent: name, title: name }), track, number, thumb);
    row.dataset.label = label;
    $("classes").append(row);
    rows.push({ row, bar, track, number, thumb, name });
  });
  $("capsules").style.setProperty("--name", `${Math.min(14, Math.max(...net.class_names.map(name => name.length)) + 1)}ch`);

  for (let k = 0; k < net.class_dim; k++) {
    const input = make("input", { type: "range", min: -1, max: 1, step: 0.005 }), number = make("output");
    const near = make("i", { className: "near" }), start = make("i", { className: "start" });
    const row = make("div", { className: "slider" }, make("span", { textContent: k + 1 }), make("span", { className: "range" }, near, start, input), number);
    input.oninput = () => { state.moved[k] = +input.value; renderPose(); remember(); };
    $("sliders").append(row);
    sliders.push({ row, input, number, near, start });
  }

  const isIterative = net.routing.kind === "dynamic", window_ = net.conv_kernel + net.primary_kernel - 1;
  const share = `${percent(1 / net.class_names.length)} %`;
  $("rounds-block").hidden = !isIterative;
  $("agreement").classList.toggle("one-step", !isIterative);
  $("num-rounds").max = mostRounds();
  $("routing-text").textContent = `Below the class capsules are many small ones. Each looks at a window of ${window_} x ${window_} pixels and votes: it predicts the pose of every class. ` + {
    dynamic: `At first it gives each class the same share of its vote${net.routing.none_of_the_above ? "" : `, ${share}`}. In each further round it gives more to the classes whose pose agrees with its vote. Votes that agree add up to a long capsule; votes that contradict each other cancel out.`,
    uniform: `It gives each class the same share of its vote, ${share}. Votes that agree add up to a long capsule; votes that contradict each other cancel out. This network's routing (uniform) has one step, so there are no rounds to play with.`,
    self_attention: "It gives more to the classes where its vote agrees with the sum of all votes. Votes that agree add up to a long capsule; votes that contradict each other cancel out. This network's routing (self-attention) has one step, so there are no rounds to play with.",
  }[net.routing.kind];
  listen();
}

function mostRounds() { return Math.max(MOST_ROUNDS, net.routing.num_iterations); }

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
  requestAnimationFrame(() => { isScheduled = false; think(); render(); });
}

// The prepared images: two if it is unclear which part of a picture is the ground.
function prepared() {
  if (state.picture) return state.picture;
  if (state.test !== null) return [samples[state.test].image];
  return state.strokes.length ? makeImages(net, boardPicture()) : [];
}

function boardPicture() {
  const { data } = context($("pad")).getImageData(0, 0, BOARD, BOARD), values = new Uint8Array(BOARD * BOARD);
  for (let n = 0; n < values.length; n++) values[n] = data[4 * n + 3];
  return { height: BOARD, width: BOARD, channels: 1, values };
}

function think() {
  const begin = performance.now();
  state.seen = null;
  for (const image of prepared()) {
    const pixels = seenOf(net, image), found = encode(net, pixels, net.routing.kind === "dynamic" ? mostRounds() : 1);
    const longest = largest(found.rounds[state.rounds - 1].activation);
    if (!state.seen || longest > state.seen.longest) state.seen = { ...found, image, pixels, longest };
  }
  window.explorer.milliseconds = performance.now() - begin;
}

// As capsjax.predict says it.
function verdict(activation) {
  const order = [...activation.keys()].sort((a, b) => activation[b] - activation[a]);
  const names = order.map(label => net.class_names[label]), [noun, nouns] = net.nouns;
  const present = activation.filter(length => length >= net.present).length;
  if (present === 0) return `no ${noun}`;
  if (net.num_shown !== 1) return names.slice(0, Math.min(present, net.num_shown ?? present)).join(" and ");
  return present === 1 ? names[0] : `${names[0]}, or two ${nouns}? (${names[0]} and ${names[1]})`;
}

function current() {
  const result = state.seen.rounds[state.rounds - 1], { activation } = result;
  const label = state.chosen ?? activation.indexOf(largest(activation));
  return { ...result, label, name: net.class_names[label], own: result.pose.slice(label * net.class_dim, (label + 1) * net.class_dim) };
}

// ---- showing

const ready = new WeakMap();  // canvas -> its pixels
function show(canvas, image, [height, width, channels]) {
  if (canvas.width !== width || canvas.height !== height || !ready.has(canvas)) {
    Object.assign(canvas, { width, height });
    ready.set(canvas, new ImageData(width, height));
  }
  const pixels = ready.get(canvas), { data } = pixels;
  for (let n = 0; n < width * height; n++) {
    for (let c = 0; c < 3; c++) data[4 * n + c] = 255 * image[n * channels + (channels === 3 ? c : 0)];
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
  $("hint").textContent = net.image_shape[2] !== 1 || state.seen ? "" : `draw a ${net.drawn ? "digit" : "picture"} here`;
  if (state.seen) { renderCapsules(); renderPose(); renderRouting(); } else renderNothing();
  window.explorer.renderMilliseconds = performance.now() - begin;
  $("echo").textContent = $("verdict").textContent;
  remember();
}

function renderNothing() {
  $("verdict").textContent = net.drawn ? "Draw a digit." : net.image_shape[2] === 1 ? "Draw something." : "Choose an image.";
  $("because").textContent = "";
  for (const { row, bar, number, thumb } of rows) { bar.style.width = number.textContent = ""; thumb.style.opacity = 0; row.disabled = true; row.ariaPressed = false; }
  for (const { input, number } of sliders) { input.disabled = true; input.value = 0; number.textContent = ""; }
  for (const id of ["seen", "drawn"]) show($(id), new Float32Array(net.seen_shape.reduce((a, b) => a * b, 1)), net.seen_shape);
  for (const id of ["chart", "votes", "senders"]) $(id).replaceChildren();
  $("ground").hidden = true;
  for (const id of ["drawn-of", "pose-length", "chart-text", "flow-text", "senders-title", "senders-text"]) $(id).textContent = "";
  $("reset").disabled = true;
  $("rounds-label").textContent = "Rounds";
}

function renderCapsules() {
  const { activation, pose, label } = current(), { class_dim } = net, [noun] = net.nouns;
  const present = net.class_names.filter((_, k) => activation[k] >= net.present);
  $("verdict").textContent = verdict(activation);
  $("because").textContent = present.length === 0 ? "No capsule is longer than 0.5." : present.length === 1 ? `Only the capsule of ${present[0]} is longer than 0.5.` : `${present.length} capsules are longer than 0.5.`;
  show($("seen"), state.seen.pixels, net.seen_shape);
  const drawn = new Set(longest(activation, MOST_SHOWN));
  rows.forEach(({ row, bar, track, number, thumb, name }, k) => {
    const length = activation[k].toFixed(2);
    bar.style.width = `${100 * Math.min(1, activation[k])}%`;
    track.classList.toggle("present", activation[k] >= net.present);
    number.textContent = length;
    row.disabled = false;
    row.ariaPressed = k === label;
    row.ariaLabel = `${noun} ${name}: capsule ${length} long, ${activation[k] >= net.present ? "present" : "absent"}`;
    const isDrawn = drawn.has(k) || k === label;
    thumb.style.opacity = isDrawn ? 0.35 + 0.65 * Math.min(1, activation[k]) : 0;
    if (isDrawn) show(thumb, decode(net, pose.subarray(k * class_dim, (k + 1) * class_dim), k), net.seen_shape);
  });
}

function longest(values, count) { return [...values.keys()].sort((a, b) => values[b] - values[a]).slice(0, count); }

function renderPose() {
  const { own, label, name } = current(), pose = own.map((value, k) => state.moved[k] ?? value);
  const at = value => (Math.min(1, Math.max(-1, value)) + 1) / 2;
  sliders.forEach(({ row, input, number, near, start }, k) => {
    const from = at(own[k] - 0.25), to = at(own[k] + 0.25);
    input.disabled = false;
    input.value = pose[k];
    number.textContent = pose[k].toFixed(2);
    row.classList.toggle("moved", k in state.moved);
    near.style.left = `calc(8px + (100% - 16px) * ${from})`;
    near.style.width = `calc((100% - 16px) * ${to - from})`;
    start.style.left = `calc(8px + (100% - 16px) * ${at(own[k])})`;
    input.ariaLabel = `number ${k + 1} of the pose of ${name}, starts at ${own[k].toFixed(2)}`;
  });
  const drawing = decode(net, pose, label), [length] = safeNorm(pose, pose.length);
  window.explorer.drawing = drawing;
  show($("drawn"), drawing, net.seen_shape);
  $("drawn").ariaLabel = `what the capsule of ${name} draws`;
  $("drawn-of").textContent = `capsule ${name} draws`;
  const isMoved = Object.keys(state.moved).length > 0;
  $("reset").disabled = !isMoved;
  $("pose-length").textContent = !isMoved ? "" : length > 1 ? `This pose is ${length.toFixed(2)} long. No capsule is longer than 1: the network has never drawn from one.` : `This pose is ${length.toFixed(2)} long.`;
}

// ---- routing

function renderRouting() {
  const { rounds, votes } = state.seen, result = current(), { label, name } = result;
  state.seen.given = contributions(votes, result, state.seen);
  if (net.routing.kind === "dynamic") {
    const usual = net.routing.num_iterations;
    $("num-rounds").value = state.rounds;
    $("rounds-label").textContent = `${state.rounds} round${state.rounds === 1 ? "" : "s"}${state.rounds === usual ? ", as in training" : ` (training had ${usual})`}`;
    $("num-rounds").ariaValueText = `${state.rounds} rounds; the capsule of ${name} is ${result.activation[label].toFixed(2)} long`;
    $("chart").innerHTML = chart(rounds.map(one => one.activation), label);
    $("chart-text").textContent = `Length of every capsule after each round; blue: ${name}. Choose a round in the chart.`;
  }
  renderFlow();
}

function chart(lengths, label) {
  const width = 270, height = 190, left = 28, right = 14 + 8 * Math.min(6, net.class_names[label].length), top = 8, bottom = 24;
  const x = round => left + (width - left - right) * round / (lengths.length - 1), y = length => top + (height - top - bottom) * (1 - Math.min(1, length));
  const path = k => lengths.map((one, round) => `${round ? "L" : "M"}${x(round).toFixed(1)} ${y(one[k]).toFixed(1)}`).join("");
  const others = longest(lengths.at(-1), MOST_SHOWN).filter(k => k !== label);
  const text = (at, to, content, more = "") => `<text x="${at}" y="${to}" ${more}>${escaped(content)}</text>`;
  return `<svg viewBox="0 0 ${width} ${height}" role="img" aria-label="${escaped(`length of capsule ${net.class_names[label]} by round: ${lengths.map(one => one[label].toFixed(2)).join(", ")}`)}">`
    + [0, 0.5, 1].map(v => `<line x1="${left}" x2="${width - right}" y1="${y(v)}" y2="${y(v)}" style="stroke:var(--line)" ${v === 0.5 ? 'stroke-dasharray="4 3" stroke-width="2"' : ""}/>` + text(left - 6, y(v) + 4, `${v}`, 'text-anchor="end" class="quiet-text"')).join("")
    + `<line x1="${x(state.rounds - 1)}" x2="${x(state.rounds - 1)}" y1="${top}" y2="${height - bottom}" style="stroke:var(--accent)" stroke-width="9" opacity=".18"/>`
    + others.map(k => `<path d="${path(k)}" fill="none" style="stroke:var(--quiet)" opacity=".5"/>`).join("")
    + `<path d="${path(label)}" fill="none" style="stroke:var(--accent)" stroke-width="2.5"/>`
    + `<circle cx="${x(state.rounds - 1)}" cy="${y(lengths[state.rounds - 1][label])}" r="4" style="fill:var(--accent)"/>`
    + text(x(lengths.length - 1) + 6, y(lengths.at(-1)[label]) + 4, net.class_names[label].slice(0, 6), 'font-weight="700"')
    + lengths.map((_, round) => text(x(round), height - 8, `${round + 1}`, 'text-anchor="middle" class="quiet-text"')).join("") + "</svg>";
}

// The parts of the figure, in units that are pixels unless there is less room.
function figure() {
  return innerWidth < 720 ? { image: 180, classes: 232, name: 34, bar: 44 } : { image: 300, classes: 430, name: 54, bar: 90 };
}

// The grid of primary capsules over the image: [top, left] of a place's middle square.
function grid() {
  const { conv_kernel, primary_kernel, primary_stride: step } = net, side = conv_kernel + primary_kernel - 1;
  return { side, step, margin: (side - step) / 2, scale: figure().image / Math.max(...net.seen_shape.slice(0, 2)) };
}

function renderFlow() {
  const { given, width, height, i, j, activation, coupling } = { ...state.seen, ...current() }, { label, name } = current();
  const types = net.primary_types, { side, step, margin, scale } = grid();
  const byPlace = new Float32Array(width * height);
  for (let n = 0; n < i; n++) byPlace[Math.floor(n / types)] += Math.max(0, given[n * j + label]);
  const most = Math.max(1e-9, largest(byPlace)), own = Float32Array.from({ length: i }, (_, n) => given[n * j + label]);
  const at = state.place && state.place[0] * width + state.place[1];
  const here = longest(own, i).filter(n => at === null || Math.floor(n / types) === at);
  const [imageHeight, imageWidth] = net.seen_shape.map(pixels => pixels * scale);
  const corner = n => [margin + Math.floor(n / width) * step, margin + n % width * step].map(pixels => pixels * scale);
  const classes = longest(activation, 10).sort((a, b) => a - b), gap = imageHeight / classes.length;
  const { classes: wide, name: nameWidth, bar } = figure(), whole = wide + nameWidth + bar + 48, barAt = wide + 8 + nameWidth;
  const yOf = k => gap * (classes.indexOf(k) + 0.5);

  const squares = [...byPlace].map((value, n) => {
    const [y, x] = corner(n);
    return `<rect x="${x.toFixed(1)}" y="${y.toFixed(1)}" width="${step * scale}" height="${step * scale}" fill="#ff8c1a" opacity="${(0.85 * Math.sqrt(value / most)).toFixed(2)}"/>`;
  }).join("");
  const lines = [];
  let strongest = 1e-9;
  for (const n of longest(own, NUM_LINES)) for (const k of classes) strongest = Math.max(strongest, given[n * j + k]);
  here.slice(0, NUM_LINES).forEach((n, rank) => {
    const [top, left] = corner(Math.floor(n / types)), x = left + step * scale / 2, y = top + step * scale * (n % types + 0.5) / types;
    for (const k of classes) {
      const share = Math.min(1, given[n * j + k] / strongest);
      if (!(share > 0.004)) continue;
      const line = `<path d="M${x.toFixed(1)} ${y.toFixed(1)}C${imageWidth + 30} ${y.toFixed(1)} ${imageWidth + 40} ${yOf(k)} ${wide} ${yOf(k)}" fill="none" stroke-width="${(5 * Math.sqrt(share)).toFixed(2)}" style="stroke:var(${k === label ? "--votes" : "--quiet"})" opacity="${k === label ? 0.55 : 0.4}"/>`;
      if (k === label) lines.push(line); else lines.unshift(line);
    }
  });
  const bars = classes.map(k => {
    const y = yOf(k), weight = k === label ? 700 : 400;
    return `<text x="${wide + 8}" y="${y + 4}" font-weight="${weight}">${escaped(net.class_names[k].length > 7 ? `${net.class_names[k].slice(0, 6)}…` : net.class_names[k])}</text>`
      + `<rect x="${barAt}" y="${y - 5}" width="${bar}" height="10" rx="5" style="fill:var(--track)"/>`
      + `<rect x="${barAt}" y="${y - 5}" width="${bar * Math.min(1, activation[k])}" height="10" rx="5" style="fill:var(${k === label ? "--votes" : "--quiet"})"/>`
      + `<text x="${barAt + bar + 6}" y="${y + 4}" font-weight="${weight}">${activation[k].toFixed(2)}</text>`;
  }).join("");
  let frame = "";
  if (at !== null) {
    const [y, x] = [state.place[0] * step * scale, state.place[1] * step * scale], [top, left] = corner(at);
    frame = `<rect x="${x + 1}" y="${y + 1}" width="${side * scale - 2}" height="${side * scale - 2}" fill="none" stroke="#fff" stroke-width="2" stroke-dasharray="6 4"/>`
      + `<rect x="${left}" y="${top}" width="${step * scale}" height="${step * scale}" fill="none" stroke="#fff" stroke-width="2"/>`;
  }
  show($("ground"), state.seen.pixels, net.seen_shape);
  $("ground").hidden = false;
  $("ground").style.width = `${100 * imageWidth / whole}%`;
  $("votes").innerHTML = `<svg viewBox="0 0 ${whole} ${imageHeight}" role="img" aria-label="${escaped(`image with the places whose votes lengthen capsule ${name}`)}">${squares}${frame}${lines.join("")}${bars}</svg>`;
  $("flow-text").textContent = `Orange: votes from there lengthen capsule ${name}; the stronger the colour, the more. Lines: the ${at === null ? NUM_LINES : Math.min(NUM_LINES, types)} strongest votes ${at === null ? "for it" : "of this place"}, grey what they add to other classes. Colour and thickness follow the square root. `
    + `A square is only the middle of the ${side} x ${side} pixels that a small capsule looks at${at === null ? ": point at one, or tap it, to see the window" : " (dashed)"}. Arrow keys move, too.`;

  const share = n => net.routing.kind === "dynamic"
    ? state.seen.rounds.slice(0, state.rounds).map(one => percent(one.coupling[n * j + label])).join(" → ") : percent(coupling[n * j + label]);
  const strength = safeNorm(state.seen.capsules, net.primary_dim);
  $("senders-title").textContent = at === null ? `The strongest votes for ${name}` : `Votes for ${name} from row ${state.place[0] + 1}, column ${state.place[1] + 1}`;
  $("senders").innerHTML = `<table><thead><tr><th scope="col">row, column</th><th scope="col">kind</th><th scope="col">length</th><th scope="col">share for ${escaped(name)}, in %${net.routing.kind === "dynamic" ? ", by round" : ""}</th></tr></thead><tbody>`
    + here.slice(0, NUM_SENDERS).map(n => `<tr><td>${Math.floor(n / types / width) + 1}, ${Math.floor(n / types) % width + 1}</td><td>${n % types + 1}</td><td>${strength[n].toFixed(2)}</td><td>${share(n)}</td></tr>`).join("") + "</tbody></table>";
  $("senders-text").textContent = `At each of ${height} x ${width} places there are ${types} kinds of small capsules.`;
}

function choosePlace(place, isPinned) {
  if (`${place}` === `${state.place}` && isPinned === state.isPinned) return;
  Object.assign(state, { place, isPinned });
  if (state.seen) renderFlow();
  remember();
}

// ---- the board

function paint() {
  const board = context($("pad"));
  board.clearRect(0, 0, BOARD, BOARD);
  const [image] = state.strokes.length ? [] : prepared();
  if (image) {
    const canvas = make("canvas"), [height, width] = net.seen_shape, scale = BOARD / Math.max(height, width);
    show(canvas, seenOf(net, image), net.seen_shape);
    board.imageSmoothingEnabled = false;
    board.drawImage(canvas, (BOARD - width * scale) / 2, (BOARD - height * scale) / 2, width * scale, height * scale);
  }
  state.strokes.forEach(stroke => line(stroke));
}

function line(points) {
  const board = context($("pad"));
  Object.assign(board, { lineWidth: PEN, lineCap: "round", lineJoin: "round", strokeStyle: "#fff" });
  board.beginPath();
  points.forEach(([x, y], n) => n ? board.lineTo(x, y) : board.moveTo(x, y));
  if (points.length === 1) board.lineTo(points[0][0] + 0.01, points[0][1]);
  board.stroke();
}

function pointOf(event) {
  const { left, top, width, height } = $("pad").getBoundingClientRect();
  return [(event.clientX - left) * BOARD / width, (event.clientY - top) * BOARD / height].map(v => Math.round(Math.min(BOARD, Math.max(0, v))));
}

function listen() {
  const pad = $("pad"), isGrey = net.image_shape[2] === 1;
  pad.onpointerdown = event => {
    if (!isGrey || event.button > 0) return;
    pad.setPointerCapture(event.pointerId);
    const kept = state.test === null && !state.picture ? state.strokes : [];
    change({ strokes: [...kept, [pointOf(event)]], test: null, picture: null });
  };
  pad.onpointermove = event => {
    if (!pad.hasPointerCapture(event.pointerId) || !state.strokes.length) return;
    const stroke = state.strokes.at(-1);
    for (const one of event.getCoalescedEvents?.().concat(event) ?? [event]) {
      const [x, y] = pointOf(one), [lastX, lastY] = stroke.at(-1);
      if (Math.hypot(x - lastX, y - lastY) >= 3) stroke.push([x, y]);
    }
    paint();
    schedule();
  };
  const undo = () => state.strokes.length && change({ strokes: state.strokes.slice(0, -1), test: null, picture: null });
  const clear = () => change({ strokes: [], test: null, picture: null });
  $("clear").onclick = clear;
  $("undo").onclick = undo;
  document.onkeydown = event => {
    if (event.key === "z" && (event.ctrlKey || event.metaKey)) { undo(); event.preventDefault(); }
    if (event.key === "Escape" && document.activeElement === pad && isGrey) clear();
  };

  $("file").onchange = event => { openPicture(event.target.files[0]); event.target.value = ""; };
  document.ondragover = event => { event.preventDefault(); document.body.classList.add("dropping"); };
  document.ondragleave = event => { if (!event.relatedTarget) document.body.classList.remove("dropping"); };
  document.ondrop = event => {
    event.preventDefault();
    document.body.classList.remove("dropping");
    openPicture(event.dataTransfer.files[0]);
  };

  // One stop for the Tab key; the arrow keys go from image to image.
  $("samples").onkeydown = event => {
    const by = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -10, ArrowDown: 10 }[event.key];
    const next = samples[samples.findIndex(({ button }) => button === event.target) + by];
    if (!next) return;
    event.preventDefault();
    next.button.focus();
    next.button.click();
  };
  $("reset").onclick = () => { state.moved = {}; renderPose(); remember(); };
  $("num-rounds").oninput = event => change({ rounds: +event.target.value });
  $("chart").onclick = event => {
    const box = $("chart").firstElementChild?.getBoundingClientRect();
    if (!box) return;
    const right = 14 + 8 * Math.min(6, current().name.length), part = ((event.clientX - box.left) / box.width * 270 - 28) / (270 - 28 - right);
    change({ rounds: 1 + Math.round(Math.min(1, Math.max(0, part)) * (mostRounds() - 1)) });
  };
  let timer = null;
  const stop = () => { clearInterval(timer); timer = null; $("play").textContent = "Play"; };
  $("play").onclick = () => {
    if (timer) { stop(); return; }
    $("play").textContent = "Stop";
    change({ rounds: 1 });
    timer = setInterval(() => state.rounds < mostRounds() ? change({ rounds: state.rounds + 1 }) : stop(), 800);
  };

  const placeOf = event => {
    const svg = $("votes").firstElementChild;
    if (!svg || !state.seen) return null;
    const box = svg.getBoundingClientRect(), { step, margin, scale } = grid(), unit = svg.viewBox.baseVal.width / box.width;
    const place = [event.clientY - box.top, event.clientX - box.left].map(v => Math.floor((v * unit / scale - margin) / step));
    return place[0] >= 0 && place[1] >= 0 && place[0] < state.seen.height && place[1] < state.seen.width ? place : null;
  };
  $("flow").onpointermove = event => { if (event.pointerType === "mouse" && !state.isPinned) choosePlace(placeOf(event), false); };
  $("flow").onpointerleave = () => { if (!state.isPinned) choosePlace(null, false); };
  $("flow").onclick = event => {
    const place = placeOf(event), isSame = state.isPinned && `${place}` === `${state.place}`;
    choosePlace(isSame ? null : place, !isSame && place !== null);
  };
  $("flow").onkeydown = event => {
    const move = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
    if (event.key === "Escape") choosePlace(null, false);
    if (!move || !state.seen) return;
    event.preventDefault();
    const { height, width } = state.seen, [y, x] = state.place ?? [Math.floor(height / 2) - move[0], Math.floor(width / 2) - move[1]];
    choosePlace([Math.min(height - 1, Math.max(0, y + move[0])), Math.min(width - 1, Math.max(0, x + move[1]))], true);
  };

  $("copy-link").onclick = async () => {
    remember.now();
    try {
      await navigator.clipboard.writeText(location.href);
      $("copy-link").textContent = "Copied";
    } catch {
      $("copy-link").textContent = "Copy it from the address bar";
    }
    setTimeout(() => { $("copy-link").textContent = "Copy a link to this view"; }, 2500);
  };
  window.onresize = schedule;
  window.onhashchange = () => { if (location.hash.slice(1) !== written) restore(); };
  $("begin-tour").onclick = () => tour(0);
  $("tour-next").onclick = () => tour(state.step + 1);
  $("tour-back").onclick = () => tour(state.step - 1);
  $("tour-end").onclick = () => tour(null);
  $("tour-do").onclick = () => steps()[state.step].act();
}

async function openPicture(file) {
  if (!file) return;
  try {
    const bitmap = await createImageBitmap(file, { colorSpaceConversion: "none" });
    const canvas = make("canvas", { width: bitmap.width, height: bitmap.height }), pixels = context(canvas);
    pixels.drawImage(bitmap, 0, 0);
    const picture = makeImages(net, fromPixels(pixels.getImageData(0, 0, bitmap.width, bitmap.height)));
    change({ strokes: [], test: null, picture });
  } catch {
    $("because").textContent = `The browser can't read ${file.name} as a picture.`;
  }
}

// ---- a link to what is seen

let written = "", waiting;

function remember() {
  clearTimeout(waiting);
  waiting = setTimeout(remember.now, 250);
}

remember.now = () => {
  written = String(new URLSearchParams(link()));
  // Not allowed in a notebook's frame, where there is no address to share.
  try { history.replaceState(null, "", `#${written}`); } catch {}
};

function link() {
  const two = n => n.toString(36).padStart(2, "0"), result = {};
  if (state.test !== null) result.test = state.test + 1;
  else if (state.picture) result.picture = btoa(String.fromCharCode(...state.seen?.image ?? state.picture[0]));
  else result.draw = state.strokes.map(stroke => stroke.map(point => point.map(two).join("")).join("")).join(".");
  if (state.chosen !== null) result.class = state.chosen + 1;
  if (state.rounds !== net.routing.num_iterations) result.rounds = state.rounds;
  const moved = Object.entries(state.moved).map(([k, value]) => `${+k + 1}:${value}`);
  if (moved.length) result.pose = moved.join(",");
  if (state.isPinned) result.place = state.place.map(n => n + 1).join(",");
  if (state.step !== null) result.step = state.step + 1;
  return result;
}

// Whatever a link holds, only values that the page could have written are taken.
function restore() {
  const link = new URLSearchParams(location.hash.slice(1));
  const whole = (name, most) => {
    const value = Number(link.get(name));
    return link.has(name) && Number.isInteger(value) && value >= 1 && value <= most ? value - 1 : null;
  };
  const strokes = (link.get("draw") ?? "").split(".").filter(one => /^([0-7][0-9a-z]){2,4000}$/.test(one) && one.length % 4 === 0)
    .map(one => one.match(/.{4}/g).map(point => [point.slice(0, 2), point.slice(2)].map(n => Math.min(BOARD, parseInt(n, 36)))));
  let picture = null;
  try {
    const image = fromBase64(link.get("picture") ?? "");
    if (image.length === net.image_shape.reduce((a, b) => a * b, 1)) picture = [image];
  } catch {}
  const isGiven = ["draw", "picture", "test"].some(name => link.has(name));
  const test = isGiven ? whole("test", samples.length) : samples.length ? 0 : null;
  const moved = {};
  for (const [, k, value] of (link.get("pose") ?? "").matchAll(/(\d+):(-?[\d.]+)/g))
    if (+k >= 1 && +k <= net.class_dim && Math.abs(+value) <= 1) moved[k - 1] = +value;
  const rounds = net.routing.kind === "dynamic" ? whole("rounds", mostRounds()) : null;
  Object.assign(state, {
    strokes: net.image_shape[2] === 1 ? strokes : [], test, picture, moved,
    chosen: whole("class", net.class_names.length), rounds: rounds === null ? net.routing.num_iterations : rounds + 1,
    place: null, isPinned: false,
  });
  paint();
  think();
  const [y, x] = (link.get("place") ?? "").split(",").map(n => n - 1);
  if (state.seen && state.seen.height > y && state.seen.width > x && y >= 0 && x >= 0 && Number.isInteger(y + x)) Object.assign(state, { place: [y, x], isPinned: true });
  render();
  tour(whole("step", steps().length), { isQuiet: true });
}

// ---- the walk-through

const SEVEN = [[[70, 70], [110, 68], [200, 66], [180, 110], [158, 160], [140, 225]]];
const FOUR = [[[160, 35], [144, 130], [250, 130]], [[225, 40], [218, 215]]];
const HOUSE = [[[60, 130], [60, 230], [220, 230], [220, 130], [60, 130], [140, 50], [220, 130]]];

function steps() {
  const isGrey = net.image_shape[2] === 1, isDigits = net.drawn && net.class_names.join("") === "0123456789";
  const draw = strokes => change({ strokes, test: null, picture: null });
  const pick = n => () => samples.length && change({ strokes: [], test: (state.test ?? n) + 1 >= samples.length ? 0 : (state.test ?? n) + 1, picture: null });
  const slant = {
    on: "pose", title: isDigits ? "Slant it by a slider" : "Move a slider",
    text: () => `The pose of a capsule is ${net.class_dim} numbers, and nobody chose what they mean. ` + (state.seen ? `For this image, slider ${tellingComponent() + 1} ${isDigits ? "slants the drawing most" : "changes the drawing most"}. Move it, and try the others: thickness, width, loops.` : "Choose an image first."),
    does: "Move it for me",
    act: () => {
      if (!state.seen) return;
      const k = tellingComponent(), { own } = current(), way = state.moved[k] > own[k] ? -1 : 1;
      state.moved = { [k]: Math.min(1, Math.max(-1, Math.round(200 * (own[k] + 0.25 * way)) / 200)) };
      renderPose();
      remember();
    },
  };
  const rounds = net.routing.kind === "dynamic" ? {
    on: "routing", title: "Play with the rounds", does: "Play rounds 1 to 8", act: () => $("play").click(),
    text: () => "With one round all votes count alike, and the capsule is short. With each further round the small capsules send more to where they agree: the capsule grows. Watch the lines, the orange places, and the shares in the table.",
  } : {
    on: "routing", title: "Look where the votes come from", does: "Choose a place", act: () => choosePlace([1, 1], true),
    text: () => "Orange places send votes that agree with the capsule. Point at one, or tap it: the dashed window is all that a small capsule there sees.",
  };
  if (isDigits) return [
    { on: "input", title: "Draw a 7", text: () => "Ten capsules watch the board, one for each digit. Draw a 7: its bar grows past the dashed line, and the others stay short.", does: "Draw it for me", act: () => draw(SEVEN) },
    slant,
    { on: "capsules", title: "Draw a 4 over it", text: () => "The network never saw two digits at once. Draw a 4 over the 7, and watch the bars: capsules need not add up to one, so that two may be long, or none. Then choose a class, to see what its capsule makes of the ink.", does: "Draw it for me", act: () => draw([...(state.strokes.length ? state.strokes : SEVEN), ...FOUR]) },
    rounds,
    { on: "capsules", title: "Draw no digit at all", text: () => "Draw a house, or open a photograph. Most networks must name some class. Here every capsule may stay short: no digit. The network is not always that wise. Find a drawing that fools it.", does: "Draw a house for me", act: () => draw(HOUSE) },
  ];
  return [
    { on: "input", title: "Choose an image", text: () => `Pick a test image${isGrey ? ", or draw one" : ", or drop a picture on the page"}. Each class has a capsule: the longest one names the image.`, does: "Pick one for me", act: pick(0) },
    slant,
    { on: "capsules", title: "Look at another class", text: () => "Choose another class in the list: you see what its capsule would draw of the same image, and how short it stays.", does: "Choose the second longest", act: () => state.seen && change({ chosen: longest(current().activation, 2)[1] ?? 0 }) },
    rounds,
    { on: "capsules", title: "Show it something else", text: () => "Open a picture of something that the network has never learnt. Capsules need not add up to one: all may stay short, and the answer is none. It is not always that wise.", does: "Pick another test image", act: pick(3) },
  ];
}

// The component that slants the drawing most, or else changes most of it.
function tellingComponent() {
  const { own, label } = current(), [height, width, channels] = net.seen_shape;
  const slantOf = drawing => {
    const grey = drawing.filter((_, n) => n % channels === 0), [down, across] = centreOfMass(grey, height, width);
    let both = 0, vertical = 0;
    for (let y = 0; y < height; y++) for (let x = 0; x < width; x++) {
      both += grey[y * width + x] * (y - down) * (x - across);
      vertical += grey[y * width + x] * (y - down) ** 2;
    }
    return both / vertical;
  };
  const effect = own.map((value, k) => {
    const [low, high] = [-0.25, 0.25].map(by => decode(net, own.map((one, n) => n === k ? one + by : one), label));
    return net.drawn ? Math.abs(slantOf(high) - slantOf(low)) : high.reduce((sum, pixel, n) => sum + Math.abs(pixel - low[n]), 0);
  });
  return effect.indexOf(largest(effect));
}

function tour(step, { isQuiet = false } = {}) {
  const all = steps();
  if (step !== null && (step < 0 || step >= all.length)) step = null;
  state.step = step;
  $("tour").hidden = step === null;
  if (!isQuiet) remember();
  if (step === null) { if (!isQuiet) $("begin-tour").focus(); return; }
  const { title, text, does } = all[step];
  $("tour-count").textContent = `Step ${step + 1} of ${all.length}`;
  $("tour-title").textContent = title;
  $("tour-text").textContent = text();
  $("tour-do").textContent = does;
  $("tour-back").disabled = step === 0;
  $("tour-next").textContent = step === all.length - 1 ? "Done" : "Next";
  if (!isQuiet) { $("tour").scrollIntoView({ block: "nearest" }); $("tour-title").focus(); }
}
