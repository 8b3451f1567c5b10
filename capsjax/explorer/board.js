"use strict";
// The board: drawing on it, and the pictures that are opened.

const BOARD = 280;
const PEN = 22;

function boardPicture() {
  const { data } = context($("pad")).getImageData(0, 0, BOARD, BOARD);
  const values = new Uint8Array(BOARD * BOARD);
  for (let n = 0; n < values.length; n++) values[n] = data[4 * n + 3];
  return { height: BOARD, width: BOARD, channels: 1, values };
}

function paint() {
  const board = context($("pad"));
  board.clearRect(0, 0, BOARD, BOARD);
  const [image] = state.strokes.length ? [] : prepared();
  if (image) {
    const canvas = make("canvas");
    const [height, width] = net.seen_shape;
    const scale = BOARD / Math.max(height, width);
    show(canvas, seenOf(net, image), net.seen_shape);
    board.imageSmoothingEnabled = false;
    board.drawImage(
      canvas,
      (BOARD - width * scale) / 2,
      (BOARD - height * scale) / 2,
      width * scale,
      height * scale,
    );
  }
  state.strokes.forEach(stroke => line(stroke));
}

function line(points) {
  const board = context($("pad"));
  Object.assign(board, {
    lineWidth: PEN,
    lineCap: "round",
    lineJoin: "round",
    strokeStyle: "#fff",
  });
  board.beginPath();
  points.forEach(([x, y], n) => (n ? board.lineTo(x, y) : board.moveTo(x, y)));
  if (points.length === 1) board.lineTo(points[0][0] + 0.01, points[0][1]);
  board.stroke();
}

function pointOf(event) {
  const { left, top, width, height } = $("pad").getBoundingClientRect();
  return [((event.clientX - left) * BOARD) / width, ((event.clientY - top) * BOARD) / height].map(
    v => Math.round(Math.min(BOARD, Math.max(0, v))),
  );
}

function listenToBoard() {
  const pad = $("pad");
  const isGrey = net.image_shape[2] === 1;
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
      const [x, y] = pointOf(one);
      const [lastX, lastY] = stroke.at(-1);
      if (Math.hypot(x - lastX, y - lastY) >= 3) stroke.push([x, y]);
    }
    paint();
    schedule();
  };
  const undo = () =>
    state.strokes.length &&
    change({ strokes: state.strokes.slice(0, -1), test: null, picture: null });
  const clear = () => change({ strokes: [], test: null, picture: null });
  $("clear").onclick = clear;
  $("undo").onclick = undo;
  document.onkeydown = event => {
    if (event.key === "z" && (event.ctrlKey || event.metaKey)) {
      undo();
      event.preventDefault();
    }
    if (event.key === "Escape" && document.activeElement === pad && isGrey) clear();
  };

  $("file").onchange = event => {
    openPicture(event.target.files[0]);
    event.target.value = "";
  };
  document.ondragover = event => {
    event.preventDefault();
    document.body.classList.add("dropping");
  };
  document.ondragleave = event => {
    if (!event.relatedTarget) document.body.classList.remove("dropping");
  };
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
}

async function openPicture(file) {
  if (!file) return;
  try {
    const bitmap = await createImageBitmap(file, { colorSpaceConversion: "none" });
    const canvas = make("canvas", { width: bitmap.width, height: bitmap.height });
    const pixels = context(canvas);
    pixels.drawImage(bitmap, 0, 0);
    const picture = makeImages(
      net,
      fromPixels(pixels.getImageData(0, 0, bitmap.width, bitmap.height)),
    );
    change({ strokes: [], test: null, picture });
  } catch {
    $("because").textContent = `The browser can't read ${file.name} as a picture.`;
  }
}
