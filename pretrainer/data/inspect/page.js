// The page itself: sections drawn from the data, and again wherever a limit moves.
const data = JSON.parse(document.getElementById("data").textContent);
const sources = data.sources.map(Model.unpack);
const state = {
  active: 0,
  limits: sources.map(Model.ownLimits),
  decided: [],
  original: sources.map((source) => Model.decide(source, Model.ownLimits(source))),
  listeners: [],
};
state.decided = [...state.original];
const place = (id) => document.getElementById(id);
const source = () => sources[state.active];
const decided = () => state.decided[state.active];
const limits = () => state.limits[state.active];
const keptOf = (result) => result.stages.filter((stage) => stage === null).length;
const keptShare = (result) => keptOf(result) / Math.max(1, result.stages.length);
const heading = (text, ...more) => [el("h2", {}, text), ...more.map((words) => el("p", {class: "note"}, words))];

// ---- limits that move

let waiting = false;

// An entry of `rules` or `scores` holds for its own source, a field of the data section for every rule that reads it.
function setLimit(reason, limit, setting) {
  limits()[reason] = limit;
  if (setting && setting.name && setting.name.startsWith("data.")) {
    sources.forEach((each, n) => {
      const rules = [
        ...Model.steps(each).flatMap((step) => step.rules),
        ...Object.entries(each.dedup.settings).map(([name, own]) => ({reason: name, setting: own})),
      ];
      for (const rule of rules) {
        // What only annotates in another source stays off there.
        if (rule.setting && rule.setting.name === setting.name && Model.ownLimits(each)[rule.reason] !== null)
          state.limits[n][rule.reason] = limit;
      }
    });
  }
  refreshSoon();
}

function refreshSoon() {
  if (waiting) return;
  waiting = true;
  requestAnimationFrame(() => {
    waiting = false;
    sources.forEach((each, n) => {
      state.decided[n] = Model.decide(each, state.limits[n]);
    });
    state.listeners.forEach((draw) => draw());
  });
}

function resetLimits() {
  state.limits = sources.map(Model.ownLimits);
  refreshSoon();
}

// ---- header

function drawHeader() {
  const documents = sum(sources.map((each) => each.documents));
  const size = sum(sources.map((each) => sum(each.size)));
  const cards = sources.map((each, n) => {
    const rows = data.timings[n].map(([stage, seconds, given]) =>
      el(
        "tr",
        {},
        el("td", {}, stage),
        el("td", {}, seconds.toFixed(3)),
        el("td", {}, seconds > 0 && given ? (given / seconds / 1e6).toFixed(1) : "–"),
      ),
    );
    return el(
      "div",
      {class: "card"},
      el("h3", {}, each.name, el("span", {class: "tag"}, each.preset)),
      el("p", {}, `${count(each.documents)} documents, ${bytes(sum(each.size))}, from ${count(each.records)} records read`),
      numbers(["stage", "seconds", "MB/s"], el("tbody", {}, rows)),
    );
  });
  place("top").append(
    el("h1", {}, `Curation of ${data.name}`),
    el(
      "p",
      {},
      `A sample of ${count(documents)} documents, ${bytes(size)}, of ${sources.length} ` +
        `${sources.length === 1 ? "source" : "sources"}. Every stage measured every document, so limits can be moved below.`,
    ),
    el(
      "p",
      {class: "note"},
      "Seconds are of one process over the whole sample, kernels compiled before. Duplicates are " +
        "looked for inside the sample alone, so a whole corpus has more of them. Held-out documents are not chosen here.",
    ),
    el("details", {}, el("summary", {}, "Sources and speed by stage"), el("div", {class: "cards"}, cards)),
  );
}

// ---- the bar with source, keep rate and config

function drawBar() {
  const tabs = sources.map((each, n) =>
    el(
      "button",
      {
        type: "button",
        class: "tab",
        "aria-pressed": String(n === state.active),
        onclick: () => {
          state.active = n;
          drawAll();
        },
      },
      each.name,
    ),
  );
  const status = el("output", {id: "status"});
  const snippet = el("div", {id: "snippet"});
  place("bar").replaceChildren(
    el(
      "div",
      {class: "row"},
      el("div", {class: "tabs", role: "group", "aria-label": "Source"}, tabs),
      status,
      el("button", {type: "button", onclick: resetLimits}, "Reset limits"),
    ),
    snippet,
  );
  const draw = () => {
    const [now, was] = [keptShare(decided()), keptShare(state.original[state.active])];
    const kept = keptOf(decided());
    const changed = decided().stages.filter(
      (stage, i) => (stage === null) !== (state.original[state.active].stages[i] === null),
    ).length;
    status.textContent =
      `${count(kept)} of ${count(source().documents)} kept, ${percent(now)}` +
      (changed ? ` (config: ${percent(was)}; ${count(changed)} documents changed)` : " (as in the config)");
    snippet.replaceChildren(...snippetLines());
  };
  state.listeners.push(draw);
  draw();
}

function snippetLines() {
  const found = sources.map((each, n) => Model.settings(each, state.limits[n]));
  const fields = new Map(found.flatMap((each) => each.fields));
  const yaml = [],
    notes = found.flatMap((each, n) => each.notes.map((note) => `# ${sources[n].name}: ${note}`));
  const overrides = [...fields].map(([name, value]) =>
    /[[>]/.test(value) ? `'${name}=${value}'` : `${name}=${value}`,
  );
  for (const [name, value] of fields) yaml.push(`${name}: ${value}`);
  found.forEach((each, n) => {
    const own = [
      ["rules", each.rules.length ? `[${each.rules.join(", ")}]` : null],
      ["scores", each.scores],
    ].filter(([, value]) => value);
    if (own.length) yaml.push(`# data.sources, ${sources[n].name}`, ...own.map(([name, value]) => `${name}: ${value}`));
    overrides.push(...own.map(([name, value]) => `'data.sources.${n}.${name}=${value}'`));
  });
  if (!yaml.length && !notes.length) return [];
  return [
    el("pre", {class: "snippet"}, [...yaml, ...notes].join("\n")),
    overrides.length ? el("pre", {class: "snippet"}, `# or on the command line\n${overrides.join(" ")}`) : null,
  ].filter(Boolean);
}

// ---- start

function drawAll() {
  state.listeners = [drawFunnels];
  choice.filter = "kept";
  [drawFunnels, drawBar, drawReasons, drawMeasures, drawLengths, drawClusters, drawSamples, drawDead].forEach((draw) =>
    draw(),
  );
}

drawHeader();
drawAll();
