// Histograms whose limits can be moved, lengths and languages of the active source.
// ---- measures

function drawMeasures() {
  const cards = [];
  for (const step of source().before) cards.push(...stepCards(step));
  if (source().dedup.threshold !== null) cards.push(dedupCard());
  for (const step of source().after) cards.push(...stepCards(step));
  place("measures").replaceChildren(
    ...heading(
      "Measures and limits",
      "Drag a line, or use its slider or number: what is dropped is counted again at once, in the order of the stages. Heights are square " +
        "roots of counts; a scale is logarithmic where a measure is skewed, with a strip for zeros at its left.",
    ),
    el(
      "p",
      {class: "note"},
      el("span", {class: "key kept"}),
      "kept ",
      el("span", {class: "key dropped"}),
      "dropped by a rule of this measure ",
      el("span", {class: "key other"}),
      "dropped by another rule",
    ),
    el("div", {class: "cards"}, cards),
  );
}

function stepCards(step) {
  return Object.entries(step.measures).map(([name, values]) => {
    const rules = step.rules.filter((rule) => rule.measure === name);
    const note = step.annotates ? " (annotates only)" : "";
    return measureCard(name, `${step.stage}${note}`, values, rules, (rule, i) =>
      Model.fails(rule, limits()[rule.reason], values[i]),
    );
  });
}

// Similarity of every document to the most similar earlier one that is in the sample.
function dedupCard() {
  const dedup = source().dedup;
  const best = Float64Array.from({length: source().documents}, (_, i) => {
    let most = NaN;
    for (let p = dedup.starts[i]; p < dedup.starts[i + 1]; p++)
      if (!(dedup.similarity[p] <= most)) most = dedup.similarity[p];
    return most;
  });
  const rule = {
    reason: "duplicate_near",
    side: "below",
    limit: dedup.threshold,
    setting: dedup.settings.duplicate_near,
  };
  const switches = dedup.equal.map(([reason, group]) => {
    return {reason, setting: dedup.settings[reason], limit: 1, failing: (i) => group[i] > 0 && group[i] !== i + 1};
  });
  return measureCard(
    "similarity to an earlier document",
    "dedup, from 0.5 on",
    best,
    [rule],
    (_, i) => best[i] >= limits().duplicate_near,
    switches,
  );
}

const SIGNS = {least: "≥", most: "≤", below: "<"};

function measureCard(name, where, values, rules, failing, switches = []) {
  const scale = makeScale(
    values,
    rules.map((rule) => rule.limit),
  );
  const own = new Set([...rules, ...switches].map((rule) => rule.reason));
  const lines = rules.map((rule) => ({
    side: rule.side,
    limit: () => limits()[rule.reason],
    move: (x) => setLimit(rule.reason, x, rule.setting),
  }));
  const chart = new Histogram(values, scale, ["kept", "dropped", "other"], lines);
  const controls = [
    ...switches.map((rule) => ruleControl(rule, null, values, (_, i) => rule.failing(i))),
    ...rules.map((rule) => ruleControl(rule, scale, values, failing)),
  ];
  const draw = () => {
    chart.draw((i) => (decided().reasons[i] === null ? 0 : own.has(decided().reasons[i]) ? 1 : 2));
    controls.forEach((control) => control.draw());
  };
  state.listeners.push(draw);
  draw();
  const missing = values.filter(Number.isNaN).length;
  const low = scale.log ? 0 : scale.whole ? scale.low + 0.5 : scale.low,
    high = scale.log || !scale.whole ? scale.high : scale.high - 0.5;
  const middle = scale.from(0.5);
  return el(
    "div",
    {class: "card measure"},
    el("h3", {}, name, el("span", {class: "quiet"}, where)),
    chart.node,
    el(
      "div",
      {class: "axis"},
      el("span", {}, short(low)),
      el(
        "span",
        {},
        high - low > 2 || !scale.whole ? `${short(rounded(scale, middle))}${scale.log ? " (log)" : ""}` : "",
      ),
      el("span", {}, short(high)),
    ),
    controls.map((control) => control.node),
    missing ? el("p", {class: "quiet"}, `${count(missing)} documents have no value`) : null,
  );
}

// With a scale a number and a slider, without one only a switch.
function ruleControl(rule, scale, values, failing) {
  const named = `limit of ${rule.reason}`;
  const on = el("input", {
    type: "checkbox",
    "aria-label": `${rule.reason} is on`,
    onchange: () => setLimit(rule.reason, on.checked ? (rule.limit === null ? 0 : rule.limit) : null, rule.setting),
  });
  const number = el("input", {
    type: "number",
    step: "any",
    "aria-label": named,
    onchange: () => {
      if (number.value !== "" && Number.isFinite(number.valueAsNumber))
        setLimit(rule.reason, number.valueAsNumber, rule.setting);
    },
  });
  const slider = el("input", {
    type: "range",
    min: "0",
    max: "1000",
    step: "1",
    "aria-label": `slider for the ${named}`,
    oninput: () => setLimit(rule.reason, rounded(scale, scale.from(slider.valueAsNumber / 1000)), rule.setting),
  });
  const words = el("span", {class: "figures"});
  const draw = () => {
    const limit = limits()[rule.reason];
    on.checked = limit !== null;
    number.disabled = slider.disabled = limit === null;
    if (scale !== null && limit !== null) {
      if (document.activeElement !== number || number.valueAsNumber !== limit) number.value = String(limit);
      if (document.activeElement !== slider) slider.value = String(Math.round(1000 * scale.to(limit)));
      slider.setAttribute("aria-valuetext", String(limit));
    }
    const first = decided().reasons.filter((reason) => reason === rule.reason).length;
    let all = 0;
    if (limit !== null) for (let i = 0; i < values.length; i++) all += failing(rule, i);
    words.textContent =
      limit === null
        ? "off"
        : `drops ${count(first)} (${percent(first / Math.max(1, source().documents))})` +
          (all === first ? "" : `, ${count(all)} fail it`);
  };
  return {
    draw,
    node: el(
      "div",
      {class: "rule"},
      el("label", {}, on, ` ${rule.reason}`),
      words,
      scale === null
        ? null
        : [
            el("span", {class: "entry"}, el("span", {class: "quiet"}, `keeps\u00a0${SIGNS[rule.side]}`), number),
            slider,
          ],
    ),
  };
}

// ---- lengths and languages

function drawLengths() {
  const charts = [
    ["characters", source().chars],
    ["words", source().words],
  ].map(([name, values]) => {
    const scale = makeScale(values, []),
      chart = new Histogram(values, scale, ["kept", "dropped"], []);
    const draw = () => chart.draw((i) => (decided().stages[i] === null ? 0 : 1));
    state.listeners.push(draw);
    draw();
    const sorted = Float64Array.from(values).sort(),
      at = (share) => sorted[Math.floor(share * (sorted.length - 1))] || 0;
    return el(
      "div",
      {class: "card"},
      el("h3", {}, name),
      chart.node,
      el(
        "div",
        {class: "axis"},
        el("span", {}, short(scale.log ? 0 : Math.ceil(scale.low) + 0)),
        el("span", {}, `${short(rounded(scale, scale.from(0.5)))}${scale.log ? " (log)" : ""}`),
        el("span", {}, short(Math.floor(scale.high))),
      ),
      el(
        "p",
        {class: "figures"},
        `median ${count(at(0.5))}, 10 % below ${count(at(0.1))}, 10 % above ${count(at(0.9))}`,
      ),
    );
  });
  const labels = Object.entries(source().labels).map(([name, label]) => labelCard(name, label));
  place("lengths").replaceChildren(...heading("Lengths and languages"), el("div", {class: "cards"}, charts, labels));
}

const SHOWN_LABELS = 25;

function labelCard(title, {names, codes}) {
  const body = el("tbody"),
    more = names.length - SHOWN_LABELS;
  const draw = () => {
    const rows = names.map(() => [0, 0]);
    codes.forEach((code, i) => {
      rows[code][0]++;
      rows[code][1] += decided().stages[i] === null;
    });
    const cells = (name, [all, kept]) => [
      name || "not identified",
      count(all),
      percent(all / Math.max(1, source().documents)),
      count(kept),
      percent(kept / Math.max(1, all)),
    ];
    body.replaceChildren(
      ...names.slice(0, SHOWN_LABELS).map((name, n) =>
        el(
          "tr",
          {},
          cells(name, rows[n]).map((text) => el("td", {}, text)),
        ),
      ),
    );
  };
  state.listeners.push(draw);
  draw();
  const heads = [title, "documents", "share", "kept", "kept share"];
  return el(
    "div",
    {class: "card"},
    el("h3", {}, title),
    el("div", {class: "scroll"}, numbers(heads, body)),
    more > 0 ? el("p", {class: "quiet"}, `and ${count(more)} more`) : null,
  );
}
