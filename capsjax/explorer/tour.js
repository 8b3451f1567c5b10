"use strict";
// The walk-through: five steps for somebody who has never heard of capsules.

const MOST_READ = 8;
const SEVEN = [
  [
    [70, 70],
    [110, 68],
    [200, 66],
    [180, 110],
    [158, 160],
    [140, 225],
  ],
];
const FOUR = [
  [
    [160, 35],
    [144, 130],
    [250, 130],
  ],
  [
    [225, 40],
    [218, 215],
  ],
];
const HOUSE = [
  [
    [40, 140],
    [140, 50],
    [240, 140],
  ],
  [
    [65, 125],
    [65, 230],
    [215, 230],
    [215, 125],
  ],
  [
    [120, 230],
    [120, 175],
    [160, 175],
    [160, 230],
  ],
];

function steps() {
  const isGrey = net.image_shape[2] === 1;
  const isDigits = net.drawn && net.class_names.join("") === "0123456789";
  const draw = strokes => change({ strokes, test: null, picture: null });
  const pick = n => () =>
    samples.length &&
    change({
      strokes: [],
      test: (state.test ?? n) + 1 >= samples.length ? 0 : (state.test ?? n) + 1,
      picture: null,
    });
  const slant = {
    on: "pose",
    title: isDigits ? "Slant it by a slider" : "Move a slider",
    text: () =>
      `The pose of a capsule is ${net.class_dim} numbers, and nobody chose what they mean. ` +
      (state.seen
        ? `For this image, slider ${tellingMove().component + 1} ${isDigits ? "slants the drawing most" : "changes the drawing most"}. Move it, and try the others: thickness, width, loops.`
        : "Choose an image first."),
    does: "Move it for me",
    act: () => {
      if (!state.seen) return;
      const { component, by } = tellingMove();
      const { own } = current();
      const isThere = (state.moved[component] - own[component]) * by > 0;
      const value = own[component] + (isThere ? -by : by);
      state.moved = {
        [component]: Math.min(1, Math.max(-1, Math.round(200 * value) / 200)),
      };
      renderPose();
      remember();
    },
  };
  const rounds =
    net.routing.kind === "dynamic"
      ? {
          on: "agreement",
          title: "Play with the rounds",
          does: "Play rounds 1 to 8",
          act: () => $("play").click(),
          text: () =>
            "With one round all votes count alike, and the capsule is short. With each further round the small capsules send more to where they agree: the capsule grows. Watch the lines, the orange places, and the shares in the table.",
        }
      : {
          on: "agreement",
          title: "Look where the votes come from",
          does: "Choose a place",
          act: () => choosePlace([1, 1], true),
          text: () =>
            "Orange places send votes that agree with the capsule. Point at one, or tap it: the dashed window is all that a small capsule there sees.",
        };
  if (isDigits)
    return [
      {
        on: "input",
        title: "Draw a 7",
        text: () =>
          "Ten capsules watch the board, one for each digit. Draw a 7: its bar grows past the dashed line, and the others stay short.",
        does: "Draw it for me",
        act: () => draw(SEVEN),
      },
      slant,
      {
        on: "input",
        title: "Draw a 4 over it",
        text: () =>
          "The network never saw two digits at once. Draw a 4 over the 7, and watch the bars: capsules need not add up to one, so that two may be long, or none. Then choose a class, to see what its capsule makes of the ink.",
        does: "Draw it for me",
        act: () => draw([...(state.strokes.length ? state.strokes : SEVEN), ...FOUR]),
      },
      rounds,
      {
        on: "input",
        title: "Draw no digit at all",
        text: () =>
          `Draw a house, or open a photograph. Most networks must name some class. Here every capsule may stay short: no digit.${net.drawing_limit === null ? "" : " It is none, either, if a long capsule draws something else than what the network sees."} It is not always that wise. Find a drawing that fools it.`,
        does: "Draw a house for me",
        act: () => draw(HOUSE),
      },
    ];
  return [
    {
      on: "input",
      title: "Choose an image",
      text: () =>
        `Pick a test image${isGrey ? ", or draw one" : ", or drop a picture on the page"}. Each class has a capsule: the longest one names the image.`,
      does: "Pick one for me",
      act: pick(0),
    },
    slant,
    {
      on: "capsules",
      title: "Look at another class",
      text: () =>
        "Choose another class in the list: you see what its capsule would draw of the same image, and how short it stays.",
      does: "Choose the second longest",
      act: () => state.seen && change({ chosen: longest(current().activation, 2)[1] ?? 0 }),
    },
    rounds,
    {
      on: "input",
      title: "Show it something else",
      text: () =>
        "Open a picture of something that the network has never learnt. Capsules need not add up to one: all may stay short, and the answer is none. It is not always that wise.",
      does: "Pick another test image",
      act: pick(3),
    },
  ];
}

// A move of one component that slants the drawing much, or else changes it much, and
// that the network still reads as the same class.
function tellingMove() {
  const { own, label } = current();
  const drawing = decode(net, own, label);
  const moves = [...own.keys()].flatMap(component =>
    [0.25, -0.25].map(by => {
      const pose = own.map((value, k) => (k === component ? value + by : value));
      const moved = decode(net, pose, label);
      return { component, by, moved, effect: effectOf(drawing, moved) };
    }),
  );
  moves.sort((a, b) => b.effect - a.effect);
  const read = moves.slice(0, MOST_READ).map(move => {
    const { activation } = encode(net, move.moved).rounds.at(-1);
    return { ...move, effect: move.effect * activation[label] ** 4 };
  });
  return read.reduce((best, move) => (move.effect > best.effect ? move : best));
}

function effectOf(before, after) {
  if (!net.drawn)
    return before.reduce((sum, pixel, n) => sum + Math.abs(pixel - after[n]), 0);
  // Thickness is no slant.
  const ink = [before, after].map(drawing => drawing.reduce((sum, pixel) => sum + pixel, 0));
  const slant = Math.abs(slantOf(after) - slantOf(before));
  return (slant * Math.min(...ink)) / Math.max(...ink) || 0;
}

function slantOf(drawing) {
  const [height, width, channels] = net.seen_shape;
  const grey = drawing.filter((_, n) => n % channels === 0);
  const [down, across] = centreOfMass(grey, height, width);
  let both = 0;
  let vertical = 0;
  for (let y = 0; y < height; y++)
    for (let x = 0; x < width; x++) {
      both += grey[y * width + x] * (y - down) * (x - across);
      vertical += grey[y * width + x] * (y - down) ** 2;
    }
  return both / vertical;
}

function tour(step, { isQuiet = false } = {}) {
  const all = steps();
  if (step !== null && (step < 0 || step >= all.length)) step = null;
  state.step = step;
  $("tour").hidden = step === null;
  for (const section of document.querySelectorAll("main > section"))
    section.classList.toggle("shown", step !== null && section.contains($(all[step].on)));
  if (!isQuiet) remember();
  if (step === null) {
    if (!isQuiet) $("begin-tour").focus();
    return;
  }
  const { title, text, does } = all[step];
  $("tour-count").textContent = `Step ${step + 1} of ${all.length}`;
  $("tour-title").textContent = title;
  $("tour-text").textContent = text();
  $("tour-do").textContent = does;
  $("tour-back").disabled = step === 0;
  $("tour-next").textContent = step === all.length - 1 ? "Done" : "Next";
  if (!isQuiet) $("tour-title").focus({ preventScroll: true });
  bringIntoSight($(all[step].on));
}

// Below the walk-through, which stays at the top.
function bringIntoSight(part) {
  const { offsetHeight } = $("tour");
  document.documentElement.style.setProperty("--tour", `${offsetHeight}px`);
  const { top, bottom } = part.getBoundingClientRect();
  if (top > $("tour").getBoundingClientRect().bottom && bottom < innerHeight) return;
  const isStill = matchMedia("(prefers-reduced-motion: reduce)").matches;
  part.scrollIntoView({ block: "start", behavior: isStill ? "auto" : "smooth" });
}

function listenToTour() {
  $("begin-tour").onclick = () => tour(0);
  $("tour-next").onclick = () => tour(state.step + 1);
  $("tour-back").onclick = () => tour(state.step - 1);
  $("tour-end").onclick = () => tour(null);
  $("tour-do").onclick = () => steps()[state.step].act();
}
