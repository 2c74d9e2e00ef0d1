// The circuit as a picture to work with. Nothing here asks the server for hovering, moving, tracing
// or filtering; it is told the view that results, some time after the user has stopped, so that
// details, links and files can follow.
//
// Drawn on two stacked canvases: the edges, which cost most, are a bitmap that is only moved while
// the user moves it and made again, a slice a frame, when he rests; nodes and what is highlighted are
// drawn every frame. All text that came from a run goes in by textContent.

export const FOR = "#2b83ba", AGAINST = "#d95f02", GREY = "#8c8c8c";
const HALO = 'stroke="#fff" stroke-width="3" stroke-linejoin="round" paint-order="stroke"';
export const CLASSES = {
  kept: { colour: "#2b83ba", title: "kept" },
  gone: { colour: "#8c8c8c", title: "gone" },
  back: { colour: "#d95f02", title: "back after NF4" },
  new: { colour: "#009e73", title: "new" },
};
const STAGES = ["before", "edited", "nf4"];
const TITLES = { before: "Before", edited: "After the edit", nf4: "After NF4", all: "All three" };
const PIXELS = 4e6, SHADES = 15; // of a PNG: thousands of fine lines in all shades would be 10 MB
const ROW = 44, PATHS = 5, DRAFT = 600, CROWD = 1500, NAMED = 8, SLICE = 9, REST = 140, TELL = 450;
const INK = { head: "circle", mlp: "square", embedding: "diamond", logits: "diamond" };

// ---- What the picture is of ------------------------------------------------------------------

/** Nodes and edges as objects, from the columns that came. */
export function model(data) {
  const nodes = data.nodes.map(([name, kind, layer, head], i) => ({ i, name, kind, layer, head }));
  const byName = new Map(nodes.map((node) => [node.name, node]));
  const classes = data.diff && data.diff.classes;
  const edges = data.edges.source.map((source, i) => {
    const destination = data.edges.destination[i], [into, targets] = data.destinations[destination];
    const edge = { i, source, destination, into, targets, code: data.edges.code[i] };
    edge.score = data.edges.score[i];
    edge.rank = i < data.ranked ? i : Infinity;
    edge.kept = data.edges.kept[i] === 1;
    if (classes) {
      edge.class = classes[i] || null;
      edge.scores = data.diff.scores.map((column) => column[i]);
      edge.member = data.diff.member[i];
    }
    return edge;
  });
  return { nodes, byName, edges, logits: nodes.length - 1, layers: data.layers, heads: data.heads };
}

/** The edges on a path from the embedding to the logits. Nodes are numbered along the computation. */
export function pruned(graph, edges) {
  const ordered = [...edges].sort((a, b) => a.source - b.source);
  const ahead = new Uint8Array(graph.nodes.length), back = new Uint8Array(graph.nodes.length);
  ahead[0] = back[graph.logits] = 1;
  for (const edge of ordered) if (ahead[edge.source]) for (const t of edge.targets) ahead[t] = 1;
  for (const edge of ordered.reverse())
    if (edge.targets.some((t) => back[t])) back[edge.source] = 1;
  return edges.filter((e) => ahead[e.source] && e.targets.some((t) => back[t]));
}

/** The edges that lead to a node, away from it, or both. */
export function traced(edges, node, direction) {
  const ordered = [...edges].sort((a, b) => a.source - b.source), found = new Set();
  if (direction !== "upstream") {
    const reached = new Set([node]);
    for (const edge of ordered)
      if (reached.has(edge.source)) {
        found.add(edge);
        for (const t of edge.targets) reached.add(t);
      }
  }
  if (direction !== "downstream") {
    const reached = new Set([node]);
    for (const edge of ordered.reverse())
      if (edge.targets.some((t) => reached.has(t))) {
        found.add(edge);
        reached.add(edge.source);
      }
  }
  return edges.filter((edge) => found.has(edge));
}

/** Strongest paths from the embedding to the logits, through a node where one is given.
 *
 * A path is as strong as its weakest edge. After each path its weakest edge is taken out, so that
 * the next one is another. Returns [{edges, nodes, strength}], the strongest first.
 */
export function paths(graph, edges, through = null, most = PATHS) {
  let left = [...edges].sort((a, b) => a.source - b.source);
  const found = [];
  const widest = (from, to) => {
    const best = new Float64Array(graph.nodes.length), step = new Array(graph.nodes.length);
    best[from] = Infinity;
    for (const edge of left) {
      const strength = Math.min(best[edge.source], Math.abs(edge.score));
      for (const t of edge.targets) if (strength > best[t]) [best[t], step[t]] = [strength, edge];
    }
    const path = [], nodes = [to];
    for (let at = to; at !== from; at = step[at].source) {
      if (!step[at]) return null;
      path.unshift(step[at]);
      nodes.unshift(step[at].source);
    }
    return { edges: path, nodes };
  };
  while (found.length < most) {
    const middle = through === null || through === 0 ? graph.logits : through;
    const parts = [widest(0, middle)];
    if (middle !== graph.logits) parts.push(widest(middle, graph.logits));
    if (parts.some((part) => part === null)) break;
    const path = parts.flatMap((part) => part.edges);
    const nodes = [...parts[0].nodes, ...(parts[1] ? parts[1].nodes.slice(1) : [])];
    const weakest = path.reduce((a, b) => (Math.abs(b.score) < Math.abs(a.score) ? b : a));
    found.push({ edges: path, nodes, strength: Math.abs(weakest.score) });
    left = left.filter((edge) => edge !== weakest);
  }
  return found;
}

/** The edges of a view: its size, stage and filters; without the trace. */
export function selected(graph, view) {
  let edges;
  if (view.stage) {
    const at = STAGES.indexOf(view.stage);
    edges = graph.edges.filter((e) => (at < 0 ? e.member : e.member & (1 << at)));
    if (view.class) edges = edges.filter((e) => e.class === view.class);
  } else if (view.n === null) edges = graph.edges.filter((e) => e.kept);
  else edges = pruned(graph, graph.edges.filter((e) => e.rank < view.n));
  const passes = (i) => {
    const node = graph.nodes[i];
    if (node.kind === "embedding" || node.kind === "logits") return true;
    if (node.layer < view.from || node.layer > view.to) return false;
    return view.kind === "all" || view.kind === node.kind;
  };
  return edges.filter(
    (e) =>
      passes(e.source) && e.targets.some(passes) &&
      (view.sign === "all" || (view.sign === "for") === scoreAt(e, view) <= 0)
  );
}

/** An edge's score in the model that is looked at. */
export function scoreAt(edge, view) {
  const at = STAGES.indexOf(view.stage);
  if (at >= 0) return edge.scores[at];
  if (!view.stage) return edge.score;
  return edge.scores.reduce((a, b) => (Math.abs(b) > Math.abs(a) ? b : a));
}

/** Edges as lines between nodes: those of q, k and v are summed, and those of a group's members. */
export function lines(graph, edges, view, groupOf = new Map()) {
  const found = new Map();
  const shownAs = (i) => groupOf.get(i) ?? i;
  for (const edge of edges)
    for (const target of edge.targets) {
      if (!inside(graph, target, view)) continue;
      const a = shownAs(edge.source), b = shownAs(target), key = a * 2 ** 20 + b;
      if (a === b) continue;
      let line = found.get(key);
      if (!line) found.set(key, (line = { source: a, target: b, score: 0, parts: [], class: null }));
      const score = scoreAt(edge, view);
      line.score += score;
      line.parts.push([edge, score]);
      if (edge.class && RANK[edge.class] > (RANK[line.class] ?? -1)) line.class = edge.class;
    }
  return [...found.values()];
}
const RANK = { kept: 0, gone: 1, new: 2, back: 3 }; // of a line of several, what matters most

function inside(graph, i, view) {
  const node = graph.nodes[i];
  if (node.kind === "embedding" || node.kind === "logits") return true;
  const there = node.layer >= view.from && node.layer <= view.to;
  return there && (view.kind === "all" || view.kind === node.kind);
}

/** What is known of the faithfulness of the best n edges: measured, or what it lies between. */
export function known(curve, n) {
  let below = null, above = null;
  for (const point of curve) {
    if (point.n === n) return { measured: point };
    if (point.n < n) below = point;
    else if (!above) above = point;
  }
  return { below, above };
}

// ---- Where it is ------------------------------------------------------------------------------

/** A node's place in the world, pixels at zoom 1; layers go up, heads go right, the MLP last. */
export function place(graph, node, column) {
  const middle = ((graph.heads - 1) / 2) * column;
  if (node.kind === "embedding") return [middle, (graph.layers + 0.7) * ROW];
  if (node.kind === "logits") return [middle, -1.1 * ROW];
  const y = (graph.layers - 1 - node.layer) * ROW;
  return node.kind === "mlp" ? [(graph.heads + 0.4) * column, y - 0.3 * ROW] : [node.head * column, y];
}

/** A line's control point: one that goes straight up bends, else it runs through what is between. */
export function bend([x0, y0], [x1, y1], column) {
  const aside = Math.abs(x1 - x0) < column / 2 ? Math.min(0.14 * Math.abs(y1 - y0), 1.6 * column) : 0;
  return [(x0 + x1) / 2 + aside, (y0 + y1) / 2];
}

/** Squared distance from a point to a quadratic curve. */
export function distance2(x, y, [ax, ay], [cx, cy], [bx, by]) {
  let least = Infinity, px = ax, py = ay;
  for (let i = 1; i <= 12; i++) {
    const t = i / 12, s = 1 - t;
    const qx = s * s * ax + 2 * s * t * cx + t * t * bx, qy = s * s * ay + 2 * s * t * cy + t * t * by;
    const dx = qx - px, dy = qy - py, length = dx * dx + dy * dy || 1;
    const along = Math.max(0, Math.min(1, ((x - px) * dx + (y - py) * dy) / length));
    const ex = x - px - along * dx, ey = y - py - along * dy;
    least = Math.min(least, ex * ex + ey * ey);
    [px, py] = [qx, qy];
  }
  return least;
}

/** What lies nearest a point of the world: a node first, then a line, then a node farther off. */
export function nearest(scene, x, y, zoom) {
  const near = 14 / zoom, line = 7 / zoom, far = 30 / zoom;
  let node = null, least = far * far;
  for (const [i, [nx, ny]] of scene.places) {
    const d = (nx - x) ** 2 + (ny - y) ** 2;
    if (d < least) [node, least] = [i, d];
  }
  if (node !== null && least <= near * near) return { node };
  let found = null, closest = line * line;
  for (const each of scene.lines) {
    const { a, c, b } = each;
    if (x < Math.min(a[0], b[0], c[0]) - line || x > Math.max(a[0], b[0], c[0]) + line) continue;
    if (y < Math.min(a[1], b[1]) - line || y > Math.max(a[1], b[1]) + line) continue;
    const d = distance2(x, y, a, c, b);
    if (d < closest) [found, closest] = [each, d];
  }
  if (found) return { line: found };
  return node === null ? {} : { node };
}

// ---- Words --------------------------------------------------------------------------------------

const signed = (x) => (x < 0 ? "−" : "+") + Math.abs(x).toPrecision(3);
const percent = (x, digits = 0) => `${(100 * x).toFixed(digits)}\u00a0%`;
const many = (n, what) => `${n.toLocaleString("en")} ${what}${n === 1 ? "" : "s"}`;
const effect = (score) => (score <= 0 ? "carries the answer" : "works against it");

export function kindOf(node) {
  if (node.kind === "embedding") return "the token embedding";
  if (node.kind === "logits") return "the model's prediction";
  if (node.kind === "mlp") return `the MLP of layer ${node.layer}`;
  return `attention head ${node.head} of layer ${node.layer}`;
}

const escaped = (text) =>
  String(text).replace(/[&<>"']/g, (c) => `&#${c.charCodeAt(0)};`);

/** An element with properties and children; text is only ever set as text. */
function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties))
    if (name in element && !name.startsWith("aria")) element[name] = value;
    else element.setAttribute(name, value);
  element.append(...children.filter((child) => child !== null));
  return element;
}

// ---- The instrument ---------------------------------------------------------------------------

export class Instrument {
  constructor(root, data, tell) {
    this.tell = tell;
    this.sent = [];
    this.zoom = 1;
    this.at = [0, 0];
    this.active = false;
    this.pointers = new Map();
    this.root = root;
    this.build();
    this.take(data, true);
    this.observer = new ResizeObserver(() => this.resize());
    this.observer.observe(this.stage);
  }

  /** New data from the page: the view stays the user's, except where the page itself chose. */
  take(data, first = false) {
    const text = JSON.stringify(data);
    this.theme = getComputedStyle(this.root);
    if (text === this.text) return this.changed(false); // another theme, or nothing
    this.text = text;
    const fresh = !first && data.diff && data.diff.method !== this.data.diff?.method;
    this.data = data;
    this.graph = model(data);
    this.curve = data.curve.map(([n, value, low, high]) => ({ n, value, low, high }));
    if (first) {
      const all = { n: null, stage: null, class: null, from: 0, to: data.layers - 1 };
      this.view = { ...all, kind: "all", sign: "all", trace: "off", ...data.view };
      this.locked = this.graph.byName.get(data.node)?.i ?? null;
      this.cursor = this.locked;
    } else if (!this.sent.includes(data.node) && data.node !== this.nameLocked()) {
      this.locked = this.cursor = this.graph.byName.get(data.node)?.i ?? null;
      this.openGroup = null;
    }
    this.sent = this.sent.filter((name) => name !== data.node);
    if (first || !this.unsaved) this.marks = structuredClone(data.marks);
    if (!data.diff) this.view.stage = this.view.class = null;
    if (fresh && !this.view.stage) this.view.stage = "all"; // an edit was chosen to be looked at
    this.controls();
    this.changed(first, !first && !fresh);
  }

  nameLocked() {
    return this.locked === null ? null : this.graph.nodes[this.locked].name;
  }

  build() {
    const canvas = () => make("canvas");
    this.edges = canvas();
    this.top = canvas();
    this.top.tabIndex = 0;
    this.top.setAttribute("role", "application");
    this.top.setAttribute("aria-label", "Graph of the circuit");
    this.hint = make("p", { className: "hint", id: "hint" });
    this.top.setAttribute("aria-describedby", "hint");
    this.hint.textContent = matchMedia("(pointer: coarse)").matches
      ? "Tap a node to open it; then one finger moves the graph. Two fingers zoom. Tap beside the " +
        "graph to scroll the page again."
      : "Click the graph to zoom with the wheel. Arrows go from node to node, Enter opens one, T " +
        "traces, P pins, + and − zoom, 0 shows all, Escape lets go.";
    this.stage = make("div", { className: "stage" }, this.edges, this.top);
    this.bar = make("div", { className: "bar" });
    this.said = make("p", { className: "said" });
    this.said.setAttribute("role", "status");
    this.legend = make("p", { className: "legend" });
    this.side = make("section", { className: "side", tabIndex: 0 });
    this.side.setAttribute("aria-label", "What is under the pointer, or open");
    const left = make("div", {}, this.stage, this.legend, this.hint);
    this.root.replaceChildren(this.bar, this.said, make("div", { className: "body" }, left, this.side));
    this.listen();
  }

  // -- controls

  controls() {
    const { data, view } = this, shape = JSON.stringify([data.layers, data.ranked, !!data.diff]);
    if (shape === this.shape) return this.follow();
    this.shape = shape;
    this.inputs = {};
    const field = (name, title, element, help = "") => {
      this.inputs[name] = element;
      return make("label", { title: help }, make("span", { textContent: title }), element);
    };
    const range = (name, title, min, max, step, change, help) => {
      const element = make("input", { type: "range", min, max, step });
      element.addEventListener("input", () => change(+element.value));
      return field(name, title, element, help);
    };
    const choice = (name, title, options, change, help) => {
      const items = options.map(([value, text]) => make("option", { value, textContent: text }));
      const element = make("select", {}, ...items);
      element.addEventListener("change", () => change(element.value));
      return field(name, title, element, help);
    };
    const button = (text, act, help = "") => {
      const element = make("button", { type: "button", textContent: text, title: help });
      element.addEventListener("click", act);
      return element;
    };
    const set = (values) => {
      Object.assign(this.view, values);
      this.follow();
      this.changed();
    };
    this.set = set;
    const layers = Array.from({ length: data.layers }, (_, i) => [i, `${i}`]);
    const most = Math.log(data.ranked);
    const parts = [
      range("n", "Number of edges", 0, 1000, 1,
        (x) => set({ n: Math.max(1, Math.round(Math.exp((x / 1000) * most))) }),
        "The best edges by |score|, without those on no path from the embedding to the logits"),
      range("faithful", "Faithfulness at least", 0, 100, 1, (x) => set({ n: this.reaching(x / 100) }),
        "The smallest number of edges that was measured to keep this share of the behaviour"),
      (this.inputs.found = button("The circuit found", () => set({ n: null }))),
      choice("from", "Layers from", layers, (x) => set({ from: +x, to: Math.max(+x, view.to) })),
      choice("to", "to", layers, (x) => set({ to: +x, from: Math.min(+x, view.from) })),
      choice("kind", "Nodes", [["all", "all"], ["head", "attention heads"], ["mlp", "MLPs"]],
        (kind) => set({ kind })),
      choice("sign", "Edges that", [["all", "do one or the other"], ["for", "carry the answer"],
        ["against", "work against it"]], (sign) => set({ sign })),
      choice("trace", "Trace", [["off", "off"], ["upstream", "what leads to the node"],
        ["downstream", "what it leads to"], ["both", "both ways"], ["paths", "strongest paths"]],
        (trace) => set({ trace }), "Of the open node; strongest paths also without one"),
    ];
    if (data.diff) {
      const stages = [["", "the circuit alone"], ...Object.entries(TITLES)];
      parts.push(
        choice("stage", "Compare", stages, (stage) => set({ stage: stage || null, class: null }),
          `The unedited model, after ${data.diff.method}, and that in NF4`),
        choice("class", "Show", [["", "all changes"],
          ...Object.entries(CLASSES).map(([name, c]) => [name, c.title])],
          (name) => set({ class: name || null, stage: this.view.stage || "all" })),
        (this.inputs.play = button("Play", () => this.play(), "Before, after the edit, after NF4"))
      );
    }
    parts.push(
      make("span", { className: "tools" },
        button("+", () => this.zoomBy(1.4), "Zoom in"), button("−", () => this.zoomBy(1 / 1.4), "Zoom out"),
        button("Fit", () => this.fit(), "Show the whole graph"),
        button("SVG", () => this.save("svg"), "Save the picture as SVG"),
        button("PNG", () => this.save("png"), "Save the picture as PNG"))
    );
    this.bar.replaceChildren(...parts);
    this.follow();
  }

  /** The controls say what the view is. */
  follow() {
    const { view, inputs, data } = this;
    const n = view.n ?? this.graph.edges.filter((e) => e.kept).length;
    inputs.n.value = (1000 * Math.log(Math.max(n, 1))) / Math.log(data.ranked);
    inputs.n.setAttribute("aria-valuetext", many(n, "edge"));
    const about = view.n === null ? data.found : known(this.curve, view.n).measured;
    const value = about ?? known(this.curve, view.n).below;
    if (value && value.value !== null) inputs.faithful.value = Math.round(100 * value.value);
    inputs.faithful.setAttribute("aria-valuetext", `${inputs.faithful.value} %`);
    for (const name of ["n", "faithful", "found"]) inputs[name].disabled = view.stage !== null;
    for (const name of ["from", "to", "kind", "sign", "trace"]) inputs[name].value = view[name];
    if (inputs.stage) {
      inputs.stage.value = view.stage ?? "";
      inputs.class.value = view.class ?? "";
    }
  }

  /** The smallest measured number of edges that is at least so faithful; the most where none is. */
  reaching(value) {
    const found = this.curve.find((p) => p.n <= this.data.ranked && p.value >= value);
    return (found ?? this.curve.filter((p) => p.n <= this.data.ranked).at(-1)).n;
  }

  play() {
    clearTimeout(this.playing);
    let at = 0;
    const forth = this.view.stage !== "nf4"; // and back, when it has been seen
    const order = forth ? STAGES : [...STAGES].reverse();
    const step = () => {
      this.set({ stage: order[at], class: null });
      if (++at < order.length) this.playing = setTimeout(step, 1100);
    };
    step();
  }

  // -- what is shown

  changed(refit = false, quiet = false) {
    const { graph, view } = this, column = this.column ?? 60;
    let edges = selected(graph, view);
    const all = edges;
    this.found = null;
    if (view.trace === "paths") {
      this.found = paths(graph, edges, this.locked);
      const on = new Set(this.found.flatMap((path) => path.edges));
      edges = edges.filter((e) => on.has(e));
    } else if (view.trace !== "off" && this.locked !== null)
      edges = traced(edges, this.locked, view.trace);
    const members = (this.members = new Map()), places = new Map();
    this.groups = [];
    for (const [name, names] of Object.entries(this.marks.groups)) {
      const ids = names.map((n) => graph.byName.get(n)?.i).filter((i) => i !== undefined);
      if (!ids.length) continue;
      const id = graph.nodes.length + this.groups.length;
      this.groups.push({ i: id, name, kind: "group", members: ids });
      for (const i of ids) members.set(i, id);
    }
    const found = lines(graph, edges, view, members);
    const where = (i) => {
      if (!places.has(i)) {
        const group = i >= graph.nodes.length && this.groups[i - graph.nodes.length];
        const spots = (group ? group.members : [i]).map((m) => place(graph, graph.nodes[m], column));
        const mean = (k) => spots.reduce((sum, p) => sum + p[k], 0) / spots.length;
        places.set(i, [mean(0), mean(1)]);
      }
      return places.get(i);
    };
    const largest = Math.max(...found.map((l) => Math.abs(l.score)), 1e-30);
    for (const line of found) {
      [line.a, line.b] = [where(line.source), where(line.target)];
      line.c = bend(line.a, line.b, column);
      line.share = Math.sqrt(Math.abs(line.score) / largest);
      const kind = view.stage === "all" && CLASSES[line.class];
      line.colour = kind ? kind.colour : line.score <= 0 ? FOR : AGAINST;
      // of thousands most are hairlines, which are also three times quicker to draw
      line.width = found.length > CROWD ? 0.5 + 5.5 * line.share ** 2 : 0.6 + 5 * line.share;
    }
    found.sort((a, b) => a.share - b.share);
    for (const name of this.marks.pins) {
      const node = graph.byName.get(name);
      if (node && !members.has(node.i)) where(node.i);
    }
    if (this.locked !== null && !members.has(this.locked)) where(this.locked);
    const sums = new Map();
    for (const line of found) sums.set(line.source, (sums.get(line.source) ?? 0) + line.score);
    const near = edges === all ? found : lines(graph, all, view, members); // a trace hides none of them
    this.scene = { edges, all, lines: found, near, places, sums };
    this.hover = null;
    if (refit && this.width) this.fit();
    this.say();
    this.describe();
    this.stale = true;
    this.draw();
    if (!quiet) this.later();
  }

  /** Tell the page, when the user has rested for a while. */
  later(now = false) {
    clearTimeout(this.telling);
    const send = () => {
      const { view, scene } = this, node = this.nameLocked();
      const told = { ...view, node, codes: scene.edges.map((e) => e.code) };
      const text = JSON.stringify(told);
      if (text === this.told) return;
      const plain = view.n === null && view.trace === "off" && !view.stage && !this.filtered();
      if (this.told === undefined && !this.touched && plain) return void (this.told = text); // as it came
      this.told = text;
      this.sent.push(node);
      this.tell("view", told);
    };
    if (now) send();
    else this.telling = setTimeout(send, TELL);
  }

  say() {
    const { data, view, scene } = this, n = scene.edges.length;
    let text = `${many(n, "edge")} shown of ${data.total.toLocaleString("en")}`;
    if (!n && (this.filtered() || view.class)) text += ": none passes the filters";
    else if (!n && view.stage) text += `: here no edge is as strong as the weakest of the circuit ` +
      `found. “${TITLES.all}” shows those that are gone`;
    if (view.stage) {
      const at = STAGES.indexOf(view.stage) + 1;
      if (at) text = `${at} of ${STAGES.length}: ${TITLES[view.stage]} · ${text}`;
      const count = (name) => this.graph.edges.filter((e) => e.class === name).length;
      const each = Object.entries(CLASSES).map(([name, c]) => `${count(name)} ${c.title}`);
      text += ` · ${data.diff.method}: ${each.join(", ")} (an edge counts while |score| ≥ ` +
        `${data.diff.bar.toPrecision(2)}, the weakest of the circuit found)`;
    } else {
      const { measured, below, above } =
        view.n === null ? { measured: data.found } : known(this.curve, view.n);
      const whole = view.n === null ? "the circuit found" : `the best ${view.n.toLocaleString("en")}`;
      const span = (p) => (p.low === null ? "" : ` [${percent(p.low)}, ${percent(p.high)}]`);
      if (measured && measured.value !== null)
        text += ` · faithfulness of ${whole}: ${percent(measured.value)}${span(measured)}, measured`;
      else if (!measured) {
        const ends = [below, above].filter(Boolean);
        const at = ends.map((p) => `${percent(p.value)} at ${p.n.toLocaleString("en")}`).join(", ");
        text += ` · faithfulness of ${whole} was not measured; it was ${at}`;
      }
      const [at, now] = data.mask ?? [];
      const mask = view.n === null ? data.found.mask : at === view.n ? now : null;
      if (view.n !== null && at !== view.n) text += " · mask: counted when you rest";
      else if (!mask) text += view.n === null ? "" : " · no slice of it fits into the mask";
      if (mask) text += ` · mask ${many(mask[0], "parameter")}, ${percent(mask[1], 2)} of the model`;
      if (n < scene.all.length || this.filtered())
        text += " · faithfulness and mask are of all of them, before filters and trace";
    }
    this.said.textContent = text;
    const item = (colour, words) =>
      make("span", {}, make("i", { style: `background:${colour}` }), make("span", { textContent: words }));
    this.legend.replaceChildren(
      ...(view.stage === "all"
        ? Object.values(CLASSES).map((c) => item(c.colour, c.title))
        : [item(FOR, "carries the answer"), item(AGAINST, "works against it")]),
      make("span", { textContent: "● head  ■ MLP  ◆ embedding, logits" }));
    if (view.stage)
      this.legend.append(item("currentColor", "of a node's moved weights, those whose NF4 code changed"),
        make("span", { textContent: "size: weights that the edit moved" }));
  }

  filtered() {
    const { view } = this, whole = view.from === 0 && view.to === this.data.layers - 1;
    return !whole || view.kind !== "all" || view.sign !== "all";
  }

  /** The text beside: what is hovered, else what is open, else how to begin. */
  describe() {
    const kept = this.lockedLine ? { line: this.lockedLine } : { node: this.group()?.i ?? this.locked };
    const target = this.hover ?? kept;
    const parts = [];
    const heading = (text) => parts.push(make("h2", { textContent: text }));
    const say = (text) => parts.push(make("p", { textContent: text }));
    if (target.line) {
      const { line } = target;
      heading(`${this.title(line.source)} → ${this.title(line.target)}`);
      say(`Score ${signed(line.score)}: ${effect(line.score)}. Patched to its corrupt value, the ` +
        "edge would change the metric by so much.");
      const rows = line.parts.slice(0, 40).map(([edge, score]) => {
        const three = edge.scores
          ? ` (before ${signed(edge.scores[0])}, edited ${signed(edge.scores[1])}, NF4 ` +
            `${signed(edge.scores[2])}${edge.class ? `; ${CLASSES[edge.class].title}` : ""})` : "";
        return make("li", { textContent:
          `${this.graph.nodes[edge.source].name} → ${edge.into}: ${signed(score)}${three}` });
      });
      parts.push(make("ul", {}, ...rows));
    } else if (target.node !== null && target.node !== undefined) this.describeNode(target.node, parts);
    else {
      heading("Nothing is open");
      say("Move over the graph to read it; click a node or an edge to keep it here.");
      if (this.found) this.describePaths(parts);
    }
    // Where somebody writes on the node stays as it is: a new field has neither focus nor text.
    const written = this.side.querySelector("details.marks:focus-within");
    const at = parts.findIndex((part) => part.className === "marks" && part.dataset.node === written?.dataset.node);
    if (at < 0) return this.side.replaceChildren(...parts);
    for (const child of [...this.side.childNodes]) if (child !== written) child.remove();
    written.before(...parts.slice(0, at));
    written.after(...parts.slice(at + 1));
  }

  describePaths(parts) {
    parts.push(make("h3", { textContent: "Strongest paths" }));
    const items = this.found.map((path) => make("li", { textContent:
      `${path.nodes.map((i) => this.graph.nodes[i].name).join(" → ")} (weakest edge ` +
      `${path.strength.toPrecision(3)})` }));
    if (!items.length) parts.push(make("p", { textContent: "No path is left: show more edges." }));
    parts.push(make("ol", {}, ...items));
  }

  title(i) {
    return (this.graph.nodes[i] ?? this.groups[i - this.graph.nodes.length]).name;
  }

  describeNode(i, parts) {
    const { graph, scene, marks, data } = this, node = graph.nodes[i];
    const say = (text) => parts.push(make("p", { textContent: text }));
    parts.push(make("h2", { textContent: this.title(i) }));
    if (!node) {
      const group = this.groups[i - graph.nodes.length];
      say("A group that is drawn as one; its edges are sums.");
      const items = group.members.map((m) => make("li", {}, this.opener(m)));
      const ungroup = make("button", { type: "button", textContent: "Ungroup" });
      ungroup.addEventListener("click", () => {
        delete marks.groups[group.name];
        this.mark();
      });
      parts.push(make("ul", { className: "neighbours" }, ...items), group === this.group() ? ungroup : "");
    } else {
      const label = marks.labels[node.name];
      say(`This is ${kindOf(node)}${label ? `, labelled “${label}”` : ""}.`);
      const moved = data.diff?.moved[node.name];
      if (moved) say(`${data.diff.method} moved ${many(moved[0], "weight")} of it; ` +
        `${moved[1].toLocaleString("en")} of them changed their NF4 code.`);
    }
    const drawn = this.members.get(i) ?? i;
    if (drawn !== i) parts.push(make("p", {}, "It is drawn as a part of ", this.opener(drawn),
      ", whose score and edges these are."));
    if (scene.sums.has(drawn)) {
      const sum = scene.sums.get(drawn);
      say(`Score ${signed(sum)} over the edges shown: ${effect(sum)}.`);
    }
    if (i === this.locked && node) this.describeMarks(node, parts); // before lists that may be long
    const list = (title, found, other) => {
      found.sort((a, b) => Math.abs(b.score) - Math.abs(a.score));
      parts.push(make("h3", { textContent: `${title} ${many(found.length, "node")}` }));
      const some = i === this.locked || i === this.group()?.i ? found : found.slice(0, NAMED);
      const items = some.map((line) => make("li", {}, this.opener(line[other]),
        make("span", { textContent: ` ${signed(line.score)}` })));
      parts.push(make("ul", { className: "neighbours" }, ...items));
      if (some.length < found.length) say(`and ${found.length - some.length} more: click it for all.`);
    };
    list("Reads", scene.near.filter((l) => l.target === drawn), "source");
    list("Feeds", scene.near.filter((l) => l.source === drawn), "target");
    if (this.found) this.describePaths(parts);
  }

  /** A button that opens a node or a group. */
  opener(i) {
    const open = make("button", { type: "button", textContent: this.title(i) });
    open.addEventListener("click", () => this.lock({ node: i }));
    return open;
  }

  /** The group that is open. */
  group() {
    return this.groups.find((group) => group.name === this.openGroup);
  }

  /** Pin, label, note and group of the open node. */
  describeMarks(node, parts) {
    const { marks } = this, form = make("details", { className: "marks" });
    form.dataset.node = node.name;
    const pinned = marks.pins.includes(node.name);
    const pin = make("button", { type: "button", textContent: pinned ? "Unpin (P)" : "Pin (P)" });
    pin.addEventListener("click", () => this.pin(node));
    const field = (title, value, keep, long = false) => {
      const input = make(long ? "textarea" : "input", { value: value ?? "", maxLength: long ? 2000 : 60 });
      input.addEventListener("change", () => {
        keep(input.value.trim());
        this.mark();
      });
      form.append(make("label", {}, make("span", { textContent: title }), input));
    };
    const inGroup = Object.entries(marks.groups).find(([, names]) => names.includes(node.name))?.[0];
    form.append(make("summary", { textContent: "Label, group, note" }));
    form.open = this.marking || Boolean(inGroup || marks.labels[node.name] || marks.notes[node.name]);
    form.addEventListener("toggle", () => (this.marking = form.open));
    const put = (kind) => (value) => { // the marks as they are then: the form outlives others
      if (value) this.marks[kind][node.name] = value;
      else delete this.marks[kind][node.name];
    };
    field("Label", marks.labels[node.name], put("labels"));
    field("Group (nodes of one name are drawn as one)", inGroup, (value) => {
      const { marks } = this;
      for (const [name, names] of Object.entries(marks.groups)) {
        marks.groups[name] = names.filter((n) => n !== node.name);
        if (!marks.groups[name].length) delete marks.groups[name];
      }
      if (value) marks.groups[value] = [...(marks.groups[value] ?? []), node.name];
    });
    field("Note", marks.notes[node.name], put("notes"), true);
    parts.push(pin, form);
  }

  pin(node) {
    const { pins } = this.marks;
    this.marks.pins = pins.includes(node.name) ? pins.filter((n) => n !== node.name) : [...pins, node.name];
    this.mark();
  }

  /** Marks were changed: they are drawn, and sent to be saved with the run. */
  mark() {
    this.unsaved = true;
    this.tell("marks", structuredClone(this.marks));
    this.changed(false, true);
  }

  lock(target) {
    this.touched = true;
    this.lockedLine = target.line ?? null;
    const group = this.groups[target.node - this.graph.nodes.length]; // which the page has no node for
    this.openGroup = group?.name ?? null;
    this.locked = target.node === undefined || target.node === null || group ? null : target.node;
    this.cursor = this.locked ?? this.cursor;
    const { trace } = this.view;
    if (trace !== "off") this.changed(false, true);
    this.hover = null;
    this.describe();
    this.draw();
    this.later(true);
  }

  // -- drawing

  resize() {
    const { clientWidth: width, clientHeight: height } = this.stage;
    if (!width || (width === this.width && height === this.height)) return;
    const first = !this.width;
    [this.width, this.height] = [width, height];
    this.ratio = Math.min(window.devicePixelRatio || 1, 2);
    for (const canvas of [this.edges, this.top]) {
      [canvas.width, canvas.height] = [width * this.ratio, height * this.ratio];
      canvas.style.width = `${width}px`;
      canvas.style.height = `${height}px`;
    }
    const rows = (this.graph.layers + 2.6) * ROW;
    this.column = Math.max(30, Math.min(150, (rows * width) / height / (this.graph.heads + 1.8)));
    this.whole = this.sharp = null;
    this.changed(true, true);
    if (first) this.later();
  }

  fit() {
    const { graph, column, width, height } = this;
    const w = (graph.heads + 1.6) * column, h = (graph.layers + 2.8) * ROW;
    this.zoom = Math.min((width - 56) / w, (height - 40) / h);
    const left = 44 + (width - 56 - w * this.zoom) / 2 + 0.6 * column * this.zoom;
    this.at = [left, 20 + (height - 40 - h * this.zoom) / 2 + 1.6 * ROW * this.zoom];
    this.home = [this.zoom, ...this.at];
    this.moved();
  }

  zoomBy(factor, x = this.width / 2, y = this.height / 2) {
    const next = Math.max(0.4 * this.home[0], Math.min(12 * this.home[0], this.zoom * factor));
    const by = next / this.zoom;
    this.at = [x - (x - this.at[0]) * by, y - (y - this.at[1]) * by];
    this.zoom = next;
    this.moved();
  }

  pan(dx, dy) {
    this.at = [this.at[0] + dx, this.at[1] + dy];
    this.moved();
  }

  /** The transform changed: the bitmap moves now and is made again when the user rests. */
  moved() {
    clearTimeout(this.resting);
    this.resting = setTimeout(() => {
      this.stale = true;
      this.draw();
    }, REST);
    this.job = null;
    this.draw();
  }

  draw() {
    this.waiting ??= requestAnimationFrame(() => {
      this.waiting = null;
      if (!this.width || !this.scene) return;
      if (this.stale) this.begin();
      if (this.job) this.work();
      this.blit();
      this.overlay();
      if (this.job) this.draw();
    });
  }

  /** Start a bitmap of the edges as they are seen now, and of all of them where that is wider. */
  begin() {
    this.stale = false;
    const bitmap = (zoom, at, width, height) => {
      const canvas = new OffscreenCanvas(Math.ceil(width * this.ratio), Math.ceil(height * this.ratio));
      const pen = canvas.getContext("2d");
      pen.setTransform(zoom * this.ratio, 0, 0, zoom * this.ratio, at[0] * this.ratio, at[1] * this.ratio);
      pen.lineCap = "round";
      return { canvas, pen, zoom, at, next: 0, lines: this.scene.lines, width, height };
    };
    this.job = bitmap(this.zoom, [...this.at], this.width, this.height);
    if (this.sharp?.lines !== this.scene.lines && this.scene.lines.length > 2 * DRAFT) {
      this.sharp = bitmap(this.zoom, [...this.at], this.width, this.height);
      this.sharp.next = this.scene.lines.length - DRAFT; // the strongest at once, all when they are
      this.stroke(this.sharp, Infinity);
    }
    this.job.wide = this.whole?.lines !== this.scene.lines && this.zoom > 1.05 * this.home[0];
    if (this.job.wide) this.after = bitmap(this.home[0], this.home.slice(1), this.width, this.height);
  }

  /** Draw a job's lines until a time. */
  stroke(job, until) {
    const { pen, zoom, lines } = job, bare = lines.length < 300 ? 0.45 : 0.25;
    while (job.next < lines.length && performance.now() < until)
      for (const end = Math.min(job.next + 40, lines.length); job.next < end; job.next++) {
        const line = lines[job.next], { a, b, c } = line;
        pen.globalAlpha = Math.min(1, bare + 0.75 * line.share);
        pen.strokeStyle = line.colour;
        pen.lineWidth = line.width / Math.max(zoom, 0.6);
        pen.beginPath();
        pen.moveTo(a[0], a[1]);
        pen.quadraticCurveTo(c[0], c[1], b[0], b[1]);
        pen.stroke();
      }
  }

  /** Draw lines for a few milliseconds. */
  work() {
    const { job } = this;
    this.stroke(job, performance.now() + (this.pointers.size ? SLICE : 3 * SLICE));
    if (job.next < job.lines.length) return;
    if (job === this.after) this.whole = job;
    else this.sharp = job;
    if (Math.abs(job.zoom - this.home[0]) < 1e-9 && job.at[0] === this.home[1]) this.whole = job;
    this.job = job.wide ? this.after : null;
  }

  /** The node or group that is kept open, as it is drawn: of a group's member the group. */
  opened() {
    return this.group()?.i ?? this.members.get(this.locked) ?? this.locked;
  }

  /** The node whose lines stand out; null where all do. */
  open() {
    return this.hover?.node ?? this.opened();
  }

  blit() {
    const pen = this.edges.getContext("2d"), { ratio } = this;
    pen.setTransform(1, 0, 0, 1, 0, 0);
    pen.clearRect(0, 0, this.edges.width, this.edges.height);
    const open = this.open() !== null;
    pen.globalAlpha = open ? 0.22 : 1;
    const put = (bitmap, clear) => {
      if (!bitmap) return;
      const by = this.zoom / bitmap.zoom;
      const x = (this.at[0] - bitmap.at[0] * by) * ratio, y = (this.at[1] - bitmap.at[1] * by) * ratio;
      const w = bitmap.canvas.width * by, h = bitmap.canvas.height * by;
      if (clear) pen.clearRect(x, y, w, h);
      pen.drawImage(bitmap.canvas, x, y, w, h);
    };
    const { sharp, whole } = this;
    const still = sharp && sharp.zoom === this.zoom && sharp.at[0] === this.at[0] && sharp.at[1] === this.at[1];
    if (!still && whole && whole.lines === sharp?.lines && whole !== sharp) put(whole, false);
    put(sharp, !still);
  }

  /** Nodes, axes and whatever is hovered, open, traced or pinned. */
  overlay() {
    const pen = this.top.getContext("2d"), { graph, scene, ratio, zoom, at, data, view } = this;
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    pen.clearRect(0, 0, this.width, this.height);
    const ink = this.theme.getPropertyValue("--st-text-color").trim() || this.theme.color;
    const paper = this.theme.getPropertyValue("--st-background-color").trim() || "#fff";
    const screen = ([x, y]) => [x * zoom + at[0], y * zoom + at[1]];
    const open = this.open(), opened = this.opened(), strong = this.hover?.line ?? this.lockedLine;
    const stroke = (line, extra = 0) => {
      const [a, b, c] = [screen(line.a), screen(line.b), screen(line.c)];
      pen.beginPath();
      pen.moveTo(...a);
      pen.quadraticCurveTo(...c, ...b);
      pen.setLineDash(line.score > 0 ? [6, 4] : []);
      pen.strokeStyle = line.colour;
      pen.lineWidth = Math.max(1.2, line.width) + extra;
      pen.stroke();
      pen.setLineDash([]);
    };
    pen.globalAlpha = 0.95;
    if (open !== null)
      for (const line of scene.lines) if (line.source === open || line.target === open) stroke(line);
    if (strong) stroke(strong, 2);
    pen.globalAlpha = 1;
    // absent nodes are dots, so that the grid is seen
    pen.fillStyle = GREY;
    const step = this.column * zoom;
    if (step > 5)
      for (const node of graph.nodes)
        if (!scene.places.has(node.i)) {
          const [x, y] = screen(place(graph, node, this.column));
          if (x > -5 && y > -5 && x < this.width + 5 && y < this.height + 5) pen.fillRect(x - 1, y - 1, 2, 2);
        }
    const face = this.faces();
    const grow = Math.max(0.55, Math.min(1.6, Math.min(step / 34, (ROW * zoom) / 26)));
    pen.font = `12px ${this.theme.getPropertyValue("--st-font") || "sans-serif"}`;
    pen.textBaseline = "middle";
    for (const [i, spot] of scene.places) {
      const node = graph.nodes[i] ?? this.groups[i - graph.nodes.length], [x, y] = screen(spot);
      if (x < -40 || y < -40 || x > this.width + 40 || y > this.height + 40) continue;
      const { share, colour, counts } = face(i), r = grow * (4 + 6 * share);
      shape(pen, INK[node.kind] ?? "square", x, y, r);
      pen.fillStyle = colour;
      pen.fill();
      if (counts && counts[0]) { // the pie of changed codes
        pen.beginPath();
        pen.moveTo(x, y);
        pen.arc(x, y, r, -Math.PI / 2, -Math.PI / 2 + (2 * Math.PI * counts[1]) / counts[0]);
        pen.fillStyle = ink; // no colour of an edge's class
        pen.fill();
      }
      shape(pen, INK[node.kind] ?? "square", x, y, r);
      pen.lineWidth = i === opened ? 3 : 1;
      pen.strokeStyle = i === opened ? ink : paper;
      pen.stroke();
      if (i === this.cursor && this.active) {
        pen.beginPath();
        pen.arc(x, y, r + 5, 0, 2 * Math.PI);
        pen.lineWidth = 2;
        pen.strokeStyle = ink;
        pen.stroke();
      }
      const pinned = this.marks.pins.includes(node.name), label = this.marks.labels[node.name];
      const named = pinned || label || i === open || node.kind === "group";
      if (named || node.kind === "embedding" || node.kind === "logits") {
        const text = `${pinned ? "★ " : ""}${label ? `${label} (${node.name})` : node.name}`;
        this.write(pen, text, x + r + 4, y, ink, paper);
      }
    }
    this.axes(pen, screen, ink, paper);
  }

  /** Of a node: its size as a share, its colour, and how many weights moved and changed their code. */
  faces() {
    const { graph, scene, data, view } = this, moved = view.stage ? data.diff.moved : null;
    const most = moved ? Math.max(...Object.values(moved).map((m) => m[0]), 1) : 1;
    const largest = Math.max(...[...scene.sums.values()].map(Math.abs), 1e-30);
    return (i) => {
      const node = graph.nodes[i], sum = scene.sums.get(i) ?? 0, counts = moved?.[this.title(i)];
      const share = Math.sqrt(moved ? (counts?.[0] ?? 0) / most : Math.abs(sum) / largest);
      const plain = !node || node.kind === "logits" || moved; // compared, colours are the edges' alone
      return { share, colour: plain ? GREY : sum <= 0 ? FOR : AGAINST, counts };
    };
  }

  write(pen, text, x, y, ink, paper) {
    const w = pen.measureText(text).width;
    x = Math.min(x, this.width - w - 4);
    pen.globalAlpha = 0.85;
    pen.fillStyle = paper;
    pen.fillRect(x - 2, y - 8, w + 4, 16);
    pen.globalAlpha = 1;
    pen.fillStyle = ink;
    pen.fillText(text, x, y);
  }

  axes(pen, screen, ink, paper) {
    const { graph, column, zoom } = this;
    pen.globalAlpha = 0.9;
    pen.fillStyle = paper;
    pen.fillRect(0, 0, 30, this.height);
    pen.fillRect(0, this.height - 18, this.width, 18);
    pen.globalAlpha = 1;
    pen.fillStyle = ink;
    const every = (size, room) => [1, 2, 5, 10, 20, 50].find((n) => n * size >= room) ?? 100;
    const rows = every(ROW * zoom, 15), columns = every(column * zoom, 26);
    pen.textAlign = "right";
    for (let layer = 0; layer < graph.layers; layer += rows) {
      const y = screen([0, (graph.layers - 1 - layer) * ROW])[1];
      if (y > 20 && y < this.height - 22) pen.fillText(`${layer}`, 26, y); // clear of the others
    }
    pen.textAlign = "center";
    for (let head = 0; head < graph.heads; head += columns) {
      const x = screen([head * column, 0])[0];
      if (x > 36) pen.fillText(`h${head}`, x, this.height - 8);
    }
    pen.fillText("MLP", screen([(graph.heads + 0.4) * column, 0])[0], this.height - 8);
    pen.textAlign = "left";
    pen.fillText("layer", 2, 9);
  }

  // -- hands

  listen() {
    const { top } = this, point = (e) => {
      const box = top.getBoundingClientRect();
      return [e.clientX - box.left, e.clientY - box.top];
    };
    const hit = (e) => {
      const [x, y] = point(e);
      return nearest(this.scene, (x - this.at[0]) / this.zoom, (y - this.at[1]) / this.zoom, this.zoom);
    };
    const activate = (on) => {
      this.active = on;
      this.stage.classList.toggle("active", on);
      this.draw();
    };
    top.addEventListener("focus", () => activate(true));
    top.addEventListener("blur", () => activate(false));
    top.addEventListener("wheel", (e) => {
      if (!this.active && !e.ctrlKey) return; // the page scrolls
      e.preventDefault();
      this.zoomBy(Math.exp(-e.deltaY * (e.ctrlKey ? 0.01 : 0.0015)), ...point(e));
    }, { passive: false });
    top.addEventListener("pointerdown", (e) => {
      this.pointers.set(e.pointerId, point(e));
      this.dragged = this.pointers.size > 1 ? 99 : 0; // two fingers are no tap
      if (e.pointerType === "mouse" || this.active) top.setPointerCapture(e.pointerId);
    });
    top.addEventListener("pointermove", (e) => {
      const now = point(e), before = this.pointers.get(e.pointerId);
      if (!before) {
        const target = hit(e), same = target.node === this.hover?.node && target.line === this.hover?.line;
        if (same) return;
        this.hover = target.node === undefined && !target.line ? null : target;
        top.style.cursor = this.hover ? "pointer" : "grab";
        this.describe();
        this.draw();
        return;
      }
      const others = [...this.pointers].filter(([id]) => id !== e.pointerId);
      if (e.pointerType !== "mouse" && !this.active && !others.length) {
        this.dragged += Math.hypot(now[0] - before[0], now[1] - before[1]); // a swipe is no tap
        this.pointers.set(e.pointerId, now);
        return; // one finger is the page's
      }
      if (others.length) {
        const [[, other]] = others;
        const span = (p) => Math.hypot(p[0] - other[0], p[1] - other[1]) || 1;
        this.zoomBy(span(now) / span(before), (now[0] + other[0]) / 2, (now[1] + other[1]) / 2);
        this.dragged = 99;
      } else {
        this.dragged += Math.hypot(now[0] - before[0], now[1] - before[1]);
        if (this.dragged > 4) this.pan(now[0] - before[0], now[1] - before[1]);
      }
      this.pointers.set(e.pointerId, now);
    });
    const up = (e) => {
      if (this.pointers.delete(e.pointerId) && e.type === "pointerup" && this.dragged <= 4) {
        top.focus({ preventScroll: true });
        this.lock(hit(e));
      }
    };
    top.addEventListener("pointerup", up);
    top.addEventListener("pointercancel", up);
    top.addEventListener("pointerleave", () => {
      if (!this.hover) return;
      this.hover = null;
      this.describe();
      this.draw();
    });
    top.addEventListener("keydown", (e) => this.key(e));
    for (const name of ["input", "change", "click"])
      this.bar.addEventListener(name, () => (this.touched = true), true);
  }

  key(e) {
    if (e.ctrlKey || e.metaKey || e.altKey) return;
    const arrows = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    const traces = ["off", "upstream", "downstream", "both", "paths"];
    this.touched = true;
    if (e.key in arrows && e.shiftKey) this.pan(...arrows[e.key].map((d) => -40 * d));
    else if (e.key in arrows) this.step(...arrows[e.key]);
    else if (e.key === "Enter") this.lock({ node: this.cursor });
    else if (e.key === "Escape") {
      if (this.locked === null && !this.lockedLine && !this.group()) this.top.blur();
      else this.lock({});
    } else if (e.key === "t" || e.key === "T") {
      if (this.locked === null && this.cursor !== null) this.lock({ node: this.cursor });
      this.set({ trace: traces[(traces.indexOf(this.view.trace) + 1) % traces.length] });
    } else if (e.key === "p" || e.key === "P") {
      const node = this.graph.nodes[this.cursor ?? -1];
      if (node) this.pin(node);
    } else if (e.key === "+" || e.key === "=") this.zoomBy(1.25);
    else if (e.key === "-" || e.key === "−") this.zoomBy(0.8);
    else if (e.key === "0") this.fit();
    else return;
    e.preventDefault();
    e.stopPropagation();
  }

  /** The cursor goes to the nearest shown node in a direction: along the layer, or to another. */
  step(dx, dy) {
    const { places } = this.scene;
    if (!places.size) return;
    let best = null, least = Infinity;
    const from = this.cursor !== null && places.get(this.cursor);
    if (!from) best = [...places.keys()].sort((a, b) => a - b)[0];
    else
      for (const [i, [x, y]] of places) {
        const along = dx ? (x - from[0]) * dx : (y - from[1]) * dy;
        const aside = dx ? Math.abs(y - from[1]) : Math.abs(x - from[0]);
        if (i === this.cursor || along <= 0.01 || (dx && aside > 0.7 * ROW)) continue;
        const cost = dx ? along : along * 1000 + aside;
        if (cost < least) [best, least] = [i, cost];
      }
    if (best === null) return;
    this.cursor = best;
    this.hover = { node: best };
    const [x, y] = places.get(best).map((v, k) => v * this.zoom + this.at[k]);
    if (x < 40 || y < 20 || x > this.width - 20 || y > this.height - 30)
      this.pan(this.width / 2 - x, this.height / 2 - y);
    const node = this.graph.nodes[best];
    this.top.setAttribute("aria-label", `Graph of the circuit, at ${this.title(best)}` +
      (node ? `, ${kindOf(node)}` : ""));
    this.describe();
    this.draw();
  }

  // -- the picture as a file

  svg() {
    const { scene, graph, data, view, column } = this, parts = [];
    const compared = view.stage ? 20 : 0; // room for what nodes mean then
    const w = Math.max(920, (graph.heads + 3) * column), h = (graph.layers + 3) * ROW + 110 + compared;
    const ox = 50, oy = 80 + compared + 1.5 * ROW, f = (x) => x.toFixed(1), face = this.faces();
    const text = (x, y, words, size = 12, more = "") =>
      parts.push(`<text x="${f(x)}" y="${f(y)}" font-size="${size}" ${more}>${escaped(words)}</text>`);
    text(16, 26, data.title, 17, 'font-weight="600"');
    text(16, 46, this.said.textContent.slice(0, 160));
    for (const line of scene.lines) {
      const [a, c, b] = [line.a, line.c, line.b].map(([x, y]) => `${f(x + ox)} ${f(y + oy)}`);
      parts.push(`<path d="M${a}Q${c} ${b}" fill="none" stroke="${line.colour}" stroke-width="` +
        `${f(line.width)}" stroke-opacity="${f(0.3 + 0.7 * line.share)}"` +
        `${line.score > 0 ? ' stroke-dasharray="6 4"' : ""}><title>${escaped(this.title(line.source))} → ` +
        `${escaped(this.title(line.target))}: ${signed(line.score)}</title></path>`);
    }
    for (const [i, [x, y]] of scene.places) {
      const { share, colour, counts } = face(i), kind = INK[graph.nodes[i]?.kind] ?? "square";
      const at = [x + ox, y + oy], r = compared ? 4 + 5 * share : 6, a = 0.83 * r; // a square, as large
      parts.push(kind === "circle"
        ? `<circle cx="${f(at[0])}" cy="${f(at[1])}" r="${f(r)}" fill="${colour}"/>`
        : `<rect x="${f(at[0] - a)}" y="${f(at[1] - a)}" width="${f(2 * a)}" height="${f(2 * a)}" fill="${colour}"` +
          `${kind === "diamond" ? ` transform="rotate(45 ${f(at[0])} ${f(at[1])})"` : ""}/>`);
      if (counts?.[1]) { // the pie of changed codes, as a stroke that wide around a circle half as large
        const round = Math.PI * r;
        parts.push(`<circle cx="${f(at[0])}" cy="${f(at[1])}" r="${f(r / 2)}" fill="none" stroke="#222" ` +
          `stroke-width="${f(r)}" stroke-dasharray="${f((round * counts[1]) / counts[0])} ${f(round)}" ` +
          `transform="rotate(-90 ${f(at[0])} ${f(at[1])})"/>`);
      }
      const label = this.marks.labels[this.title(i)];
      text(at[0] + r + 3, at[1] + 4, label ? `${label} (${this.title(i)})` : this.title(i), 10, HALO);
    }
    const items = view.stage === "all" ? Object.values(CLASSES).map((c) => [c.colour, c.title])
      : [[FOR, "carries the answer (solid)"], [AGAINST, "works against it (dashed)"]];
    const wide = items.length > 2 ? 150 : 200;
    items.forEach(([colour, words], i) => {
      parts.push(`<rect x="${f(16 + wide * i)}" y="56" width="14" height="8" fill="${colour}"/>`);
      text(36 + wide * i, 64, words);
    });
    if (compared) text(16, 84, `${view.stage === "all" ? "Dashed: works against the answer. " : ""}Node size: ` +
      "weights moved; dark: the share of them whose NF4 code changed.", 11);
    text(16, h - 12, data.source, 11);
    return `<svg xmlns="http://www.w3.org/2000/svg" width="${f(w)}" height="${f(h)}" viewBox="0 0 ${f(w)} ` +
      `${f(h)}" font-family="sans-serif" fill="#222"><title>${escaped(data.title)}</title>` +
      `<rect width="100%" height="100%" fill="#fff"/>${parts.join("")}</svg>`;
  }

  async save(kind) {
    let blob = new Blob([this.svg()], { type: "image/svg+xml" });
    if (kind === "png") {
      const image = new Image(), url = URL.createObjectURL(blob);
      image.src = url;
      await image.decode();
      const scale = Math.min(2, Math.sqrt(PIXELS / (image.width * image.height)));
      const [width, height] = [image.width, image.height].map((size) => Math.floor(scale * size));
      const canvas = make("canvas", { width, height }), pen = canvas.getContext("2d", { alpha: false });
      pen.drawImage(image, 0, 0, width, height);
      URL.revokeObjectURL(url);
      const drawn = pen.getImageData(0, 0, width, height), step = 255 / SHADES;
      for (let i = 0; i < drawn.data.length; i++)
        drawn.data[i] = Math.round(Math.round(drawn.data[i] / step) * step);
      pen.putImageData(drawn, 0, 0);
      blob = await new Promise((done) => canvas.toBlob(done, "image/png"));
    }
    const url = URL.createObjectURL(blob);
    make("a", { href: url, download: `${this.data.file}.${kind}` }).click();
    setTimeout(() => URL.revokeObjectURL(url), 1000);
  }

  close() {
    this.observer.disconnect();
    clearTimeout(this.telling);
    clearTimeout(this.resting);
    clearTimeout(this.playing);
    cancelAnimationFrame(this.waiting);
  }
}

function shape(pen, kind, x, y, r) {
  pen.beginPath();
  if (kind === "circle") pen.arc(x, y, r, 0, 2 * Math.PI);
  else if (kind === "square") pen.rect(x - 0.9 * r, y - 0.9 * r, 1.8 * r, 1.8 * r);
  else {
    const d = 1.25 * r;
    pen.moveTo(x, y - d);
    pen.lineTo(x + d, y);
    pen.lineTo(x, y + d);
    pen.lineTo(x - d, y);
    pen.closePath();
  }
}

const instruments = new WeakMap();

/** What Streamlit calls, again and again on one element: the instrument there is kept. */
export default function ({ parentElement, data, setStateValue }) {
  let instrument = instruments.get(parentElement);
  if (instrument) {
    instrument.tell = setStateValue;
    instrument.take(data);
  } else {
    const root = make("div", { className: "graph" });
    parentElement.append(root);
    instrument = new Instrument(root, data, setStateValue);
    instruments.set(parentElement, instrument);
  }
  const turn = (instrument.turn = {}); // Streamlit also cleans up after a call that a later one overtook
  return () => {
    if (instrument.turn !== turn) return;
    instrument.close();
    instruments.delete(parentElement);
    instrument.root.remove();
  };
}
