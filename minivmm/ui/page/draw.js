// Drawing: a device's block map, and its sizes over time. Knows canvases and plain data only.

const NOW = 3;  // seconds for which a block that moved is marked

function color(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
}

function prepare(canvas, height) {
  const scale = window.devicePixelRatio || 1;
  const width = canvas.clientWidth || 600;
  canvas.style.height = `${height}px`;
  canvas.width = Math.round(width * scale);
  canvas.height = Math.round(height * scale);
  const pen = canvas.getContext("2d");
  pen.scale(scale, scale);
  return [pen, width];
}

// {columns, size}: how cells are laid out on `width` pixels.
function grid(cells, width) {
  const size = Math.max(6, Math.min(16, Math.floor(Math.sqrt(width * 110 / cells))));
  return {columns: Math.max(1, Math.floor(width / size)), size};
}

export function cellAt(canvas, map, event) {
  const {columns, size} = grid(map.cells, canvas.clientWidth);
  const box = canvas.getBoundingClientRect();
  const column = Math.floor((event.clientX - box.left) / size);
  const cell = Math.floor((event.clientY - box.top) / size) * columns + column;
  return column < columns && cell >= 0 && cell < map.cells ? cell : null;
}

export function cellState(map, cell) {
  for (const run of map.runs) {
    if (cell < run.cells) return run;
    cell -= run.cells;
  }
  return null;
}

export function drawMap(canvas, device) {
  const map = device.map;
  const {columns, size} = grid(map.cells, canvas.clientWidth || 600);
  const [pen] = prepare(canvas, Math.ceil(map.cells / columns) * size);
  const bytes = map["cell-blocks"] * device["block-size"];
  const usable = Math.ceil(device["usable-size"] / bytes);
  const place = cell => [cell % columns * size, Math.floor(cell / columns) * size];
  const fill = {};
  for (const name of ["unusable", "unplugged", "mixed", "plugged", "held"]) fill[name] = color(name);
  let cell = 0;
  for (const run of map.runs) {
    for (const end = cell + run.cells; cell < end; cell++) {
      const [x, y] = place(cell);
      const state = run.state === "unplugged" && cell >= usable ? "unusable" : run.state;
      pen.fillStyle = fill[state];
      pen.fillRect(x, y, size - 1, size - 1);
      const held = device.residency?.held[cell];
      if (held && held.resident > 0) {
        const part = Math.max(1, Math.round((size - 1) * held.resident / held["looked-at"]));
        pen.fillStyle = fill.held;
        pen.fillRect(x, y + size - 1 - part, Math.max(2, Math.floor((size - 1) / 3)), part);
      }
    }
  }
  drawMoves(pen, device, place, size);
}

function drawMoves(pen, device, place, size) {
  const marked = new Set();
  for (const move of device.moves) {  // newest first: the newest of a cell counts
    if (move.ago > NOW) break;
    const per = device.map["cell-blocks"];
    const last = Math.floor((move["first-block"] + move.blocks - 1) / per);
    pen.strokeStyle = color(move.request === "PLUG" ? "justplugged" : "justunplugged");
    pen.lineWidth = 2;
    for (let cell = Math.floor(move["first-block"] / per); cell <= last; cell++) {
      if (marked.has(cell)) continue;
      marked.add(cell);
      const [x, y] = place(cell);
      pen.strokeRect(x + 1, y + 1, size - 3, size - 3);
    }
  }
}

// `samples`: [{at: seconds, requested, plugged, resident}], ascending; `most`: bytes at the top.
export function drawChart(canvas, samples, most, now, sizeText) {
  const height = 150, left = 56, bottom = 18, top = 6;
  const [pen, width] = prepare(canvas, height);
  const span = Math.max(60, samples.length ? now - samples[0].at : 0);
  let highest = 1;
  for (const s of samples) highest = Math.max(highest, s.requested, s.plugged, s.resident);
  highest = Math.min(most, niceAbove(highest));
  const x = at => left + (width - left - 4) * (1 - (now - at) / span);
  const y = size => height - bottom - (height - bottom - top) * Math.min(1, size / highest);
  pen.font = "11px system-ui, sans-serif";
  pen.textBaseline = "middle";
  for (const part of [0, 0.5, 1]) {
    const level = Math.round(y(highest * part)) + 0.5;
    pen.strokeStyle = color("line");
    line(pen, [[left, level], [width - 4, level]]);
    pen.fillStyle = color("dim");
    pen.textAlign = "right";
    pen.fillText(sizeText(highest * part), left - 6, level);
  }
  pen.textAlign = "left";
  pen.fillText(`${Math.round(span)} s ago`, left, height - 7);
  pen.textAlign = "right";
  pen.fillText("now", width - 4, height - 7);
  pen.lineWidth = 2;
  for (const [key, name, dash] of [["resident", "justplugged", [2, 3]], ["requested", "requested", [6, 4]], ["plugged", "plugged", []]]) {
    pen.strokeStyle = color(name);
    pen.setLineDash(dash);
    line(pen, steps(samples, key, x, y, now));
  }
  pen.setLineDash([]);
}

// Sizes hold until the next sample: corners, not slopes.
function steps(samples, key, x, y, now) {
  const points = [];
  for (const s of samples) {
    if (points.length) points.push([x(s.at), points[points.length - 1][1]]);
    points.push([x(s.at), y(s[key])]);
  }
  if (points.length) points.push([x(now), points[points.length - 1][1]]);
  return points;
}

function line(pen, points) {
  pen.beginPath();
  points.forEach(([x, y], index) => index ? pen.lineTo(x, y) : pen.moveTo(x, y));
  pen.stroke();
}

function niceAbove(size) {
  let nice = 1 << 20;
  while (nice < size) nice *= 2;
  return nice;
}
