// Duplicate clusters, texts by reason with what was edited, and dead letters of the active source.
const KINDS = {"=": "same", "-": "removed", "+": "added", "…": "gap"};

function diffNode(diff) {
  return el(
    "pre",
    {class: "diff"},
    diff.map(([kind, text]) =>
      el(
        kind === "-" ? "del" : kind === "+" ? "ins" : "span",
        {class: KINDS[kind]},
        kind === "…" ? `\n… ${text} …\n` : text,
      ),
    ),
  );
}

function drawClusters() {
  const nodes = source().clusters.map((cluster) => {
    const pair = cluster.members.find(([doc]) => doc === cluster.pair);
    return el(
      "details",
      {class: "card wide"},
      el(
        "summary",
        {},
        el("b", {}, `${count(cluster.size)} dropped`),
        ` as ${cluster.size === 1 ? "a copy" : "copies"} of `,
        el("code", {}, source().ids[cluster.kept]),
      ),
      el(
        "ul",
        {},
        cluster.members.map(([doc, similarity, reason]) =>
          el("li", {}, el("code", {}, source().ids[doc]), ` ${reason}, similarity ${similarity.toFixed(3)}`),
        ),
        cluster.size > cluster.members.length
          ? el("li", {class: "quiet"}, `and ${count(cluster.size - cluster.members.length)} more`)
          : null,
      ),
      el(
        "p",
        {class: "note"},
        `Least similar: ${source().ids[cluster.pair]}${pair ? ` (${pair[1].toFixed(3)})` : ""}. Struck out is only in the kept one, underlined only in the copy.`,
      ),
      cluster.diff.some(([kind]) => kind === "-" || kind === "+")
        ? diffNode(cluster.diff)
        : el("p", {class: "quiet"}, "No word differs."),
    );
  });
  place("clusters").replaceChildren(
    ...heading("Largest duplicate clusters", "As the config has it, inside the sample."),
    ...(nodes.length ? nodes : [el("p", {class: "quiet"}, "No duplicates in the sample.")]),
  );
  if (nodes.length) nodes[0].open = true;
}

const PAGE = 12,
  FIRST_CHARS = 500;
const choice = {filter: "kept", shown: PAGE};

function showSamples(filter) {
  choice.filter = filter;
  choice.shown = PAGE;
  drawSampleList();
}

function filters() {
  const now = decided(),
    was = state.original[state.active];
  const found = {kept: (i) => now.stages[i] === null, dropped: (i) => now.stages[i] !== null};
  for (const reason of ruleOrder())
    if (now.reasons.includes(reason)) found[`reason ${reason}`] = (i) => now.reasons[i] === reason;
  const edited = new Set(
    source()
      .excerpts.filter((excerpt) => excerpt.edits.length)
      .map((excerpt) => excerpt.doc),
  );
  if (edited.size) found["edited"] = (i) => edited.has(i);
  if (now.stages.some((stage, i) => (stage === null) !== (was.stages[i] === null))) {
    found["now dropped"] = (i) => now.stages[i] !== null && was.stages[i] === null;
    found["now kept"] = (i) => now.stages[i] === null && was.stages[i] !== null;
  }
  return found;
}

let drawSampleList = () => {};

function drawSamples() {
  const select = el("select", {"aria-label": "Which documents", onchange: () => showSamples(select.value)});
  const list = el("div"),
    note = el("p", {class: "note"});
  place("samples").replaceChildren(
    ...heading(
      "Documents",
      "Texts of some documents per reason, of some kept ones and of those next to a limit are in this page.",
    ),
    el("label", {}, "Show ", select),
    note,
    list,
  );
  drawSampleList = () => {
    const known = filters(),
      all = [...source().ids.keys()];
    if (!(choice.filter in known)) choice.filter = "kept";
    select.replaceChildren(
      ...Object.entries(known).map(([name, is]) =>
        el("option", {value: name}, `${name.replace("reason ", "")} (${count(all.filter(is).length)})`),
      ),
    );
    select.value = choice.filter;
    const is = known[choice.filter],
      texts = source().excerpts.filter((excerpt) => is(excerpt.doc));
    note.textContent = `${count(texts.length)} of ${count(all.filter(is).length)} with their text.`;
    list.replaceChildren(
      ...texts.slice(0, choice.shown).map(sampleNode),
      ...(texts.length > choice.shown
        ? [
            el(
              "button",
              {
                type: "button",
                onclick: () => {
                  choice.shown += PAGE;
                  drawSampleList();
                },
              },
              `Show ${Math.min(PAGE, texts.length - choice.shown)} more`,
            ),
          ]
        : []),
    );
  };
  state.listeners.push(drawSampleList);
  drawSampleList();
}

// Why a document is dropped, with the number that decided.
function verdictOf(doc) {
  const reason = decided().reasons[doc];
  if (reason === null) return "kept";
  for (const step of Model.steps(source())) {
    const rule = step.rules.find((each) => each.reason === reason);
    if (rule)
      return `${reason}: ${rule.measure} is ${short(step.measures[rule.measure][doc])}, ${rule.side === "least" ? "at least" : "at most"} ${short(limits()[reason])}`;
  }
  if (decided().duplicateOf[doc] < 0) return reason;
  return `${reason}: similarity ${decided().similarity[doc].toFixed(3)} with ${source().ids[decided().duplicateOf[doc]]}`;
}

function sampleNode(excerpt) {
  const text = el("pre", {class: "text"}, excerpt.text.slice(0, FIRST_CHARS)),
    rest = excerpt.chars - excerpt.text.length;
  const more =
    excerpt.text.length > FIRST_CHARS
      ? el(
          "button",
          {
            type: "button",
            "aria-expanded": "false",
            onclick: () => {
              const open = more.getAttribute("aria-expanded") === "false";
              more.setAttribute("aria-expanded", String(open));
              text.textContent = open
                ? excerpt.text + (rest > 0 ? `\n… ${count(rest)} more characters are not in this page` : "")
                : excerpt.text.slice(0, FIRST_CHARS);
              more.textContent = open ? "Show less" : `Show more of ${count(excerpt.chars)} characters`;
            },
          },
          `Show more of ${count(excerpt.chars)} characters`,
        )
      : null;
  const labels = Object.values(source().labels)
    .map(({names, codes}) => names[codes[excerpt.doc]])
    .filter((name) => name);
  return el(
    "article",
    {class: `card wide ${decided().stages[excerpt.doc] === null ? "is-kept" : "is-dropped"}`},
    el(
      "p",
      {class: "title"},
      el("code", {}, source().ids[excerpt.doc]),
      el("span", {class: "tag"}, verdictOf(excerpt.doc)),
      el("span", {class: "quiet"}, [`${count(excerpt.chars)} characters`, ...labels].join(", ")),
    ),
    text,
    more,
    excerpt.edits.map(([stage, diff]) => el("details", {}, el("summary", {}, `edited by ${stage}`), diffNode(diff))),
  );
}

// ---- dead letters

function drawDead() {
  const {reasons, first} = source().dead_letters,
    total = Object.values(reasons).reduce((a, b) => a + b, 0);
  const parts = total
    ? [
        el(
          "p",
          {},
          `${count(total)} of ${count(source().records)} records could not be read: ` +
            Object.entries(reasons)
              .map(([reason, n]) => `${reason} ${count(n)}`)
              .join(", ") +
            ".",
        ),
        el(
          "div",
          {class: "scroll"},
          el(
            "table",
            {},
            el(
              "thead",
              {},
              el(
                "tr",
                {},
                ["shard", "row", "reason", "detail"].map((word) => el("th", {}, word)),
              ),
            ),
            el(
              "tbody",
              {},
              first.map(([shard, row, reason, detail]) =>
                el(
                  "tr",
                  {},
                  el("td", {}, el("code", {}, shard)),
                  el("td", {}, count(row)),
                  el("td", {}, reason),
                  el("td", {}, detail),
                ),
              ),
            ),
          ),
        ),
        total > first.length ? el("p", {class: "quiet"}, `and ${count(total - first.length)} more`) : null,
      ]
    : [el("p", {class: "quiet"}, `All of ${count(source().records)} records could be read.`)];
  place("dead").replaceChildren(
    ...heading("Dead letters", "Records of the chunks that the sample was drawn from."),
    ...parts.filter(Boolean),
  );
}
