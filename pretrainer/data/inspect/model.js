"use strict";
// What limits drop: the arithmetic of the page, without a document object. pretrainer/data/inspect/funnel.py is its
// reference, and the tests hold the two against each other.
const Model = (() => {
  const TYPES = {u1: Uint8Array, u2: Uint16Array, u4: Uint32Array, f4: Float32Array, f8: Float64Array};
  const NEAR = "duplicate_near";

  function column(packed) {
    const bytes = Uint8Array.from(atob(packed.data), (c) => c.charCodeAt(0));
    return new TYPES[packed.type](bytes.buffer);
  }

  // The source with arrays in the place of packed columns.
  function unpack(source) {
    const step = (s) => ({
      ...s,
      measures: Object.fromEntries(Object.entries(s.measures).map(([name, packed]) => [name, column(packed)])),
      size_in: column(s.size_in),
      size_out: column(s.size_out || s.size_in),
    });
    const dedup = {
      ...source.dedup,
      equal: source.dedup.equal.map(([reason, packed]) => [reason, column(packed)]),
      fixed: new Map(source.dedup.fixed),
      size_in: column(source.dedup.size_in),
      size_out: column(source.dedup.size_out || source.dedup.size_in),
    };
    for (const name of ["starts", "earlier", "similarity"]) dedup[name] = column(dedup[name]);
    return {
      ...source,
      size: column(source.size),
      chars: column(source.chars),
      words: column(source.words),
      labels: Object.fromEntries(
        Object.entries(source.labels).map(([name, {names, codes}]) => [name, {names, codes: column(codes)}]),
      ),
      before: source.before.map(step),
      after: source.after.map(step),
      dedup,
    };
  }

  const steps = (source) => [...source.before, ...source.after];

  // reason -> limit, null where the rule is off; a stage that only annotates has its rules off.
  function ownLimits(source) {
    const limits = {};
    for (const step of steps(source)) {
      for (const rule of step.rules) limits[rule.reason] = step.annotates ? null : rule.limit;
    }
    for (const [reason] of source.dedup.equal) limits[reason] = 1;
    limits[NEAR] = source.dedup.threshold;
    return limits;
  }

  // NaN passes.
  const fails = (rule, limit, value) => (rule.side === "least" ? value < limit : value > limit);

  // {stages, reasons, duplicateOf, similarity}, an entry by document; stage null where it is kept.
  function decide(source, limits) {
    const count = source.documents;
    const decided = {
      stages: new Array(count).fill(null),
      reasons: new Array(count).fill(null),
      duplicateOf: new Int32Array(count).fill(-1),
      similarity: new Float64Array(count),
    };
    for (const step of source.before) apply(step, limits, decided);
    deduplicate(source.dedup, limits, decided);
    for (const step of source.after) apply(step, limits, decided);
    return decided;
  }

  function apply(step, limits, decided) {
    for (const rule of step.rules) {
      const limit = limits[rule.reason];
      if (limit === null) continue;
      const values = step.measures[rule.measure];
      for (let i = 0; i < values.length; i++) {
        if (decided.stages[i] === null && fails(rule, limit, values[i])) {
          decided.stages[i] = step.stage;
          decided.reasons[i] = rule.reason;
        }
      }
    }
  }

  // The earliest kept document that document i duplicates: [document, similarity, reason], or null.
  function original(dedup, limits, decided, first, i) {
    if (dedup.fixed.has(i)) return [-1, 0, dedup.fixed.get(i)];
    for (const [reason, group] of dedup.equal) {
      const known = first.get(`${reason}/${group[i]}`);
      if (group[i] && limits[reason] !== null && known !== undefined) return [known, 1, reason];
    }
    for (let p = dedup.starts[i]; p < dedup.starts[i + 1] && limits[NEAR] !== null; p++) {
      const earlier = dedup.earlier[p];
      if (decided.stages[earlier] === null && dedup.similarity[p] >= limits[NEAR])
        return [earlier, dedup.similarity[p], NEAR];
    }
    return null;
  }

  function deduplicate(dedup, limits, decided) {
    const first = new Map();
    for (let i = 0; i < decided.stages.length; i++) {
      if (decided.stages[i] !== null) continue;
      const found = original(dedup, limits, decided, first, i);
      if (found === null) {
        for (const [reason, group] of dedup.equal) {
          const key = `${reason}/${group[i]}`;
          if (group[i] && !first.has(key)) first.set(key, i);
        }
        continue;
      }
      decided.stages[i] = "dedup";
      [decided.duplicateOf[i], decided.similarity[i], decided.reasons[i]] = found;
    }
  }

  // A row by stage, in order; the source passes through those that it has not.
  function funnel(source, decided, stages) {
    const own = new Map();
    const add = (list) =>
      list.forEach((step) => {
        const seen = own.get(step.stage);
        own.set(step.stage, {sizeIn: seen ? seen.sizeIn : step.size_in, sizeOut: step.size_out});
      });
    add(source.before);
    if (source.dedup.on) own.set("dedup", {sizeIn: source.dedup.size_in, sizeOut: source.dedup.size_out});
    add(source.after);
    let alive = decided.stages.map(() => true),
      size = source.size;
    return (stages || [...own.keys()]).map((stage) => {
      const {sizeIn, sizeOut} = own.get(stage) || {sizeIn: size, sizeOut: size};
      const row = {
        stage,
        present: own.has(stage),
        documents_in: 0,
        bytes_in: 0,
        documents_dropped: 0,
        bytes_dropped: 0,
        bytes_edited: 0,
        documents_out: 0,
        bytes_out: 0,
      };
      alive = alive.map((was, i) => {
        if (!was) return false;
        row.documents_in++;
        row.bytes_in += sizeIn[i];
        const dropped = decided.stages[i] === stage;
        if (dropped) {
          row.documents_dropped++;
          row.bytes_dropped += sizeIn[i];
        } else {
          row.documents_out++;
          row.bytes_out += sizeOut[i];
        }
        return !dropped;
      });
      row.bytes_edited = row.bytes_in - row.bytes_dropped - row.bytes_out;
      size = sizeOut;
      return row;
    });
  }

  function addUp(funnels) {
    return funnels[0].map((_, n) => {
      const sum = {...funnels[0][n], present: funnels.some((rows) => rows[n].present)};
      for (const rows of funnels.slice(1)) {
        for (const key of Object.keys(sum)) if (typeof sum[key] === "number") sum[key] += rows[n][key];
      }
      return sum;
    });
  }

  // The bands whose stages are in a funnel, beside what these removed together.
  function judge(rows, bands) {
    return bands.flatMap((band) => {
      const own = rows.filter((row) => row.present && band.stages.includes(row.stage));
      if (!own.length || !own[0].documents_in) return [];
      const removed = 1 - own[own.length - 1].documents_out / own[0].documents_in;
      return [
        {
          band,
          removed,
          inside: band.least <= removed && removed <= band.most,
          last: own[own.length - 1].stage,
          stages: own.map((row) => row.stage),
        },
      ];
    });
  }

  const plain = (x) => String(Number(x.toPrecision(12)));

  // What a config needs so that a run has these limits: entries of rules and scores of the source, fields of the data
  // section, and notes about what is no single number.
  function settings(source, limits) {
    const own = ownLimits(source),
      rules = new Map(),
      fields = new Map(),
      notes = new Set();
    let scores = null;
    const put = (setting, limit, before, reason) => {
      if (setting && setting.in === "rules") rules.set(reason, limit === null ? "off" : String(limit));
      else if (setting && setting.in === "field" && limit !== null) {
        fields.set(setting.name, String(limit));
        for (const other of setting.also) fields.set(...other.split("="));
      } else if (setting && setting.in === "limits" && limit !== null) {
        const moved = setting.entries.map(([head, sign, value]) => `${head}${plain(value + sign * (limit - before))}`);
        const list = `[${[...moved, ...setting.others].join(", ")}]`;
        if (setting.name === "scores") scores = list;
        else fields.set(setting.name, list);
      } else notes.add(`${reason}${limit === null ? "=off" : `=${limit}`} is no single number of the config`);
    };
    for (const step of steps(source)) {
      for (const rule of step.rules) {
        const limit = limits[rule.reason];
        if (limit === own[rule.reason]) continue;
        if (step.annotates) notes.add(`take ${step.stage} out of annotate`);
        if (limit !== rule.limit) put(rule.setting, limit, rule.limit, rule.reason);
      }
    }
    for (const [reason] of source.dedup.equal) {
      if (limits[reason] !== own[reason])
        fields.set(source.dedup.settings[reason].name, String(limits[reason] !== null));
    }
    if (limits[NEAR] !== own[NEAR]) {
      if (limits[NEAR] === null) fields.set("data.dedup.near", "false");
      else put(source.dedup.settings[NEAR], limits[NEAR], own[NEAR], NEAR);
    }
    const kept = source.rules.filter((entry) => !rules.has(entry.split("=")[0]));
    const all = rules.size ? [...kept, ...[...rules].map(([reason, limit]) => `${reason}=${limit}`)] : [];
    return {rules: all, scores, fields: [...fields], notes: [...notes]};
  }

  return {unpack, column, steps, ownLimits, fails, decide, funnel, addUp, judge, settings};
})();
if (typeof module !== "undefined") module.exports = Model;
