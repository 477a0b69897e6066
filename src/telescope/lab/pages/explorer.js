"use strict";
// The page's state, what is computed from it, and its controls. One state, one `show`: nothing else changes the page.

const byId = (id) => document.getElementById(id);
const rollout = JSON.parse(byId("rollout").textContent);
const [STEPS, COLUMNS] = rollout.shape;
const arrays = Object.fromEntries(Object.entries(rollout.arrays).map(([name, one]) => [name, decoded(one)]));
if (arrays.places) { // successors are given only where they are not the value of the next live step
  const everywhere = new Float64Array(STEPS * COLUMNS).fill(NaN);
  arrays.places.forEach((place, i) => (everywhere[place] = arrays.reached[i]));
  arrays.reached = everywhere;
}

/** Columns are decoded when they are first looked at. */
const columns = new Map();
function column(c) {
  if (!columns.has(c)) columns.set(c, columnOf(arrays, STEPS, c));
  return columns.get(c);
}

const NONE = "none";
const FEW = 300; // live steps that are shown at once without a choice of episode
const MOST_ROWS = 1000; // of the table

const state = {
  column: 0, episode: -1, step: 0, view: [0, 0], gamma: rollout.gamma,
  first: "gae", firstSetting: { lam: rollout.lam, k: 5 },
  second: rollout.arrays.advantages ? "recorded" : NONE, secondSetting: { lam: rollout.lam, k: 5 },
};

let now = null; // what the page shows, by `compute`
const kept = {}; // what depends on column and γ alone

/** Everything that is drawn, from the state. */
function compute() {
  const here = column(state.column);
  if (kept.column !== here || kept.gamma !== state.gamma) Object.assign(kept, overLams(here, state.gamma));
  const made = (name, setting) => {
    const one = ESTIMATORS[name];
    return { ...one.compute(here, state.gamma, setting), weights: one.weights && one.weights(here, state.gamma, setting, state.step) };
  };
  const one = made(state.first, state.firstSetting);
  const two = state.second === NONE ? null : made(state.second, state.secondSetting);
  const difference = two && one.advantages.map((x, t) => x - two.advantages[t]);
  return { ...kept, one, two, difference };
}

/** Residuals, advantages of every λ of the grid, and the least and largest of these at each step. */
function overLams(here, gamma) {
  const grid = overGrid(here, gamma), lowest = grid[0].slice(), highest = grid[0].slice();
  for (const advantages of grid)
    for (let t = 0; t < here.n; t++) {
      if (advantages[t] < lowest[t]) lowest[t] = advantages[t];
      if (advantages[t] > highest[t]) highest[t] = advantages[t];
    }
  return { column: here, gamma, deltas: residuals(here, gamma), grid, lowest, highest, episodes: episodesOf(here) };
}

/** Draw the page again, once per frame however often it is asked. */
let waiting = false;
function show() {
  if (waiting) return;
  waiting = true;
  requestAnimationFrame(() => {
    waiting = false;
    draw();
  });
}

function draw() {
  now = compute();
  showControls();
  drawPanels(now);
  drawOverview(now);
  drawTokens(now);
  drawCards(now);
  later(drawTradeOff);
  if (byId("table").open) drawTable(now);
  drawCode();
  remember();
}

/** Run a slow part when the page rests. */
let resting = 0;
function later(part) {
  clearTimeout(resting);
  resting = setTimeout(part, 60);
}

// Choices

function choose(changes) {
  Object.assign(state, changes);
  if ("column" in changes) chooseEpisode(column(state.column).n > FEW ? 0 : -1);
  show();
}

/** Episode −1 is the whole column. */
function chooseEpisode(index) {
  const here = column(state.column), episodes = episodesOf(here);
  state.episode = Math.max(-1, Math.min(episodes.length - 1, index));
  state.view = state.episode < 0 ? [0, Math.max(0, here.n - 1)] : episodes[state.episode];
  state.step = state.view[0];
  show();
}

/** Move to a step. If it is out of view, the view follows. */
function chooseStep(t) {
  const last = column(state.column).n - 1, [from, to] = state.view, width = to - from;
  state.step = Math.max(0, Math.min(last, t));
  if (state.step < from) state.view = [state.step, state.step + width];
  if (state.step > to) state.view = [state.step - width, state.step];
  show();
}

function zoom(factor) {
  const last = Math.max(0, column(state.column).n - 1), [from, to] = state.view;
  const width = Math.min(last, Math.max(6, Math.round((to - from) * factor)));
  const start = Math.max(0, Math.min(last - width, Math.round(state.step - width / 2)));
  state.view = [start, start + width];
  show();
}

// Controls

const offered = () =>
  Object.entries(ESTIMATORS).filter(([, one]) => !one.needs || column(0)[one.needs]).map(([name, one]) => [name, name === "recorded" ? rollout.recorded : one.label]);
const options = (pairs) => pairs.map(([value, label]) => `<option value="${value}">${escaped(label)}</option>`).join("");

function connect() {
  framePanels();
  byId("title").textContent = document.title;
  byId("facts").innerHTML = Object.entries(rollout.facts).map(([name, fact]) => `<div><dt>${escaped(name)}</dt><dd>${escaped(fact)}</dd></div>`).join("");
  byId("notes").innerHTML = rollout.notes.length ? `<p class="note">${escaped(rollout.notes.join(" "))}</p>` : "";
  byId("column").innerHTML = options(rollout.columns.map((name, c) => [c, name]));
  byId("first").innerHTML = options(offered());
  byId("second").innerHTML = options([[NONE, "none"], ...offered()]);
  byId("column").addEventListener("change", (event) => choose({ column: Number(event.target.value) }));
  byId("episode").addEventListener("change", (event) => chooseEpisode(Number(event.target.value)));
  byId("previous").addEventListener("click", () => chooseEpisode(state.episode - 1));
  byId("next").addEventListener("click", () => chooseEpisode(state.episode + 1));
  byId("closer").addEventListener("click", () => zoom(0.5));
  byId("wider").addEventListener("click", () => zoom(2));
  connectNumber(byId("gamma"), byId("gamma-number"), (gamma) => choose({ gamma }));
  for (const which of ["first", "second"]) {
    byId(which).addEventListener("change", (event) => choose({ [which]: event.target.value }));
    connectNumber(byId(`${which}-range`), byId(`${which}-number`), (value) => {
      const takes = ESTIMATORS[state[which]].takes;
      choose({ [`${which}Setting`]: { ...state[`${which}Setting`], [takes]: takes === "k" ? Math.round(value) : value } });
    });
  }
  byId("sweep").addEventListener("click", sweep);
  connectTimeline();
  byId("table").addEventListener("toggle", show);
  byId("numbers").addEventListener("click", (event) => {
    const row = event.target.closest("tr");
    if (row) chooseStep(Number(row.dataset.at));
  });
  new ResizeObserver(show).observe(byId("panels"));
}

/** A slider and the field of its exact number. A number out of range is not taken. */
function connectNumber(range, field, taken) {
  range.addEventListener("input", () => taken(Number(range.value)));
  field.addEventListener("change", () => {
    const value = Number(field.value);
    if (field.value !== "" && value >= Number(field.min) && value <= Number(field.max)) taken(value);
    else show();
  });
}

function connectTimeline() {
  const steps = byId("steps"), jump = () => Math.max(1, Math.round((state.view[1] - state.view[0]) / 10));
  const keys = {
    ArrowRight: () => chooseStep(state.step + 1), ArrowUp: () => chooseStep(state.step + 1),
    ArrowLeft: () => chooseStep(state.step - 1), ArrowDown: () => chooseStep(state.step - 1),
    Home: () => chooseStep(state.view[0]), End: () => chooseStep(state.view[1]),
    PageDown: () => chooseEpisode(state.episode + 1), PageUp: () => chooseEpisode(state.episode - 1),
    "+": () => zoom(0.5), "=": () => zoom(0.5), "-": () => zoom(2), "−": () => zoom(2),
  };
  steps.addEventListener("keydown", (event) => {
    const act = event.ctrlKey || event.metaKey || event.altKey ? null : keys[event.key];
    if (!act) return;
    event.preventDefault();
    if (event.shiftKey && event.key.startsWith("Arrow")) chooseStep(state.step + (/Right|Up/.test(event.key) ? jump() : -jump()));
    else act();
  });
  steps.addEventListener("click", (event) => chooseStep(stepAt(event.clientX)));
  steps.addEventListener("pointermove", (event) => event.pointerType === "mouse" && hover(now, stepAt(event.clientX)));
  steps.addEventListener("pointerleave", () => hover(now, null));
  byId("tokens").addEventListener("click", ({ target }) => {
    if (target.dataset.at !== undefined) chooseStep(Number(target.dataset.at));
  });
  byId("overview").addEventListener("click", (event) => {
    const box = byId("overview").getBoundingClientRect(), n = column(state.column).n;
    const t = Math.min(n - 1, Math.max(0, Math.floor(((event.clientX - box.left) / box.width) * n)));
    chooseEpisode(now.episodes.findIndex(([a, b]) => a <= t && t <= b));
    chooseStep(t);
  });
}

/** λ of A from 0 to 1 in four seconds, or until the button is pressed again. */
let sweeping = 0;
function sweep() {
  cancelAnimationFrame(sweeping);
  const button = byId("sweep"), on = button.getAttribute("aria-pressed") === "false";
  button.setAttribute("aria-pressed", String(on));
  if (!on) return;
  const began = performance.now();
  const frame = (time) => {
    const lam = Math.min(1, Math.max(0, (time - began) / 4000));
    choose({ firstSetting: { ...state.firstSetting, lam: Math.round(lam * 1000) / 1000 } });
    if (lam < 1) sweeping = requestAnimationFrame(frame);
    else button.setAttribute("aria-pressed", "false");
  };
  sweeping = requestAnimationFrame(frame);
}

/** What the controls say. */
function showControls() {
  const here = now.column;
  byId("column").value = state.column;
  const names = now.episodes.map(([a, b], i) => [i, `${i + 1} of ${now.episodes.length}: steps ${here.times[a]}–${here.times[b]}, ${endWord(here.kinds[b])}`]);
  byId("episode").innerHTML = options([[-1, `all ${here.n.toLocaleString("en")} steps`], ...names.slice(0, 5000)]);
  byId("episode").value = state.episode;
  byId("previous").disabled = state.episode < 0;
  byId("next").disabled = state.episode === now.episodes.length - 1;
  showNumber(byId("gamma"), byId("gamma-number"), state.gamma);
  for (const which of ["first", "second"]) {
    byId(which).value = state[which];
    showSetting(which);
  }
  byId("sweep").hidden = ESTIMATORS[state.first].takes !== "lam";
  const lam = ESTIMATORS[state.first].takes === "lam" ? state.firstSetting.lam : 1;
  const ahead = (a) => (a < 1 ? `${Number((1 / (1 - a)).toPrecision(3))} steps` : "no limit");
  byId("horizon").innerHTML = `Horizon 1/(1 − γ): <b>${ahead(state.gamma)}</b><br>of A, 1/(1 − γλ): <b>${ahead(state.gamma * lam)}</b>`;
  const slider = byId("steps"), t = state.step;
  slider.setAttribute("aria-valuemin", "0");
  slider.setAttribute("aria-valuemax", String(Math.max(0, here.n - 1)));
  slider.setAttribute("aria-valuenow", String(t));
  slider.setAttribute("aria-valuetext", `step ${here.times[t]}, reward ${short(here.rewards[t])}, advantage ${short(now.one.advantages[t])}`);
}

function showNumber(range, field, value) {
  range.value = value;
  if (document.activeElement !== field || Number(field.value) !== value) field.value = Number(value.toPrecision(6));
}

function showSetting(which) {
  const takes = state[which] === NONE ? "" : ESTIMATORS[state[which]].takes;
  const box = byId(`${which}-setting`), range = byId(`${which}-range`), field = byId(`${which}-number`);
  box.hidden = !takes;
  if (!takes) return;
  const limits = takes === "k" ? { min: 1, max: 100, step: 1 } : { min: 0, max: 1, step: 0.001 };
  Object.assign(range, limits);
  Object.assign(field, limits, { step: takes === "k" ? 1 : "any" });
  const word = takes === "k" ? "Steps k" : "Trace decay λ", of = which === "first" ? "A" : "B";
  box.querySelector("label").textContent = word;
  range.setAttribute("aria-label", `${word} of ${of}`);
  field.setAttribute("aria-label", `${word} of ${of}, exactly`);
  showNumber(range, field, state[`${which}Setting`][takes]);
}

// The address holds the view.

function remember() {
  const setting = (which) => (state[which] === NONE ? NONE : [state[which], state[`${which}Setting`][ESTIMATORS[state[which]].takes]].filter((x) => x !== undefined).join(":"));
  const words = { column: state.column, episode: state.episode, step: state.step, gamma: state.gamma, a: setting("first"), b: setting("second") };
  history.replaceState(null, "", `#${new URLSearchParams(words)}`);
}

function recall() {
  const words = new URLSearchParams(location.hash.slice(1));
  const whole = (name, low, high, otherwise) => {
    const value = Number(words.get(name) ?? NaN);
    return Number.isInteger(value) && value >= low && value <= high ? value : otherwise;
  };
  state.column = whole("column", 0, COLUMNS - 1, 0);
  const gamma = Number(words.get("gamma") ?? NaN);
  if (gamma >= 0 && gamma <= 1) state.gamma = gamma;
  for (const [which, word] of [["first", "a"], ["second", "b"]]) {
    const [name, value] = (words.get(word) || "").split(":");
    if (name !== NONE && !offered().some(([known]) => known === name)) continue;
    state[which] = name;
    const takes = name === NONE ? "" : ESTIMATORS[name].takes, most = takes === "k" ? 100 : 1;
    if (takes && Number(value) >= 0 && Number(value) <= most) state[`${which}Setting`] = { ...state[`${which}Setting`], [takes]: Number(value) };
  }
  chooseEpisode(whole("episode", -1, 1e9, column(state.column).n > FEW ? 0 : -1));
  chooseStep(whole("step", 0, 1e9, state.step));
}

connect();
recall();
