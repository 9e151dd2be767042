"use strict";
// Plays recorded runs. A cell's look at a step follows from the cell's own events alone, so any jump costs one pass over
// the cells and touches only those whose look changes. Text of a model goes through textContent, never through HTML.
(() => {
const MASK = "░", END = "∎", UNLIKELY = 0.5;
const data = JSON.parse(document.getElementById("data").textContent);
const last = Math.max(...data.runs.map((run) => run.steps));
const byId = (id) => document.getElementById(id);

function element(tag, className, text) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

function drawing(tag, attributes) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}

// --- the state of a cell -------------------------------------------------------------------------------------------
// cell: [born, died or null, token at birth or null, events]; event: [step, token or null, confidence, entropy, others]

const isThere = ([born, died], step) => born <= step && (died === null || step < died);

function eventAt(cell, step) {
  let found = null;
  for (const event of cell[3]) {
    if (event[0] > step) break;
    found = event;
  }
  return found;
}

function stateAt(run, cell, step) {
  if (!isThere(cell, step)) return { kind: "gone", token: null, event: null };
  const event = eventAt(cell, step);
  if (event === null) return { kind: cell[2] === null ? "masked" : "given", token: cell[2], event };
  const isNow = event[0] === step;
  if (event[1] === null) return { kind: isNow ? "undone" : "masked", token: null, event };
  const kind = isNow ? "new" : run.ends.includes(event[1]) ? "end" : "settled";
  return { kind, token: event[1], event };
}

// A piece is a text, or {bytes: hex} where its bytes are no text on their own: then the token that completes a character
// shows it.
const pieceOf = (run, token) => run.pieces[token] ?? `<${token}>`;
const bytesOf = (hex) => Uint8Array.from(hex.match(/../g) ?? [], (pair) => parseInt(pair, 16));

function textsAt(run, states) {
  const texts = new Array(states.length).fill("");
  let decoder = null, holder = -1;
  const flush = () => {
    if (decoder !== null) texts[holder] += decoder.decode();
    decoder = null;
  };
  states.forEach(({ kind, token }, number) => {
    if (kind === "gone") return;
    const piece = token === null || shownAsEnd(run, kind, token) ? null : pieceOf(run, token);
    if (piece !== null && typeof piece === "object") {
      decoder ??= new TextDecoder("utf-8", { ignoreBOM: true });
      texts[number] = decoder.decode(bytesOf(piece.bytes), { stream: true });
      holder = number;
      return;
    }
    flush();
    texts[number] = token === null ? MASK : piece === null ? END : piece;
  });
  flush();
  return texts;
}

const shownAsEnd = (run, kind, token) => kind !== "given" && run.ends.includes(token);

const SIGNS = { " ": "·", "\n": "⏎", "\t": "⇥" };
function visible(run, token) {
  const piece = pieceOf(run, token);
  if (typeof piece === "object") return `bytes ${piece.bytes.match(/../g).join(" ")}`;
  return piece.replace(/[ \n\t]/g, (space) => SIGNS[space]) || "(empty)";
}

// --- one run -------------------------------------------------------------------------------------------------------

class View {
  constructor(run, number) {
    this.run = run;
    this.number = number;
    this.looks = new Array(run.cells.length).fill("");
    this.spans = run.cells.map((_, index) => {
      const span = element("span", "cell");
      span.dataset.index = index;
      span.tabIndex = -1;
      span.hidden = true;
      return span;
    });
    this.root = element("section", "run");
    const head = element("header");
    this.status = element("p", "status");
    head.append(element("h2", "", run.name), element("p", "facts", run.facts), this.status);
    this.canvas = element("div", "canvas");
    this.canvas.dataset.run = number;
    this.fill();
    const plots = element("div", "plots");
    this.lines = [];
    plots.append(this.orderMap(), this.arNess());
    this.root.append(head, this.canvas, plots);
  }

  // A long prompt is folded, but for its last lines.
  fill() {
    const open = this.run.cells.findIndex((cell) => cell[0] > 0 || cell[2] === null || cell[3].length > 0);
    const breaks = [];
    this.run.cells.slice(0, Math.max(open, 0)).forEach((cell, index) => {
      const piece = pieceOf(this.run, cell[2]);
      if (typeof piece === "string" && piece.endsWith("\n")) breaks.push(index);
    });
    const folded = breaks.length > 12 ? breaks[breaks.length - 6] + 1 : 0;
    if (folded > 0) {
      const details = element("details");
      details.append(element("summary", "", `${folded} given tokens before`), ...this.spans.slice(0, folded));
      this.canvas.append(details);
    }
    this.canvas.append(...this.spans.slice(folded));
    this.stop = Math.max(open, 0);
    (this.spans[this.stop] ?? this.canvas).tabIndex = 0;
    this.canvas.addEventListener("toggle", () => this.keepStop(), true);
  }

  isRendered(index) {
    return this.states[index].kind !== "gone" && this.spans[index].closest("details:not([open])") === null;
  }

  moveStop(index) {
    this.spans[this.stop].tabIndex = -1;
    this.stop = index;
    this.spans[index].tabIndex = 0;
  }

  // One rendered cell can be reached by Tab, also where the one that could be was folded away or taken out.
  keepStop() {
    if (this.spans.length === 0 || this.isRendered(this.stop)) return;
    const next = this.row().filter((index) => this.isRendered(index));
    if (next.length > 0) this.moveStop(next.find((index) => index > this.stop) ?? next[next.length - 1]);
  }

  show(step) {
    const now = Math.min(step, this.run.steps);
    this.states = this.run.cells.map((cell) => stateAt(this.run, cell, now));
    const texts = textsAt(this.run, this.states);
    let settled = 0, opened = 0, fresh = 0;
    this.states.forEach(({ kind, event }, index) => {
      if (kind !== "given" && kind !== "gone") opened += 1;
      if (kind === "new" || kind === "settled" || kind === "end") settled += 1;
      if (kind === "new") fresh += 1;
      const sure = kind === "settled" ? event[2] : 1;
      this.look(index, kind, texts[index], sure);
    });
    this.keepStop();
    for (const line of this.lines) {
      line.setAttribute("x1", now);
      line.setAttribute("x2", now);
    }
    const [local, global] = [this.run.local[now], this.run.global[now]].map((v) => (v === null ? "–" : v.toFixed(2)));
    this.readout.textContent = `local@1 ${local}, global@1 ${global}`;
    const done = step > this.run.steps ? ", run over" : "";
    this.status.textContent = `step ${now} of ${this.run.steps}, ${settled}/${opened} settled, ${fresh} new${done}`;
  }

  look(index, kind, text, sure) {
    const look = `${kind}|${sure}|${text}`;
    if (this.looks[index] === look) return;
    this.looks[index] = look;
    const span = this.spans[index];
    span.hidden = kind === "gone";
    span.textContent = text;
    const breaks = text.includes("\n") && text.trim() === "" ? " breaks" : "";
    const unlikely = sure < UNLIKELY ? " unlikely" : "";
    span.className = `cell ${kind}${breaks}${unlikely}`;
    span.style.setProperty("--doubt-share", (0.65 * (1 - sure)).toFixed(3));
  }

  mark(index, differs) {
    this.spans[index].classList.toggle("differs", differs);
  }

  // The live cells from left to right: position in the row -> index of the cell.
  row() {
    return this.states.flatMap(({ kind }, index) => (kind === "gone" ? [] : [index]));
  }

  orderMap() {
    const { run } = this;
    const end = run.steps;
    const live = run.cells.flatMap((cell, index) => (isThere(cell, end) ? [index] : []));
    const wasOpen = (index) => run.cells[index][0] > 0 || run.cells[index][2] === null || run.cells[index][3].length > 0;
    const gap = Math.max(1, live.filter(wasOpen).length / 40);
    const places = new Map(), gaps = [];
    let height = 0, isAfterGiven = false;
    for (const index of live) {
      if (!wasOpen(index)) isAfterGiven = true;
      else {
        if (isAfterGiven && places.size > 0) {
          gaps.push(height + gap / 2);
          height += gap;
        }
        isAfterGiven = false;
        places.set(index, height);
        height += 1;
      }
    }
    this.places = places;
    height = Math.max(height, 1);
    const width = Math.max(end, 1);
    const svg = drawing("svg", { viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: "none", role: "img" });
    svg.setAttribute("aria-label", "Order map: at which step each position was committed");
    for (const y of gaps) svg.append(drawing("line", { class: "gap", x1: 0, x2: width, y1: y, y2: y }));
    const w = Math.max(1, width / 110), h = Math.max(1, height / 90);
    const shades = Array.from({ length: 5 }, () => []), undone = [];
    places.forEach((place, index) => {
      for (const [step, token, sure] of run.cells[index][3]) {
        const path = `M${round(step - 0.5 - w / 2)} ${round(place + 0.5 - h / 2)}h${round(w)}v${round(h)}h${round(-w)}z`;
        if (token === null) undone.push(path);
        else shades[Math.min(4, Math.floor(sure * 5))].push(path);
      }
    });
    shades.forEach((paths, shade) => {
      if (paths.length === 0) return;
      svg.append(drawing("path", { d: paths.join(""), class: "points", opacity: 0.3 + 0.175 * shade }));
    });
    if (undone.length > 0) svg.append(drawing("path", { d: undone.join(""), class: "undo" }));
    this.pointer = drawing("line", { class: "row", x1: 0, x2: width, y1: -1, y2: -1 });
    svg.append(this.pointer);
    const told = ["Order: stronger is surer"];
    if (undone.length > 0) told.push("hollow is masked again");
    if (gaps.length > 0) told.push("a dotted rule stands for given text");
    const caption = element("figcaption", "", told.join(", "));
    return this.figure("order", svg, ["first", "last"], caption, height, Math.ceil); // step k is the column k - 1 … k
  }

  arNess() {
    const { run } = this;
    const width = Math.max(run.steps, 1);
    const svg = drawing("svg", { viewBox: `0 -0.05 ${width} 1.1`, preserveAspectRatio: "none", role: "img" });
    svg.setAttribute("aria-label", "AR-ness of the run so far, over its steps");
    svg.append(drawing("line", { class: "one", x1: 0, x2: width, y1: 0, y2: 0 }));
    for (const name of ["local", "global"]) {
      const points = run[name].flatMap((value, step) => (value === null ? [] : [`${step},${round(1 - value)}`]));
      svg.append(drawing("polyline", { class: name, points: points.join(" ") }));
    }
    const caption = element("figcaption");
    this.readout = element("span", "readout");
    caption.append("AR-ness of the answer so far: ", this.readout, element("br"), element("span", "key"), " local ");
    caption.append(element("span", "key dashed"), " global; 1 is left to right");
    if (run.ties) caption.append("; the tokens of one step count from left to right");
    return this.figure("ar-ness", svg, ["1", "0"], caption, 2, Math.round);
  }

  figure(name, svg, [high, low], caption, height, toStep) {
    const figure = element("figure", name);
    const plot = element("div", "plot");
    const now = drawing("line", { class: "now", x1: 0, x2: 0, y1: -1, y2: height });
    this.lines.push(now);
    svg.append(now);
    plot.append(svg, element("span", "high", high), element("span", "low", low));
    plot.append(element("span", "from", "step 0"), element("span", "to", String(this.run.steps)));
    plot.addEventListener("click", (event) => {
      const box = svg.getBoundingClientRect();
      stop();
      go(Math.min(this.run.steps, toStep(((event.clientX - box.left) / box.width) * this.run.steps)));
    });
    figure.append(plot, caption);
    return figure;
  }

  point(index) {
    const place = this.places.get(index);
    const y = place === undefined ? -1 : place + 0.5;
    this.pointer.setAttribute("y1", y);
    this.pointer.setAttribute("y2", y);
  }

  // What is to be said about a cell, as [name, value] pairs.
  facts(index) {
    const { run } = this;
    const [, , given, events] = run.cells[index];
    const { kind, token, event } = this.states[index];
    const facts = [["position", this.row().indexOf(index)]];
    if (token !== null) facts.unshift(["text", visible(run, token)]);
    if (kind === "given") return [...facts, ["state", "given"]];
    const commits = events.filter((e) => e[1] !== null).map((e) => e[0]);
    if (token === null) {
      const next = commits.find((step) => step > now);
      const was = kind === "undone" ? "masked again in this step" : "masked";
      return [...facts, ["state", next === undefined ? was : `${was}, settles in step ${next}`]];
    }
    facts.push(["step", commits.length > 1 ? `${event[0]} (of ${commits.join(", ")})` : event[0]]);
    facts.push(["confidence", percent(event[2])], ["entropy", `${event[3].toFixed(3)} nats`]);
    const others = event[4] ?? [];
    if (others.length > 0) {
      facts.push(["runners-up", others.map(([id, p]) => `${visible(run, id)}  ${percent(p)}`).join("\n")]);
    }
    if (given !== null) facts.push(["given", visible(run, given)]);
    return facts;
  }
}

const round = (value) => Math.round(value * 1e4) / 1e4;
const percent = (share) => `${(100 * share).toFixed(1)} %`;

// --- the tooltip ---------------------------------------------------------------------------------------------------

const tip = byId("tip");
const bar = document.querySelector(".bar");
let shown = null; // [view, index] of the cell that the tooltip is about

function tell(view, index) {
  hush();
  shown = [view, index];
  const span = view.spans[index];
  span.classList.add("shown");
  span.setAttribute("aria-describedby", "tip");
  view.point(index);
  const list = element("dl");
  for (const [name, value] of view.facts(index)) {
    const isText = name === "text" || name === "runners-up" || name === "given";
    list.append(element("dt", "", name), element("dd", isText ? "text" : "", String(value)));
  }
  tip.replaceChildren(list);
  place();
}

// Beside its cell; nowhere while that is out of sight.
function place() {
  const [view, index] = shown;
  const span = view.spans[index];
  const box = span.getClientRects()[0] ?? span.getBoundingClientRect();
  tip.hidden = box.bottom < bar.getBoundingClientRect().bottom || box.top > innerHeight;
  if (tip.hidden) return;
  const { width, height } = tip.getBoundingClientRect();
  const left = Math.min(Math.max(8, box.left), innerWidth - width - 8);
  const below = box.bottom + 8;
  tip.style.left = `${Math.max(4, left)}px`;
  tip.style.top = `${below + height < innerHeight ? below : Math.max(4, box.top - height - 8)}px`;
}

function hush() {
  if (shown === null) return;
  const [view, index] = shown;
  view.spans[index].classList.remove("shown");
  view.spans[index].removeAttribute("aria-describedby");
  view.point(-1);
  shown = null;
  tip.hidden = true;
}

function cellOf(target) {
  const span = target instanceof Element ? target.closest(".canvas .cell") : null;
  return span === null ? null : [views[span.closest(".canvas").dataset.run], Number(span.dataset.index)];
}

for (const name of ["pointerover", "focusin"]) {
  byId("runs").addEventListener(name, (event) => {
    const found = cellOf(event.target);
    if (found !== null) tell(...found);
    else if (name === "pointerover" && !tip.hidden) hush();
  });
}
byId("runs").addEventListener("pointerleave", hush);
byId("runs").addEventListener("focusout", hush);
addEventListener("scroll", () => {
  if (shown === null) return;
  const [view, index] = shown;
  if (view.spans[index] === document.activeElement) place();
  else hush();
}, { passive: true });

function neighbour(direction) {
  const found = cellOf(document.activeElement);
  if (found === null) return false;
  const [view, index] = found;
  const row = view.row().filter((other) => view.isRendered(other));
  if (row.length === 0) return false;
  const next = row[Math.min(row.length - 1, Math.max(0, row.indexOf(index) + direction))];
  view.moveStop(next);
  view.spans[next].focus();
  return true;
}

// --- playing -------------------------------------------------------------------------------------------------------

const [play, scrub, where, speed, part] = ["play", "scrub", "where", "speed", "part"].map(byId);
let now = 0, playing = false, begun = 0, from = 0;

function go(step) {
  now = Math.min(last, Math.max(0, step));
  for (const view of views) view.show(now);
  compare();
  scrub.value = now;
  scrub.setAttribute("aria-valuetext", `step ${now} of ${last}`);
  where.textContent = `step ${now} of ${last}`;
  if (shown !== null) {
    const [view, index] = shown;
    if (view.states[index].kind === "gone") hush();
    else tell(view, index);
  }
}

// The token of a cell as a text that two models' tokens can be compared by; null for a mask, undefined for no cell.
function said(view, index) {
  const token = view.states[index]?.token;
  return token === null || token === undefined ? token : JSON.stringify(pieceOf(view.run, token));
}

// How many positions a run was given before its first mask.
function lead(run) {
  const first = run.cells.findIndex(([born, , token]) => born === 0 && token === null);
  return first < 0 ? run.cells.length : first;
}

// Which cells hold another token than the other run's at the same place of the answer; prompts may differ in length.
function compare() {
  if (views.length < 2) return;
  const rows = views.map((view) => view.row());
  views.forEach((view, which) => {
    const [mine, theirs, other] = [rows[which], rows[1 - which], views[1 - which]];
    const shift = lead(other.run) - lead(view.run);
    mine.forEach((index, position) => view.mark(index, said(view, index) !== said(other, theirs[position + shift])));
  });
}

function start() {
  if (now >= last) go(0);
  playing = true;
  play.textContent = "Pause";
  from = now;
  begun = performance.now();
  requestAnimationFrame(turn);
}

function stop() {
  playing = false;
  play.textContent = "Play";
}

function turn(time) {
  if (!playing) return;
  const step = from + Math.floor(((time - begun) / 1000) * Number(speed.value));
  if (step > now) go(step);
  if (now >= last) stop();
  else requestAnimationFrame(turn);
}

const toggle = () => (playing ? stop() : start());
const jump = (step) => {
  stop();
  go(step);
};

play.addEventListener("click", toggle);
byId("back").addEventListener("click", () => jump(now - 1));
byId("forward").addEventListener("click", () => jump(now + 1));
scrub.addEventListener("input", () => jump(Number(scrub.value)));
speed.addEventListener("change", () => {
  from = now;
  begun = performance.now();
});
addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const { target } = event;
  if (target === speed || (event.key === " " && target instanceof Element && target.closest("button, summary"))) return;
  const keys = {
    " ": toggle,
    ArrowLeft: () => jump(now - 1),
    ArrowRight: () => jump(now + 1),
    Home: () => jump(0),
    End: () => jump(last),
    Escape: hush,
    ArrowUp: () => neighbour(-1),
    ArrowDown: () => neighbour(1),
  };
  const isForUs = Object.hasOwn(keys, event.key);
  if (isForUs && keys[event.key]() !== false) event.preventDefault();
});

// --- begin ---------------------------------------------------------------------------------------------------------

const views = data.runs.map((run, number) => new View(run, number));
byId("runs").replaceChildren(...views.map((view) => view.root));
byId("runs").classList.toggle("two", views.length > 1);
scrub.max = last;
for (const rate of [...new Set([1, 2, 5, 10, 20, 50, 100, data.speed])].sort((a, b) => a - b)) {
  const option = element("option", "", `${rate}/s`);
  option.value = rate;
  option.selected = rate === data.speed;
  speed.append(option);
}
byId("legend-end").hidden = data.runs.every((run) => run.ends.length === 0);
byId("legend-undone").hidden = data.runs.every((run) => run.cells.every((cell) => cell[3].every((e) => e[1] !== null)));
byId("legend-differs").hidden = views.length < 2;
if (views.length > 1) {
  part.hidden = false;
  part.disabled = data.parts === null;
  part.textContent = data.parts === null ? "same run" : data.parts === 0 ? "different canvases" : `part at step ${data.parts}`;
  part.addEventListener("click", () => jump(data.parts));
  byId("mark").hidden = data.parts === null;
  byId("mark").style.left = `calc(8px + (100% - 16px) * ${(data.parts ?? 0) / Math.max(last, 1)})`; // as the thumb goes
}
// What takes the focus is scrolled to below the bar, which is higher on a narrow screen.
new ResizeObserver(() => {
  document.documentElement.style.scrollPaddingTop = `${bar.offsetHeight + 8}px`;
}).observe(bar);
go(0);
})();
