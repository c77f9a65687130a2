// What arrives at each stage and what goes on, by documents and by bytes, beside the field's usual bands.
function funnelBar(row, first) {
  const half = 240;
  const side = (sign, arrives, left, total) => {
    const x = (width) => (sign < 0 ? half - 2 - width : half + 2);
    const [outer, inner] = [arrives, left].map((n) => ((half - 4) * n) / Math.max(1, total));
    return [
      svg("rect", {x: x(outer), y: 3, width: outer, height: 22, class: "dropped"}),
      svg("rect", {x: x(inner), y: 3, width: inner, height: 22, class: "kept"}),
    ];
  };
  return svg(
    "svg",
    {
      viewBox: "0 0 480 28",
      preserveAspectRatio: "none",
      class: "funnelbar",
      role: "img",
      "aria-label": `${row.stage}: ${row.documents_out} of ${row.documents_in} documents go on`,
    },
    ...side(-1, row.documents_in, row.documents_out, first.documents_in),
    ...side(1, row.bytes_in, row.bytes_out, first.bytes_in),
  );
}

function gauge(removed, least, most, inside, judged) {
  const x = (share) => 4 + 112 * Math.min(1, Math.max(0, share));
  return svg(
    "svg",
    {
      viewBox: "0 0 120 18",
      class: `gauge ${judged ? (inside ? "inside" : "outside") : "unjudged"}`,
      "aria-hidden": "true",
    },
    svg("line", {x1: 4, x2: 116, y1: 9, y2: 9, class: "axis"}),
    svg("rect", {x: x(least), width: x(most) - x(least), y: 4, height: 10, rx: 3, class: "band"}),
    svg("circle", {cx: x(removed), cy: 9, r: 4.5, class: "point"}),
  );
}

function bandCell(verdict, share, judged) {
  if (!verdict) return el("div", {class: "band"});
  const words = judged ? (verdict.inside ? "inside" : "⚠ outside") : "not judged";
  const together = verdict.stages && verdict.stages.length > 1 ? ` (${verdict.stages.join(" + ")})` : "";
  return el(
    "div",
    {class: "band"},
    gauge(share, verdict.band.least, verdict.band.most, verdict.inside, judged),
    el(
      "span",
      {class: judged && !verdict.inside ? "warning" : "quiet"},
      `${percent(share)}${together} ${words}; usual ${verdict.band.words}`,
    ),
  );
}

function funnelOf(name, rows, judged) {
  const verdicts = Model.judge(rows, data.bands),
    first = rows[0];
  if (!first)
    return el(
      "div",
      {class: "funnel"},
      el("h3", {}, name),
      el("p", {class: "note"}, "No stage is on for this source."),
    );
  const lines = rows
    .filter((row) => row.present)
    .map((row) => {
      const share = row.documents_dropped / Math.max(1, row.documents_in);
      const edited = row.bytes_edited ? `, edits took ${bytes(row.bytes_edited)}` : "";
      return el(
        "div",
        {class: "stage"},
        el("div", {class: "name"}, row.stage),
        funnelBar(row, first),
        el(
          "div",
          {class: "figures"},
          el("b", {}, share ? `−${percent(share)}` : "0\u00a0%"),
          ` ${count(row.documents_in)} → ${count(row.documents_out)} documents, ${bytes(row.bytes_in)} → ${bytes(row.bytes_out)}${edited}`,
        ),
        bandCell(
          verdicts.find((verdict) => verdict.last === row.stage),
          (verdicts.find((v) => v.last === row.stage) || {}).removed,
          judged,
        ),
      );
    });
  const last = rows[rows.length - 1],
    left = last.documents_out / Math.max(1, first.documents_in);
  const inside = data.left[0] <= left && left <= data.left[1];
  return el(
    "div",
    {class: "funnel"},
    el(
      "h3",
      {},
      name,
      el(
        "span",
        {class: "tag"},
        `${percent(left)} of documents kept, ${percent(last.bytes_out / Math.max(1, first.bytes_in))} of bytes`,
      ),
    ),
    el(
      "div",
      {class: "stage legend"},
      el("div"),
      el("div", {class: "sides"}, el("span", {}, "documents"), el("span", {}, "bytes")),
      el("div"),
      el("div"),
    ),
    lines,
    el(
      "p",
      {class: judged && !inside ? "warning" : "quiet"},
      judged
        ? `${inside ? "Left in the end is" : "⚠ Left in the end is not"} what is usual for a raw crawl, 1–5 %.`
        : "Bands are of raw crawls, which this is not by its preset and format: nothing is judged by them.",
    ),
  );
}

function drawFunnels() {
  const rows = sources.map((each, n) => Model.funnel(each, state.decided[n], data.stages));
  const parts = rows.map((own, n) => funnelOf(sources[n].name, own, sources[n].raw_crawl));
  const all =
    sources.length > 1
      ? [
          funnelOf(
            "All sources",
            Model.addUp(rows),
            sources.every((each) => each.raw_crawl),
          ),
        ]
      : [];
  place("funnels").replaceChildren(
    ...heading(
      "Funnel",
      "What arrives at each stage (light) and what goes on (dark), by documents to " +
        "the left and by bytes to the right. Beside it: what the stage removed of the documents that arrived, on the band that the field usually sees.",
    ),
    ...all,
    ...parts,
  );
}

// ---- reasons

function drawReasons() {
  const table = el("tbody");
  place("reasons").replaceChildren(
    ...heading("Drop reasons", "The first rule that a document fails is its reason."),
    el(
      "div",
      {class: "scroll"},
      numbers(["stage", "reason", "documents", "share of all", "bytes", "in the config", ""], table),
    ),
  );
  const draw = () => {
    const tally = (result) => {
      const found = new Map();
      result.reasons.forEach((reason, i) => {
        if (reason === null) return;
        const entry = found.get(reason) || {stage: result.stages[i], documents: 0, bytes: 0};
        entry.documents++;
        entry.bytes += source().size[i];
        found.set(reason, entry);
      });
      return found;
    };
    const [now, was] = [tally(decided()), tally(state.original[state.active])];
    const order = [...new Set([...ruleOrder(), ...now.keys(), ...was.keys()])].filter(
      (reason) => now.has(reason) || was.has(reason),
    );
    table.replaceChildren(
      ...order.map((reason) => {
        const entry = now.get(reason) || {...was.get(reason), documents: 0, bytes: 0};
        const before = (was.get(reason) || {documents: 0}).documents;
        return el(
          "tr",
          {},
          el("td", {}, entry.stage),
          el("td", {}, reason),
          el("td", {}, count(entry.documents)),
          el("td", {}, percent(entry.documents / Math.max(1, source().documents))),
          el("td", {}, bytes(entry.bytes)),
          el("td", {class: before === entry.documents ? "quiet" : "changed"}, count(before)),
          el("td", {}, el("a", {href: "#samples", onclick: () => showSamples(`reason ${reason}`)}, "look")),
        );
      }),
    );
    if (!order.length)
      table.replaceChildren(el("tr", {}, el("td", {colSpan: 7, class: "quiet"}, "Nothing is dropped.")));
  };
  state.listeners.push(draw);
  draw();
}

const ruleOrder = () => [
  ...source().before.flatMap((step) => step.rules.map((rule) => rule.reason)),
  ...new Set([...source().dedup.equal.map(([reason]) => reason), "duplicate_near", ...source().dedup.fixed.values()]),
  ...source().after.flatMap((step) => step.rules.map((rule) => rule.reason)),
];
