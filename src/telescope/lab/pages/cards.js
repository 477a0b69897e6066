"use strict";
// What stands beside and below the timeline: the sum of one step, the curves over λ, tokens as text, the table, the code.

const endWord = (kind) => ["goes on", "terminated", "truncated", "end of the buffer"][kind];

function drawCards(now) {
  const here = now.column, t = state.step;
  byId("step-title").textContent = `Step ${here.times[t]}: Â = ${short(now.one.advantages[t])}`;
  byId("receipt").innerHTML = receipt(now, t);
  byId("step-words").textContent = stepWords(now, t);
  const svg = byId("step-lams"), at = [];
  for (const [name, setting, made, mark] of [
    [state.second, state.secondSetting, now.two, "var(--series-2)"],
    [state.first, state.firstSetting, now.one, "var(--series-1)"],
  ])
    if (made && ESTIMATORS[name].takes === "lam") at.push({ lam: setting.lam, value: made.advantages[t], mark });
  const values = now.grid.map((advantages) => advantages[t]);
  svg.innerHTML = overLambda(svg.clientWidth, svg.clientHeight, { xs: GRID, curves: [{ values, mark: "var(--series-1)" }], at });
  svg.setAttribute("aria-label", `Advantage of step ${here.times[t]}: ${short(values[0])} at λ = 0, ${short(values.at(-1))} at λ = 1`);
}

/** What a step's residual consists of, in words. */
function stepWords(now, t) {
  const here = now.column, kind = here.kinds[t], inside = (x) => (x < 0 ? `(${short(x)})` : short(x));
  const begins = `δ = ${short(here.rewards[t])}`, rest = ` − ${inside(here.values[t])} = ${short(now.deltas[t])}.`;
  if (kind === TERMINATED) return `${begins}${rest} The episode terminates here, so nothing follows.`;
  const why = {
    [GOES_ON]: "", [TRUNCATED]: " The episode is cut here; the value of the state it reached stands for the rest.",
    [BUFFER_END]: " The data stop here; the value of the state they reached stands for the rest.",
  }[kind];
  return `${begins} + ${short(state.gamma)} · ${inside(here.next[t])}${rest}${why}`;
}

const MOST_TERMS = 6;

/** The first terms of Â[t] = Σ weight · δ, the others together, and their sum. */
function receipt(now, t) {
  const weights = now.one.weights, times = now.column.times, advantage = now.one.advantages[t];
  const cell = (x) => `<td class="number">${short(x)}</td>`;
  const total = `<tr class="total"><td class="number">Â</td><td></td><td></td>${cell(advantage)}</tr>`;
  if (!weights) return `<tr><td colspan="4" class="soft">This estimator is not a sum of residuals with weights of γ and λ alone.</td></tr>${total}`;
  const products = weights.map((w, l) => w * now.deltas[t + l]), shown = weights.length > MOST_TERMS + 1 ? MOST_TERMS : weights.length;
  const rows = products.slice(0, shown).map((product, l) =>
    `<tr><td class="number">${times[t + l]}</td>${cell(now.deltas[t + l])}${cell(weights[l])}${cell(product)}</tr>`);
  const others = (words, x) => rows.push(`<tr class="soft"><td class="number" colspan="3">${words}</td>${cell(x)}</tr>`);
  const sum = (list) => list.reduce((a, b) => a + b, 0);
  if (shown < weights.length) others(`${weights.length - shown} more steps`, sum(products.slice(shown)));
  const rest = advantage - sum(products), size = sum(products.map(Math.abs));
  if (Math.abs(rest) > 1e-9 * (size + Math.abs(advantage))) others("next values that are not V of the next step", rest);
  return rows.join("") + total;
}

const traded = {}; // of a γ, for the λs of the grid

/** The trade-off over the whole rollout. */
function drawTradeOff() {
  const all = Array.from({ length: COLUMNS }, (_, c) => column(c));
  if (traded.gamma !== state.gamma) Object.assign(traded, { gamma: state.gamma, rows: tradeOff(all, state.gamma, GRID) });
  const distance = traded.rows.map((one) => one.distance), spread = traded.rows.map((one) => one.spread);
  const lam = ESTIMATORS[state.first].takes === "lam" ? state.firstSetting.lam : null;
  const here = lam === null ? null : tradeOff(all, state.gamma, [lam])[0];
  const at = here && [
    { lam, value: here.spread, mark: "var(--series-3)" }, { lam, value: here.distance, mark: "var(--series-4)" }];
  const curves = [{ values: spread, mark: "var(--series-3)" }, { values: distance, mark: "var(--series-4)" }];
  const svg = byId("trade");
  svg.innerHTML = overLambda(svg.clientWidth, svg.clientHeight, { xs: GRID, curves, at: at || [] });
  svg.setAttribute("aria-label", `From λ = 0 to 1 the distance to λ = 1 falls from ${short(distance[0])} to 0, and the spread goes from ${short(spread[0])} to ${short(spread.at(-1))}`);
  byId("trade-words").innerHTML = !here ? "" :
    `At λ = ${short(lam)} advantages are <b>${short(here.distance)}</b> away from λ = 1 (root mean square; ${short(here.shift)} on average) and spread by <b>${short(here.spread)}</b>.`;
}

// Tokens

const tokenAt = (now, t) => String(rollout.tokens[state.column][now.column.times[t]]).replaceAll("\n", "⏎");

/** The tokens of the column in view, on a tint of their advantage. */
function drawTokens(now) {
  const box = byId("tokens");
  box.hidden = !rollout.tokens;
  if (!rollout.tokens) return;
  const here = now.column, [first, last] = [state.view[0], Math.min(state.view[1], state.view[0] + 2000)];
  const largest = Math.max(1e-12, ...now.one.advantages.subarray(first, last + 1).map(Math.abs));
  const spans = [];
  for (let t = first; t <= last; t++) {
    const advantage = now.one.advantages[t], mark = advantage < 0 ? "var(--series-2)" : "var(--series-1)";
    const share = Math.round(55 * Math.abs(advantage / largest));
    const text = tokenAt(now, t).replaceAll("⏎", "⏎\n");
    spans.push(`<span data-at="${t}"${t === state.step ? ' class="chosen"' : ""} style="background:color-mix(in srgb, ${mark} ${share}%, transparent)">${escaped(text)}</span>`);
  }
  const prompt = rollout.prompts ? `<span class="prompt">${escaped(rollout.prompts[state.column])}</span>` : "";
  box.innerHTML = prompt + spans.join("");
}

// The table and the code

const HEADS = ["step", "end", "reward", "value", "next value", "δ", "Â of A", "target of A", "Â of B", "target of B"];

/** The steps in view. Each number has all its digits in the `value` of its element. */
function drawTable(now) {
  const here = now.column, [first, last] = state.view, stop = Math.min(last, first + MOST_ROWS - 1);
  const lists = [here.rewards, here.values, here.next, now.deltas, now.one.advantages, now.one.targets];
  if (now.two) lists.push(now.two.advantages, now.two.targets);
  byId("table-head").innerHTML = HEADS.slice(0, lists.length + 2).map((head, i) => `<th${i === 1 ? "" : ' class="number"'} scope="col">${head}</th>`).join("");
  const rows = [];
  for (let t = first; t <= stop; t++) {
    const numbers = lists.map((list) => `<td class="number"><data value="${list[t]}">${short(list[t])}</data></td>`).join("");
    rows.push(`<tr data-at="${t}"${t === state.step ? ' class="chosen"' : ""}><th class="number" scope="row">${here.times[t]}</th><td>${here.kinds[t] === GOES_ON ? "" : endWord(here.kinds[t])}</td>${numbers}</tr>`);
  }
  if (stop < last) rows.push(`<tr><td colspan="${HEADS.length}" class="soft">and ${last - stop} more; zoom in to see them</td></tr>`);
  byId("numbers").innerHTML = rows.join("");
}

function drawCode() {
  const lines = [[state.first, state.firstSetting, "a"], [state.second, state.secondSetting, "b"]]
    .filter(([name]) => name !== NONE)
    .map(([name, setting, word]) => `${word} = ${ESTIMATORS[name].code(setting).replace("GAMMA", state.gamma)}`);
  const imports = lines.some((text) => text.includes("np.")) ? ["import numpy as np", "import telescope"] : ["import telescope"];
  byId("code").textContent = [...imports, "", 'ends = {"terminated": terminated, "truncated": truncated, "mask": mask}', ...lines].join("\n");
}
