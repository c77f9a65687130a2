// Elements without markup (texts of documents are only ever text nodes), scales, histograms with limits to drag.
const SVG = "http://www.w3.org/2000/svg";

function el(tag, attributes, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name in node && typeof value !== "string") node[name] = value;
    else node.setAttribute(name, value);
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return node;
}

function svg(tag, attributes, ...children) {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes || {})) node.setAttribute(name, String(value));
  node.append(...children.flat());
  return node;
}

// A table of figures; the body's rows may be replaced later.
function numbers(heads, body) {
  const row = el(
    "tr",
    {},
    heads.map((head) => el("th", {}, head)),
  );
  return el("table", {class: "numbers"}, el("thead", {}, row), body);
}

const sum = (values) => values.reduce((a, b) => a + b, 0);
const count = (n) => Math.round(n).toLocaleString("en-US");
const percent = (share) => `${(100 * share).toFixed(Math.abs(share) < 0.0995 && share !== 0 ? 2 : 1)}\u00a0%`;

function bytes(n) {
  const units = ["bytes", "kB", "MB", "GB"];
  let at = 0,
    value = Math.abs(n);
  while (value >= 1000 && at < 3) [value, at] = [value / 1000, at + 1];
  return `${n < 0 ? "−" : ""}${at === 0 ? count(value) : value.toFixed(value < 10 ? 2 : 1)}\u00a0${units[at]}`;
}

function short(x) {
  if (!Number.isFinite(x)) return String(x);
  if (Number.isInteger(x)) return x.toLocaleString("en-US");
  return String(Number(x.toPrecision(3)));
}

// Values to [0, 1] and back. Logarithmic where the largest value is far above the middle one; zeros then have a strip
// of their own at the left.
const ZERO_STRIP = 0.05;
const SKEW = 20;

function makeScale(values, limits) {
  const finite = Array.from(values)
    .filter(Number.isFinite)
    .sort((a, b) => a - b);
  const marks = limits.filter((x) => x !== null && Number.isFinite(x));
  const whole = [...finite, ...marks].every(Number.isInteger);
  let low = finite.length ? finite[0] : 0,
    high = finite.length ? finite[finite.length - 1] : 1;
  const positive = finite.filter((x) => x > 0);
  const middle = positive.length ? positive[positive.length >> 1] : 0;
  if (low >= 0 && positive.length && high > SKEW * middle) {
    const lowest = Math.max(Math.min(positive[0], ...marks.filter((x) => x > 0)), high / 1e6);
    const highest = Math.max(high, ...marks.filter((x) => x <= 50 * high));
    const span = Math.log(highest / lowest) || 1;
    return {
      log: true,
      whole,
      low: 0,
      high: highest,
      to: (x) =>
        x <= 0
          ? ZERO_STRIP / 2
          : Math.min(1, Math.max(ZERO_STRIP, ZERO_STRIP + ((1 - ZERO_STRIP) * Math.log(x / lowest)) / span)),
      from: (u) => (u < ZERO_STRIP ? 0 : lowest * Math.exp((span * (u - ZERO_STRIP)) / (1 - ZERO_STRIP))),
      mark(x) {
        return x <= 0 ? ZERO_STRIP : this.to(x);
      },
    };
  }
  const width = high - low;
  for (const mark of marks)
    if (mark >= low - 1.5 * width - 1 && mark <= high + 1.5 * width + 1)
      [low, high] = [Math.min(low, mark), Math.max(high, mark)];
  if (whole)
    [low, high] = [low - 0.5, high + 0.5]; // a bar for a number stands around it, a limit beside it
  else if (low === high) high = low + 1;
  return {
    log: false,
    whole,
    low,
    high,
    to: (x) => Math.min(1, Math.max(0, (x - low) / (high - low))),
    from: (u) => low + u * (high - low),
    mark: (x, side) => (x - low + (!whole ? 0 : side === "least" ? -0.5 : 0.5)) / (high - low),
  };
}

// A limit as a person would write it: whole where the values are, else three digits.
const rounded = (scale, x) => (scale.whole ? Math.round(x) : Number(x.toPrecision(3)));

function binning(scale) {
  const range = scale.high - scale.low;
  const bins = !scale.log && scale.whole && range <= 60 ? range : 60;
  return {bins, of: (x) => Math.min(bins - 1, Math.floor(scale.to(x) * bins))};
}

// A histogram whose bars are stacked by class; `lines` are limits: {limit(), move(x), side, label}.
const WIDTH = 480,
  HEIGHT = 88;

class Histogram {
  constructor(values, scale, classes, lines) {
    [this.values, this.scale, this.classes, this.lines] = [values, scale, classes, lines];
    this.binning = binning(scale);
    this.bars = svg("g");
    this.marks = lines.map((line) =>
      svg(
        "g",
        {class: "mark"},
        svg("line", {y1: 0, y2: HEIGHT}),
        svg("path", {d: `M-7,${HEIGHT} L7,${HEIGHT} L0,${HEIGHT - 11} Z`}),
      ),
    );
    this.node = svg(
      "svg",
      {viewBox: `0 0 ${WIDTH} ${HEIGHT}`, class: "histogram", preserveAspectRatio: "none", "aria-hidden": "true"},
      this.bars,
      ...this.marks,
    );
    this.node.addEventListener("pointerdown", (event) => this.grab(event));
    this.node.addEventListener("pointermove", (event) => this.drag(event));
    for (const name of ["pointerup", "pointercancel"])
      this.node.addEventListener(name, () => {
        this.held = null;
      });
  }

  where(event) {
    const box = this.node.getBoundingClientRect();
    return Math.min(1, Math.max(0, (event.clientX - box.left) / box.width));
  }

  grab(event) {
    const u = this.where(event);
    const distance = (line) => Math.abs(this.scale.to(line.limit()) - u);
    const near = this.lines.filter((line) => line.limit() !== null).sort((a, b) => distance(a) - distance(b))[0];
    if (!near) return;
    this.held = near;
    this.node.setPointerCapture(event.pointerId);
    this.drag(event);
    event.preventDefault();
  }

  drag(event) {
    if (this.held) this.held.move(rounded(this.scale, this.scale.from(this.where(event))));
  }

  // classOf(i): number of the class of value i, below `classes.length`.
  draw(classOf) {
    const {bins, of} = this.binning;
    const counts = this.classes.map(() => new Array(bins).fill(0));
    for (let i = 0; i < this.values.length; i++) {
      if (!Number.isNaN(this.values[i])) counts[classOf(i)][of(this.values[i])]++;
    }
    const totals = counts[0].map((_, bin) => counts.reduce((sum, row) => sum + row[bin], 0));
    const top = Math.sqrt(Math.max(1, ...totals)),
      width = WIDTH / bins,
      rects = [];
    totals.forEach((total, bin) => {
      const height = total ? Math.max(1.5, ((HEIGHT - 6) * Math.sqrt(total)) / top) : 0;
      let y = HEIGHT;
      counts.forEach((row, index) => {
        const part = total ? (height * row[bin]) / total : 0;
        y -= part;
        if (part)
          rects.push(
            svg("rect", {x: bin * width + 0.4, y, width: width - 0.8, height: part, class: this.classes[index]}),
          );
      });
    });
    this.bars.replaceChildren(...rects);
    this.lines.forEach((line, n) => {
      const limit = line.limit();
      this.marks[n].classList.toggle("off", limit === null);
      const u = limit === null ? 0 : Math.min(1, Math.max(0, this.scale.mark(limit, line.side)));
      this.marks[n].setAttribute("transform", `translate(${u * WIDTH},0)`);
    });
  }
}
