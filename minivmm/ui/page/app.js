// The page: shows what the stream tells, and posts what the user wants. No state but the last view.
import {cellAt, cellState, drawChart, drawMap} from "./draw.js";

const MOST_LINES = 500;
const MOST_SAMPLES = 1200;
const NOTICE = 8000;  // milliseconds

const $ = id => document.getElementById(id);
const cards = new Map();  // device id -> Card
let view = null;
let noticeTimer = 0;

// -- words ----------------------------------------------------------------------------------------

const UNITS = [["T", 2 ** 40], ["G", 2 ** 30], ["M", 2 ** 20], ["K", 2 ** 10]];

function exactSize(size) {
  for (const [suffix, unit] of UNITS) if (size && size % unit === 0) return size / unit + suffix;
  return String(size);
}

function roughSize(size) {
  for (const [suffix, unit] of UNITS) {
    if (Math.abs(size) >= unit) return (size / unit).toFixed(Math.abs(size) < 10 * unit ? 1 : 0).replace(/\.0$/, "") + suffix;
  }
  return String(Math.round(size));
}

function notice(text, bad = false) {
  $("notice").textContent = text;
  $("notice").className = bad ? "bad" : "";
  $("notice").hidden = false;
  clearTimeout(noticeTimer);
  noticeTimer = setTimeout(() => { $("notice").hidden = true; }, NOTICE);
}

// -- actions --------------------------------------------------------------------------------------

async function post(action, values = {}) {
  try {
    const answer = await fetch(action, {
      method: "POST", headers: {"Content-Type": "application/json"}, body: JSON.stringify(values),
    });
    const told = await answer.json();
    if (told.error !== undefined) notice(told.error, true);
    return told.return;
  } catch {
    notice("minivmm ui does not answer any more", true);
  }
}

async function act(action, values) {
  const said = await post(action, values);
  if (said !== undefined) notice(said);
  return said;
}

// -- one device -----------------------------------------------------------------------------------

class Card {
  constructor(id) {
    this.root = $("device").content.cloneNode(true).firstElementChild;
    this.root.dataset.device = id;
    this.id = id;
    this.samples = [];
    this.dragging = false;
    this.field("id").textContent = id;
    this.connect();
    $("devices").append(this.root);
  }

  field(name) { return this.root.querySelector(`[data-field="${name}"]`); }

  connect() {
    const slider = this.field("slider");
    slider.addEventListener("input", () => { this.dragging = true; this.showChosen(); });
    slider.addEventListener("change", async () => {
      const size = slider.valueAsNumber * this.device["block-size"];
      const said = await act("resize", {id: this.id, size: String(size)});
      if (said !== undefined) this.device["requested-size"] = size;  // until the next view comes
      this.dragging = false;
      this.showSlider();
    });
    this.root.querySelector("form").addEventListener("submit", async event => {
      event.preventDefault();
      const exact = this.field("exact");
      if (exact.value.trim() && await act("resize", {id: this.id, size: exact.value}) !== undefined) exact.value = "";
    });
    this.root.querySelector('[data-action="kick"]').addEventListener("click", () => act("kick", {id: this.id}));
    this.root.querySelector('[data-action="why"]').addEventListener("click", event => this.why(event.target));
    this.field("map").addEventListener("mousemove", event => this.showCell(event));
    this.field("map").addEventListener("mouseleave", () => { this.field("cell").textContent = ""; });
  }

  show(device, now) {
    this.device = device;
    const end = device.memaddr + device["max-size"] - 1;
    this.field("place").textContent = `node ${device.node}, 0x${device.memaddr.toString(16)}-0x${end.toString(16)}, blocks of ${exactSize(device["block-size"])}, ${device["pci-address"]}`;
    for (const key of ["requested-size", "size", "usable-size", "max-size"]) {
      this.field(key).textContent = exactSize(device[key]);
      this.field(key).dataset.bytes = device[key];
    }
    this.field("size").className = device.size === device["requested-size"] ? "good" : "";
    this.field("resident").textContent = device.residency ? roughSize(device.residency.resident) : "?";
    this.field("rate").textContent = device.rates.requests.toFixed(device.rates.requests < 10 ? 1 : 0);
    this.field("speed").textContent = device.rates.size ? `${device.rates.size > 0 ? "+" : ""}${roughSize(device.rates.size)}/s` : "none";
    const up = device.driver.includes("DRIVER_OK");
    this.field("driver").textContent = up ? "driver up" : "no driver";
    this.field("driver").title = device.driver.join(" ");
    this.field("driver").className = `badge ${up && !device.trouble ? "good" : "bad"}`;
    this.showTrouble();
    this.showSlider();
    this.showTables();
    this.keep({at: now, requested: device["requested-size"], plugged: device.size, resident: device.residency?.resident ?? 0});
    this.draw(now);
  }

  keep(sample) {
    this.samples.push(sample);
    if (this.samples.length > MOST_SAMPLES) this.samples.shift();
  }

  draw(now) {
    const device = this.device;
    const map = this.field("map");
    drawMap(map, device);
    map.setAttribute("aria-label", `block map: ${exactSize(device.size)} of ${exactSize(device["max-size"])} plugged`);
    drawChart(this.field("chart"), this.samples, device["max-size"], now, roughSize);
  }

  showTrouble() {
    const device = this.device, words = [];
    if (device.trouble) words.push(`broken: ${device.trouble}`);
    if (device["short-of"]) words.push(`the host is short of ${roughSize(device["short-of"])}`);
    if (device.intrusions) words.push(`${device.intrusions} accesses to unplugged memory`);
    this.field("trouble").textContent = words.join("; ");
    this.field("trouble").hidden = !words.length;
  }

  showSlider() {
    if (this.dragging) return;
    const slider = this.field("slider"), block = this.device["block-size"];
    slider.max = this.device["max-size"] / block;
    slider.value = this.device["requested-size"] / block;
    this.showChosen();
  }

  showChosen() {
    const text = exactSize(this.field("slider").valueAsNumber * this.device["block-size"]);
    this.field("chosen").textContent = text;
    this.field("slider").setAttribute("aria-valuetext", text);
  }

  showTables() {
    const answers = [["request", "answer", "times"]];
    for (const [request, times] of Object.entries(this.device.answers))
      for (const [answer, count] of Object.entries(times)) answers.push([request, answer, count]);
    fillTable(this.field("answers"), answers);
    const queues = [["queue", "format", "size", "in flight", "avail", "used"]];
    for (const q of this.device.queues)
      queues.push([q.index, q.format, q.size, q["in-flight"], q["next-avail"], q.used ?? q["next-used"]]);
    fillTable(this.field("queues"), queues);
  }

  showCell(event) {
    const map = this.device.map, cell = cellAt(this.field("map"), map, event);
    if (cell === null) { this.field("cell").textContent = ""; return; }
    const blocks = map["cell-blocks"], bytes = blocks * this.device["block-size"];
    const run = cellState(map, cell), held = this.device.residency?.held[cell];
    const words = [`0x${(this.device.memaddr + cell * bytes).toString(16)}`];
    words.push(blocks === 1 ? `block ${cell}` : `blocks ${cell * blocks}-${(cell + 1) * blocks - 1}`, run.state);
    if (run.state === "mixed" && run["plugged-blocks"] !== null) words.push(`${run["plugged-blocks"]} of ${blocks} plugged`);
    if (held) words.push(`${held["looked-at"] < bytes ? "about " : ""}${roughSize(held.resident / held["looked-at"] * bytes)} of host memory`);
    this.field("cell").textContent = words.join(", ");
  }

  async why(button) {
    button.disabled = true;
    const found = await post("why", {id: this.id});
    button.disabled = false;
    if (found === undefined) return;
    const box = this.field("diagnosis");
    box.replaceChildren();
    for (const d of found) {
      box.append(paragraph(`${d.certain ? "" : "probably "}${d.kind}: ${d.summary}`, "strong"));
      for (const evidence of d.evidence) box.append(paragraph(evidence));
      if (d.remedy) box.append(paragraph(`remedy: ${d.remedy}`));
    }
    box.hidden = false;
  }
}

function paragraph(text, kind) {
  const p = document.createElement("p");
  const inside = kind ? p.appendChild(document.createElement(kind)) : p;
  inside.textContent = text;
  return p;
}

function fillTable(table, rows) {
  const key = JSON.stringify(rows);
  if (table.dataset.rows === key) return;
  table.dataset.rows = key;
  for (const row of [...table.rows]) row.remove();
  rows.forEach((cells, index) => {
    const row = table.insertRow();
    for (const cell of cells) {
      const made = row.appendChild(document.createElement(index ? "td" : "th"));
      made.textContent = cell ?? "-";
    }
  });
}

// -- the whole ------------------------------------------------------------------------------------

function showView(data) {
  view = data;
  const now = Date.now() / 1000;
  $("name").textContent = data.name;
  document.title = `${data.name} - minivmm`;
  $("status").textContent = data.status;
  $("status").className = `badge ${data.status === "running" ? "good" : "bad"}`;
  const guest = data.agent.ready ? `Linux ${data.agent["kernel-release"]}` : "guest agent not ready";
  $("facts").textContent = `${exactSize(data["base-memory"])} at boot, ${guest}`;
  $("pause").textContent = data.status === "paused" ? "Resume" : "Pause";
  $("pause").disabled = !["running", "paused"].includes(data.status);
  $("steps").checked = data["every-step"];
  $("none").hidden = data["memory-devices"].length > 0;
  for (const device of data["memory-devices"]) cardOf(device.id).show(device, now);
}

function cardOf(id) {
  if (!cards.has(id)) cards.set(id, new Card(id));
  return cards.get(id);
}

function takeHistory(hello) {
  const now = Date.now() / 1000;
  for (const card of cards.values()) card.samples = [];
  for (const sample of hello.history)
    for (const [id, [requested, plugged, resident]] of Object.entries(sample.sizes))
      cardOf(id).keep({at: now - sample.ago, requested, plugged, resident});
}

function matches(text) {
  const wanted = $("filter").value.toLowerCase().split(/[\s,]+/).filter(Boolean);
  return wanted.length === 0 || wanted.some(word => text.includes(word));
}

function addLines(lines) {
  const body = document.querySelector("#lines tbody");
  for (const line of lines) {
    const row = body.insertRow();
    const at = new Date(line.wall * 1000);
    const clock = `${at.toTimeString().slice(0, 8)}.${String(at.getMilliseconds()).padStart(3, "0")}`;
    for (const text of [clock, line.source, line.name, line.text]) row.insertCell().textContent = text;
    row.dataset.text = `${line.source} ${line.name} ${line.text}`.toLowerCase();
    row.hidden = !matches(row.dataset.text);
  }
  while (body.rows.length > MOST_LINES) body.deleteRow(0);
  if ($("follow").checked) $("lines").scrollTop = $("lines").scrollHeight;
}

function ended(why) {
  $("status").textContent = "ended";
  $("status").className = "badge bad";
  for (const control of document.querySelectorAll("button, input")) control.disabled = true;
  clearTimeout(noticeTimer);
  $("notice").textContent = why;
  $("notice").className = "bad";
  $("notice").hidden = false;
}

function connect() {
  const stream = new EventSource("events");
  stream.addEventListener("hello", event => {
    document.querySelector("#lines tbody").replaceChildren();
    takeHistory(JSON.parse(event.data));
  });
  stream.addEventListener("view", event => showView(JSON.parse(event.data)));
  stream.addEventListener("log", event => addLines(JSON.parse(event.data)));
  stream.addEventListener("end", event => { stream.close(); ended(JSON.parse(event.data).why); });
  stream.addEventListener("error", () => {
    $("status").textContent = "connecting";
    $("status").className = "badge bad";
  });
}

$("pause").addEventListener("click", () => act(view.status === "paused" ? "resume" : "pause"));
$("steps").addEventListener("change", () => act("steps", {wanted: $("steps").checked}));
$("clear").addEventListener("click", () => document.querySelector("#lines tbody").replaceChildren());
$("filter").addEventListener("input", () => {
  for (const row of document.querySelectorAll("#lines tr")) row.hidden = !matches(row.dataset.text);
});
addEventListener("resize", () => {
  for (const card of cards.values()) if (card.device) card.draw(Date.now() / 1000);
});
connect();
