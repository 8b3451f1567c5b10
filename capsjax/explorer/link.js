"use strict";
// A link to what is seen: the state in the address.

const MOST_IN_LINK = 4096;
let written = "";
let waiting;

function remember() {
  clearTimeout(waiting);
  waiting = setTimeout(remember.now, 250);
}

remember.now = () => {
  written = String(new URLSearchParams(link()));
  // Not allowed in a notebook's frame, where there is no address to share.
  try {
    history.replaceState(null, "", `#${written}`);
  } catch {}
};

// Longer addresses may be cut off on their way.
function inLink(image) {
  return image.length <= MOST_IN_LINK ? btoa(String.fromCharCode(...image)) : "";
}

function link() {
  const two = n => n.toString(36).padStart(2, "0");
  const result = {};
  if (state.test !== null) result.test = state.test + 1;
  else if (state.picture) result.picture = inLink(state.seen?.image ?? state.picture[0]);
  else
    result.draw = state.strokes
      .map(stroke => stroke.map(point => point.map(two).join("")).join(""))
      .join(".");
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
    return link.has(name) && Number.isInteger(value) && value >= 1 && value <= most
      ? value - 1
      : null;
  };
  const strokes = (link.get("draw") ?? "")
    .split(".")
    .filter(one => /^([0-7][0-9a-z]){2,4000}$/.test(one) && one.length % 4 === 0)
    .map(one =>
      one
        .match(/.{4}/g)
        .map(point =>
          [point.slice(0, 2), point.slice(2)].map(n => Math.min(BOARD, parseInt(n, 36))),
        ),
    );
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
    strokes: net.image_shape[2] === 1 ? strokes : [],
    test,
    picture,
    moved,
    chosen: whole("class", net.class_names.length),
    rounds: rounds === null ? net.routing.num_iterations : rounds + 1,
    place: null,
    isPinned: false,
  });
  paint();
  think();
  const place = (link.get("place") ?? "").split(",").map(n => n - 1);
  if (state.seen && place.every(Number.isInteger) && isPlace(place))
    Object.assign(state, { place: place.slice(0, 2), isPinned: true });
  render();
  tour(whole("step", steps().length), { isQuiet: true });
}

function listenToLink() {
  $("copy-link").onclick = async () => {
    remember.now();
    try {
      await navigator.clipboard.writeText(location.href);
      $("copy-link").textContent = "Copied";
    } catch {
      $("copy-link").textContent = "Copy it from the address bar";
    }
    setTimeout(() => {
      $("copy-link").textContent = "Copy a link to this view";
    }, 2500);
  };
  window.onhashchange = () => {
    if (location.hash.slice(1) !== written) restore();
  };
}
