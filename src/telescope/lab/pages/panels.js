"use strict";
// The timeline: panels that share one axis of steps. Reads `state` and what `compute` in explorer.js found.

const LEFT = 52, RIGHT = 12;
const KIND = ["", "terminated", "truncated", "cut"];
const END_WORDS = [
  [TERMINATED, "terminated", "nothing follows"],
  [TRUNCATED, "truncated", "the value of the state it reached follows"],
  [BUFFER_END, "end of the buffer", "likewise"],
];

/** The mark of an end at (x, y): a filled square, a diamond, or a triangle that points on. */
function sign(kind, x, y) {
  const shape = { [TERMINATED]: "M-4-4h8v8h-8z", [TRUNCATED]: "M0-5.5L5.5 0 0 5.5-5.5 0z", [BUFFER_END]: "M-4-5L5 0-4 5z" }[kind];
  return `<path class="sign ${KIND[kind]}" d="${shape}" transform="translate(${x.toFixed(1)} ${y})"/>`;
}

const PANELS = [
  {
    name: "rewards", title: "Rewards", height: 74, says: "r[t], what the environment paid.",
    now: (now, t) => named("r", 8, now.column.rewards[t]),
    lists: (now) => [now.column.rewards],
    draw: (now, x, y, [first, last]) => stroked(bars(now.column.rewards, first, last, x, y), "var(--series-8)", x),
  },
  {
    name: "values", title: "Values and targets", height: 104, anywhere: true, says: "V, and what the critic would learn: V + Â.",
    now: (now, t) => named("V", 3, now.column.values[t]) + both(now, (made) => made.targets[t]),
    lists: (now) => [now.column.values, now.one.targets, now.two ? now.two.targets : []],
    draw: (now, x, y, view) =>
      series(now.column.values, view, x, y, "var(--series-3)") +
      (now.two ? series(now.two.targets, view, x, y, "var(--series-2)", true) : "") +
      series(now.one.targets, view, x, y, "var(--series-1)"),
  },
  {
    name: "residuals", title: "TD residuals", height: 92,
    says: "δ[t] = r[t] + γV(s′) − V(s), the critic’s surprise. Dark ones count for the chosen step.",
    now: (now, t) => named("δ", 1, now.deltas[t]),
    lists: (now) => [now.deltas],
    draw: (now, x, y, [first, last]) => weighed(now, x, y, first, last),
  },
  {
    name: "advantages", title: "Advantages", height: 132,
    says: "Â[t], by how much the action beat expectation. The band holds every λ from 0 to 1.",
    now: (now, t) => both(now, (made) => made.advantages[t]),
    lists: (now) => [now.lowest, now.highest, now.one.advantages, now.two ? now.two.advantages : []],
    draw: (now, x, y, view) =>
      `<path class="band" d="${band(now.lowest, now.highest, ...view, x, y)}"/>` +
      (now.two ? series(now.two.advantages, view, x, y, "var(--series-2)", true) : "") +
      series(now.one.advantages, view, x, y, "var(--series-1)"),
  },
  {
    name: "difference", title: "Difference", height: 64, says: "Â of A minus Â of B.", wants: (now) => now.two,
    now: (now, t) => named("A − B", 4, now.difference[t]),
    lists: (now) => [now.difference, [0.001 * least(now.lowest), 0.001 * most(now.highest)]], // rounding stays small
    draw: (now, x, y, [first, last]) => stroked(bars(now.difference, first, last, x, y), "var(--series-4)", x),
  },
  {
    name: "weights", title: "Weights", height: 64, says: "How much each later residual counts for the chosen step: (γλ)^l for GAE.",
    wants: (now) => now.one.weights || (now.two && now.two.weights),
    now: (now, t) => both(now, (made) => weightOf(made, t)),
    lists: () => [[0, 1]],
    draw: (now, x, y, [first, last]) =>
      [[now.two, "var(--series-2)"], [now.one, "var(--series-1)"]]
        .filter(([made]) => made && made.weights)
        .map(([made, mark]) => area(made.weights, Math.max(first, state.step), last, x, y, mark))
        .join(""),
  },
];

const least = (list) => list.reduce((a, b) => Math.min(a, b), 0);
const most = (list) => list.reduce((a, b) => Math.max(a, b), 0);

/** A number with its name and the colour of its series. */
const named = (name, series, x) => `<i style="--mark: var(--series-${series})"></i>${name} <b>${short(x)}</b>`;
const both = (now, number) =>
  [["A", 1, now.one], ["B", 2, now.two]]
    .filter(([, , made]) => made && number(made) !== undefined)
    .map(([name, series, made]) => named(name, series, number(made)))
    .join("");
const weightOf = (made, t) => made.weights && (t >= state.step ? made.weights[t - state.step] || 0 : 0);
const curve = (path, mark, dashed, width = 1.75) =>
  `<path class="curve${dashed ? " dashed" : ""}" style="stroke:${mark};stroke-width:${width}" d="${path}"/>`;

/** A line through a number per step, with dots where steps are far apart. */
function series(values, [first, last], x, y, mark, dashed) {
  const dots = [];
  if (x(1) - x(0) > 14)
    for (let t = first; t <= last; t++) dots.push(`<circle r="2.6" cx="${x(t).toFixed(1)}" cy="${y(values[t]).toFixed(1)}" style="fill:${mark}"/>`);
  return curve(line(values, first, last, x, y), mark, dashed && x(1) - x(0) > 1, x(1) - x(0) > 1 ? 1.75 : 1) + dots.join("");
}

/** Bars as wide as their steps allow. */
function stroked(path, mark, x, opacity = 1) {
  const width = Math.min(14, Math.max(1, 0.7 * (x(1) - x(0))));
  return `<path class="stroke" style="stroke:${mark};stroke-width:${width.toFixed(1)};stroke-opacity:${opacity}" d="${path}"/>`;
}

/** All residuals pale, and over them those that count for the chosen step, in eight shades of their weight. */
function weighed(now, x, y, first, last) {
  const weights = now.one.weights || [];
  const shade = (t) => Math.ceil(8 * Math.abs(weights[Math.round(t) - state.step] || 0) - 1e-9);
  let found = stroked(bars(now.deltas, first, last, x, y), "var(--series-1)", x, "calc(1.3 * var(--pale))");
  for (let level = 1; level <= 8; level++) {
    const path = bars(now.deltas, Math.max(first, state.step), last, x, y, (t) => Math.min(8, shade(t)) === level);
    if (path) found += stroked(path, "var(--series-1)", x, level / 8);
  }
  return found;
}

function area(weights, first, last, x, y, mark) {
  const stop = Math.min(last, state.step + weights.length - 1);
  if (stop < first) return "";
  const all = (t) => weights[t - state.step];
  const shifted = Array.from({ length: stop - first + 1 }, (_, i) => all(first + i));
  const here = (t) => x(t + first);
  const path = line(shifted, 0, stop - first, here, y), zero = y(0).toFixed(1);
  const filled = `${path}L${x(stop).toFixed(1)},${zero}L${x(first).toFixed(1)},${zero}Z`;
  return `<path d="${filled}" style="fill:${mark};fill-opacity:0.12"/>${curve(path, mark)}<circle r="2.5" cx="${x(first).toFixed(1)}" cy="${y(all(first)).toFixed(1)}" style="fill:${mark}"/>`;
}

/** The panels' frames, once. */
function framePanels() {
  byId("panels").innerHTML = PANELS.map(({ name, title, says, height }) =>
    `<div class="panel" id="panel-${name}"><div><div><h3>${title}</h3><span class="says">${says}</span></div><span class="now"></span></div><svg height="${height}" aria-hidden="true"></svg></div>`
  ).join("") + '<svg id="axis" height="26" aria-hidden="true" style="width:100%"></svg>';
  byId("ends").innerHTML = END_WORDS.map(([kind, word, means]) =>
    `<li><svg viewBox="-7 -7 14 14" aria-hidden="true">${sign(kind, 0, 0)}</svg><span><b>${word}</b>: ${means}</span></li>`).join("");
}

/** x of a step, in pixels of the timeline. */
function axis(width) {
  const [first, last] = state.view, air = Math.min(20, (0.5 * (width - LEFT - RIGHT)) / (last - first + 1));
  return linear(first, last, LEFT + air, width - RIGHT - air);
}

/** Where the mark of an end stands: behind its step, within the picture. */
const endAt = (x, t, width) => Math.min(x(t + 0.5), width - 7);

function drawPanels(now) {
  const width = byId("panels").clientWidth, x = axis(width), taller = width > 700 ? 1.3 : 1, view = state.view, kinds = now.column.kinds;
  const ends = [];
  for (let t = view[0]; t <= view[1]; t++) if (kinds[t] !== GOES_ON) ends.push(t);
  const crowded = ends.length > width / 8; // then lines would hide the numbers
  for (const panel of PANELS) {
    const frame = byId(`panel-${panel.name}`);
    frame.hidden = Boolean(panel.wants && !panel.wants(now));
    if (frame.hidden) continue;
    const parts = panel.lists(now).map((list) => (list.length > 2 ? list.subarray(view[0], view[1] + 1) : list));
    const height = Math.round(panel.height * taller);
    const [low, high] = domain(parts, panel.anywhere), y = linear(low, high, height - 6, 6);
    const lines = crowded ? "" : ends.map((t) => `<path class="end ${KIND[kinds[t]]}" d="M${endAt(x, t, width).toFixed(1)},0V${height}"/>`).join("");
    const svg = frame.querySelector("svg");
    svg.setAttribute("height", height);
    svg.innerHTML = grid(low, high, y, LEFT, width - RIGHT, Math.max(2, height / 32)) + lines + panel.draw(now, x, y, view) +
      `<path class="cursor" d="M${x(state.step).toFixed(1)},0V${height}"/><path class="hover" d=""/>`;
  }
  drawAxis(now, x, ends, crowded, width);
  drawNow(now, state.step);
}

function drawAxis(now, x, ends, crowded, width) {
  const [first, last] = state.view, times = now.column.times;
  const wanted = rollout.tokens ? width / 55 : width / 110;
  const labels = ticks(first, Math.max(last, first + 1), Math.max(2, wanted)).filter((t) => Number.isInteger(t) && t <= last);
  byId("axis").innerHTML =
    labels.map((t) => `<text x="${x(t).toFixed(1)}" y="22" text-anchor="middle">${escaped(rollout.tokens ? tokenAt(now, t) : times[t])}</text>`).join("") +
    `<text x="${LEFT - 6}" y="22" text-anchor="end">t</text>` +
    (crowded ? [] : ends).map((t) => sign(now.column.kinds[t], endAt(x, t, width), 5)).join("");
}

/** The numbers of one step, in the panels' headings. */
function drawNow(now, t) {
  for (const panel of PANELS)
    if (!byId(`panel-${panel.name}`).hidden) byId(`panel-${panel.name}`).querySelector(".now").innerHTML = panel.now(now, t);
}

/** A pale line at the step under the pointer; null takes it away. */
function hover(now, t) {
  const x = axis(byId("panels").clientWidth);
  document.querySelectorAll("#panels .hover").forEach((path) => {
    path.setAttribute("d", t === null ? "" : `M${x(t).toFixed(1)},0V${path.parentNode.getAttribute("height")}`);
  });
  drawNow(now, t === null ? state.step : t);
}

/** The step at a pointer's position. */
function stepAt(clientX) {
  const box = byId("panels").getBoundingClientRect(), [first, last] = state.view, x = axis(box.width);
  const t = first + ((clientX - box.left - x(first)) / (x(last) - x(first) || 1)) * (last - first);
  return Math.min(last, Math.max(first, Math.round(t)));
}

/** The whole column in one strip: its episodes as bands, advantages as a line, and the part in view. */
function drawOverview(now) {
  const svg = byId("overview"), width = svg.clientWidth, height = 34, column = now.column;
  const x = linear(-0.5, column.n - 0.5, 1, width - 1), [low, high] = domain([now.one.advantages]);
  const shades = now.episodes.length > width / 3 ? [] : now.episodes.filter((_, i) => i % 2 === 0);
  const marks = now.episodes.length > width / 12 ? [] : now.episodes;
  svg.innerHTML =
    shades.map(([a, b]) => `<rect class="shade" x="${x(a - 0.5).toFixed(1)}" width="${(x(b + 0.5) - x(a - 0.5)).toFixed(1)}" height="${height}"/>`).join("") +
    `<path class="curve" style="stroke:var(--faint);stroke-width:1" d="${line(now.one.advantages, 0, column.n - 1, x, linear(low, high, height - 4, 4))}"/>` +
    marks.map(([, b]) => `<path class="end ${KIND[column.kinds[b]]}" d="M${Math.min(width - 1, x(b + 0.5)).toFixed(1)},${height - 9}V${height}" style="stroke-dasharray:none;stroke-width:2.5"/>`).join("") +
    `<rect class="view" rx="4" x="${x(state.view[0] - 0.5).toFixed(1)}" width="${Math.max(3, x(state.view[1] + 0.5) - x(state.view[0] - 0.5)).toFixed(1)}" y="0.5" height="${height - 1}"/>`;
}
