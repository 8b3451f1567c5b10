"use strict";
// How the capsules agree: lengths by round, and where votes come from and go to.

const NUM_LINES = 20;
const NUM_SENDERS = 5;
const NUM_GOALS = 10;
const FAINTEST_LINE = 0.004;

function svg(tag, attributes, content = "") {
  let text = `<${tag}`;
  for (const name in attributes) {
    const value = attributes[name];
    text += ` ${name}="${typeof value === "number" ? Math.round(100 * value) / 100 : escaped(value)}"`;
  }
  return `${text}>${content}</${tag}>`;
}

function renderRouting() {
  const result = current();
  state.seen.given = contributions(state.seen.votes, result, state.seen);
  if (net.routing.kind === "dynamic") renderRounds(result);
  renderVotes();
}

// ---- lengths by round

function renderRounds({ label, name, activation }) {
  const usual = net.routing.num_iterations;
  const rounds = `${state.rounds} round${state.rounds === 1 ? "" : "s"}`;
  const training = state.rounds === usual ? ", as in training" : ` (training had ${usual})`;
  $("num-rounds").value = state.rounds;
  $("rounds-label").textContent = rounds + training;
  $("num-rounds").ariaValueText =
    `${rounds}; capsule ${name} is ${activation[label].toFixed(2)} long`;
  const lengths = state.seen.rounds.map(one => one.activation);
  $("chart").innerHTML = chart(lengths, label);
  $("chart-text").textContent =
    `Length of every capsule after each round; blue: ${name}. Choose a round in the chart.`;
}

function chartFrame(label) {
  const right = 14 + 8 * Math.min(6, net.class_names[label].length);
  return { width: 270, height: 190, left: 28, right, top: 8, bottom: 24 };
}

function chart(lengths, label) {
  const { width, height, left, right, top, bottom } = chartFrame(label);
  const name = net.class_names[label];
  const last = lengths.length - 1;
  const now = state.rounds - 1;
  const x = round => left + ((width - left - right) * round) / last;
  const y = length => top + (height - top - bottom) * (1 - Math.min(1, length));
  const curve = (k, attributes) => {
    const points = lengths.map((one, round) => `${x(round).toFixed(1)},${y(one[k]).toFixed(1)}`);
    return svg("polyline", { points: points.join(" "), fill: "none", ...attributes });
  };
  const levels = [0, net.present, 1].map(length => {
    const dashes = length === net.present ? { "stroke-dasharray": "4 3", "stroke-width": 2 } : {};
    const line = { x1: left, x2: width - right, y1: y(length), y2: y(length), ...dashes };
    const text = { x: left - 6, y: y(length) + 4, "text-anchor": "end", class: "quiet-text" };
    return svg("line", { ...line, style: "stroke:var(--line)" }) + svg("text", text, length);
  });
  const band = { x: x(now) - 5, y: top, width: 10, height: height - top - bottom, opacity: 0.18 };
  const others = longest(lengths[last], MOST_SHOWN).filter(k => k !== label);
  const dot = { cx: x(now), cy: y(lengths[now][label]), r: 4, style: "fill:var(--accent)" };
  const title = { x: x(last) + 6, y: y(lengths[last][label]) + 4, "font-weight": 700 };
  const numbers = lengths.map((_, round) => {
    const text = { x: x(round), y: height - 8, "text-anchor": "middle", class: "quiet-text" };
    return svg("text", text, round + 1);
  });
  const spoken = lengths.map(one => one[label].toFixed(2)).join(", ");
  return svg(
    "svg",
    {
      viewBox: `0 0 ${width} ${height}`,
      role: "img",
      "aria-label": `length of capsule ${name} by round: ${spoken}`,
    },
    levels.join("") +
      svg("rect", { ...band, style: "fill:var(--accent)" }) +
      others.map(k => curve(k, { style: "stroke:var(--quiet)", opacity: 0.5 })).join("") +
      curve(label, { style: "stroke:var(--accent)", "stroke-width": 2.5 }) +
      svg("circle", dot) +
      svg("text", title, escaped(name.slice(0, 6))) +
      numbers.join(""),
  );
}

// ---- votes

// The parts of the figure, in units that are pixels unless there is less room.
function figure() {
  const [height, width] = net.seen_shape;
  const isSmall = innerWidth < 720;
  const scale = (isSmall ? 180 : 300) / Math.max(height, width);
  const parts = isSmall ? { goal: 232, name: 34, bar: 44 } : { goal: 430, name: 54, bar: 90 };
  return { ...parts, height: height * scale, width: width * scale, scale };
}

// The grid of primary capsules over the image: a place is the middle of its window.
function grid() {
  const { scale } = figure();
  const step = net.primary_stride;
  const side = net.conv_kernel + net.primary_kernel - 1;
  const margin = ((side - step) / 2) * scale;
  return { side, step: step * scale, window: side * scale, margin };
}

function placeOf(input) {
  return Math.floor(input / net.primary_types);
}

function cornerOf(place) {
  const { width } = state.seen;
  const { step, margin } = grid();
  return { y: margin + Math.floor(place / width) * step, x: margin + (place % width) * step };
}

// The primary capsules, those that give most to the chosen class first: all, or a place's.
function senders(label) {
  const { given, i, j, width } = state.seen;
  const own = Float32Array.from({ length: i }, (_, n) => given[n * j + label]);
  const all = longest(own, i);
  const place = state.place && state.place[0] * width + state.place[1];
  return { all, here: place === null ? all : all.filter(n => placeOf(n) === place), place };
}

function renderVotes() {
  const { label, name, activation } = current();
  const { all, here, place } = senders(label);
  const { goal, name: nameWidth, bar, height, width } = figure();
  const goals = longest(activation, NUM_GOALS).sort((a, b) => a - b);
  const whole = goal + nameWidth + bar + 48;
  const yOf = k => (height / goals.length) * (goals.indexOf(k) + 0.5);
  show($("ground"), state.seen.pixels, net.seen_shape);
  $("ground").style.width = `${(100 * width) / whole}%`;
  $("votes").innerHTML = svg(
    "svg",
    {
      viewBox: `0 0 ${whole} ${height}`,
      role: "img",
      "aria-label": `image with the places whose votes lengthen capsule ${name}`,
    },
    squares(label) + frame(place) + lines(all, here, label, goals, yOf) + bars(goals, label, yOf),
  );
  renderVotesText(name, place);
  renderSenders(name, label, here.slice(0, NUM_SENDERS));
}

function squares(label) {
  const { given, i, j, width, height } = state.seen;
  const { step } = grid();
  const sums = new Float32Array(width * height);
  for (let n = 0; n < i; n++) sums[placeOf(n)] += Math.max(0, given[n * j + label]);
  const most = largest(sums) || 1;
  const square = { width: step, height: step, fill: "#ff8c1a" };
  const one = (sum, place) =>
    svg("rect", { ...cornerOf(place), ...square, opacity: 0.85 * Math.sqrt(sum / most) });
  return Array.from(sums, one).join("");
}

// The window that the capsules of the chosen place see.
function frame(place) {
  if (place === null) return "";
  const { step, window: side } = grid();
  const line = { fill: "none", stroke: "#fff", "stroke-width": 2 };
  const [y, x] = state.place.map(n => n * step + 1);
  const window_ = { x, y, width: side - 2, height: side - 2, "stroke-dasharray": "6 4" };
  return (
    svg("rect", { ...window_, ...line }) +
    svg("rect", { ...cornerOf(place), width: step, height: step, ...line })
  );
}

// From the strongest capsules to the classes that their votes lengthen.
function lines(all, here, label, goals, yOf) {
  const { given, j } = state.seen;
  const { goal, width } = figure();
  const { step } = grid();
  let most = 0;
  for (const n of all.slice(0, NUM_LINES))
    for (const k of goals) most = Math.max(most, given[n * j + k]);
  const result = [];
  for (const n of here.slice(0, NUM_LINES)) {
    const corner = cornerOf(placeOf(n));
    const type = ((n % net.primary_types) + 0.5) / net.primary_types;
    const x = (corner.x + step / 2).toFixed(1);
    const y = (corner.y + step * type).toFixed(1);
    for (const k of goals) {
      const share = Math.min(1, given[n * j + k] / most);
      if (!(share > FAINTEST_LINE)) continue;
      const d = `M${x} ${y}C${width + 30} ${y} ${width + 40} ${yOf(k)} ${goal} ${yOf(k)}`;
      const style = `fill:none;stroke:var(${k === label ? "--votes" : "--quiet"})`;
      const opacity = k === label ? 0.55 : 0.4;
      const line = svg("path", { d, style, opacity, "stroke-width": 5 * Math.sqrt(share) });
      if (k === label) result.push(line);
      else result.unshift(line); // Behind.
    }
  }
  return result.join("");
}

function bars(goals, label, yOf) {
  const { activation } = current();
  const { goal, name: nameWidth, bar } = figure();
  const x = goal + 8 + nameWidth;
  const one = k => {
    const name = net.class_names[k];
    const text = { y: yOf(k) + 4, "font-weight": k === label ? 700 : 400 };
    const box = { x, y: yOf(k) - 5, height: 10, rx: 5 };
    const width = bar * Math.min(1, activation[k]);
    const style = `fill:var(${k === label ? "--votes" : "--quiet"})`;
    return (
      svg(
        "text",
        { x: goal + 8, ...text },
        escaped(name.length > 7 ? `${name.slice(0, 6)}…` : name),
      ) +
      svg("rect", { ...box, width: bar, style: "fill:var(--track)" }) +
      svg("rect", { ...box, width, style }) +
      svg("text", { x: x + bar + 6, ...text }, activation[k].toFixed(2))
    );
  };
  return goals.map(one).join("");
}

function renderVotesText(name, place) {
  const { side } = grid();
  const num = place === null ? NUM_LINES : Math.min(NUM_LINES, net.primary_types);
  $("votes-text").textContent =
    `Orange: votes from there lengthen capsule ${name}; the stronger the colour, the more. ` +
    `Lines: the ${num} strongest votes ${place === null ? "for it" : "of this place"}, ` +
    "grey what they add to other classes. Colour and thickness follow the square root. " +
    `A square is only the middle of the ${side} x ${side} pixels that a small capsule looks at` +
    `${place === null ? ": point at one, or tap it, to see the window" : " (dashed)"}. ` +
    "Arrow keys move, too.";
}

function renderSenders(name, label, strongest) {
  const { capsules, rounds, width, height, j } = state.seen;
  const length = safeNorm(capsules, net.primary_dim);
  const made = rounds.slice(0, state.rounds);
  const cells = n => [
    `${Math.floor(placeOf(n) / width) + 1}, ${(placeOf(n) % width) + 1}`,
    (n % net.primary_types) + 1,
    length[n].toFixed(2),
    made.map(({ coupling }) => Math.round(100 * coupling[n * j + label])).join(" → "),
  ];
  const byRound = net.routing.kind === "dynamic" ? ", by round" : "";
  const heads = ["row, column", "kind", "length", `share for ${name}, in %${byRound}`];
  const row = (tag, texts) =>
    make("tr", {}, ...texts.map(textContent => make(tag, { textContent })));
  $("senders").replaceChildren(
    make("table", {}, row("th", heads), ...strongest.map(n => row("td", cells(n)))),
  );
  $("senders-title").textContent = state.place
    ? `Votes for ${name} from row ${state.place[0] + 1}, column ${state.place[1] + 1}`
    : `The strongest votes for ${name}`;
  $("senders-text").textContent =
    `At each of ${height} x ${width} places there are ${net.primary_types} kinds of small capsules.`;
}

function choosePlace(place, isPinned) {
  if (`${place}` === `${state.place}` && isPinned === state.isPinned) return;
  Object.assign(state, { place, isPinned });
  if (state.seen) renderVotes();
  remember();
}

// ---- mouse and keyboard

function listenToAgreement() {
  $("num-rounds").oninput = event => change({ rounds: +event.target.value });
  $("chart").onclick = event => {
    const box = $("chart").firstElementChild?.getBoundingClientRect();
    if (!box) return;
    const { width, left, right } = chartFrame(current().label);
    const x = ((event.clientX - box.left) / box.width) * width;
    const part = Math.min(1, Math.max(0, (x - left) / (width - left - right)));
    change({ rounds: 1 + Math.round(part * (mostRounds() - 1)) });
  };
  $("play").onclick = play;
  $("flow").onpointermove = event => {
    if (event.pointerType === "mouse" && !state.isPinned) choosePlace(placeAt(event), false);
  };
  $("flow").onpointerleave = () => {
    if (!state.isPinned) choosePlace(null, false);
  };
  $("flow").onclick = event => {
    const place = placeAt(event);
    const isSame = state.isPinned && `${place}` === `${state.place}`;
    choosePlace(isSame ? null : place, !isSame && place !== null);
  };
  $("flow").onkeydown = event => {
    const ways = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
    const way = ways[event.key];
    if (event.key === "Escape") choosePlace(null, false);
    if (!way || !state.seen) return;
    event.preventDefault();
    const sizes = [state.seen.height, state.seen.width];
    const middle = sizes.map((size, axis) => Math.floor(size / 2) - way[axis]);
    const moved = (state.place ?? middle).map((n, axis) => n + way[axis]);
    if (isPlace(moved)) choosePlace(moved, true);
  };
}

let playing = null;

function play() {
  const before = state.rounds;
  const stop = () => {
    clearInterval(playing);
    playing = null;
    $("play").textContent = "Play";
  };
  if (playing) return stop();
  $("play").textContent = "Stop";
  change({ rounds: 1 });
  playing = setInterval(() => {
    if (state.rounds < mostRounds()) return change({ rounds: state.rounds + 1 });
    stop();
    change({ rounds: before });
  }, 800);
}

function isPlace([row, column]) {
  const { height, width } = state.seen;
  return row >= 0 && column >= 0 && row < height && column < width;
}

function placeAt(event) {
  const drawing = $("votes").firstElementChild;
  if (!drawing || !state.seen) return null;
  const box = drawing.getBoundingClientRect();
  const { step, margin } = grid();
  const unit = drawing.viewBox.baseVal.width / box.width;
  const offsets = [event.clientY - box.top, event.clientX - box.left];
  const place = offsets.map(offset => Math.floor((offset * unit - margin) / step));
  return isPlace(place) ? place : null;
}
