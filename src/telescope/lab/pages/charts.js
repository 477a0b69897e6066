"use strict";
// Pictures as text: scales, ticks, and paths of SVG that never have more points than the screen. Knows no rollout.

const MINUS = "−";

/** A number in at most four significant digits. */
function short(x) {
  if (x === undefined || x === null || Number.isNaN(x)) return "–";
  if (!Number.isFinite(x)) return x > 0 ? "∞" : `${MINUS}∞`;
  const size = Math.abs(x);
  if (size < 1e-12) return "0";
  const text = size >= 1e6 || size < 1e-4 ? x.toExponential(2) : String(Number(x.toPrecision(4)));
  return text.replaceAll("-", MINUS);
}

const escaped = (text) => String(text).replace(/[&<>"]/g, (c) => `&#${c.charCodeAt(0)};`);

/** A map from [low, high] to [from, to]. */
const linear = (low, high, from, to) => (x) => from + ((x - low) / (high - low || 1)) * (to - from);

/** The least and the largest of some lists of numbers, with some air: around 0, or anywhere. */
function domain(lists, anywhere = false) {
  let low = anywhere ? Infinity : 0, high = anywhere ? -Infinity : 0;
  for (const list of lists)
    for (let i = 0; i < list.length; i++) {
      if (list[i] < low) low = list[i];
      if (list[i] > high) high = list[i];
    }
  if (high - low < 1e-9 * Math.max(Math.abs(low), Math.abs(high), 1e-3)) return anywhere ? [low - 1, high + 1] : [-1, 1];
  const air = 0.06 * (high - low);
  return [low < 0 || anywhere ? low - air : 0, high > 0 || anywhere ? high + air : 0];
}

/** About `count` round numbers between low and high. */
function ticks(low, high, count) {
  const raw = (high - low) / count, power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= 0.75 * raw);
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + 1e-9 * step; i++) found.push(i * step);
  return found;
}

/** A line through y(values[t]) at x(t), t from `first` to `last`. Where steps share a pixel: their least and largest. */
function line(values, first, last, x, y) {
  const width = Math.abs(x(last) - x(first)), perPixel = (last - first + 1) / Math.max(1, width);
  const points = [];
  if (perPixel <= 1.5) {
    for (let t = first; t <= last; t++) points.push(`${x(t).toFixed(1)},${y(values[t]).toFixed(1)}`);
    return points.length === 1 ? `M${points[0]}h0.01` : `M${points.join("L")}`;
  }
  eachPixel(values, first, last, perPixel, (t, low, high) => {
    points.push(`${x(t).toFixed(1)},${y(low).toFixed(1)}`, `${x(t).toFixed(1)},${y(high).toFixed(1)}`);
  });
  return `M${points.join("L")}`;
}

/** Bars from 0 to values[t], as one path of vertical strokes. `wanted` chooses steps. */
function bars(values, first, last, x, y, wanted = () => true) {
  const perPixel = (last - first + 1) / Math.max(1, Math.abs(x(last) - x(first)));
  const strokes = [];
  const stroke = (t, low, high) => strokes.push(`M${x(t).toFixed(1)},${y(low).toFixed(1)}V${y(high).toFixed(1)}`);
  if (perPixel <= 1.5) {
    for (let t = first; t <= last; t++) if (values[t] !== 0 && wanted(t)) stroke(t, 0, values[t]);
  } else {
    eachPixel(values, first, last, perPixel, (t, low, high) => {
      if ((low !== 0 || high !== 0) && wanted(t)) stroke(t, Math.min(0, low), Math.max(0, high));
    });
  }
  return strokes.join("");
}

/** The area between two lists of numbers. */
function band(lows, highs, first, last, x, y) {
  const perPixel = (last - first + 1) / Math.max(1, Math.abs(x(last) - x(first)));
  const above = [], below = [];
  eachPixel(highs, first, last, Math.max(1, perPixel), (t, _, high) => above.push(`${x(t).toFixed(1)},${y(high).toFixed(1)}`));
  eachPixel(lows, first, last, Math.max(1, perPixel), (t, low) => below.push(`${x(t).toFixed(1)},${y(low).toFixed(1)}`));
  return `M${above.join("L")}L${below.reverse().join("L")}Z`;
}

/** Calls back with each pixel's middle step, least and largest value. */
function eachPixel(values, first, last, perPixel, found) {
  for (let start = first; start <= last; ) {
    const stop = Math.min(last + 1, Math.max(start + 1, Math.floor(first + (Math.floor((start - first) / perPixel + 1e-9) + 1) * perPixel)));
    let low = values[start], high = values[start];
    for (let t = start + 1; t < stop; t++) {
      if (values[t] < low) low = values[t];
      if (values[t] > high) high = values[t];
    }
    found((start + stop - 1) / 2, low, high);
    start = stop;
  }
}

/** Horizontal grid lines with their numbers, inside [left, right]. */
function grid(low, high, y, left, right, count) {
  return ticks(low, high, count)
    .map((v) => {
      const at = y(v).toFixed(1), zero = Math.abs(v) < 1e-12 * (high - low) || v === 0;
      return `<path class="${zero ? "zero" : "rule"}" d="M${left},${at}H${right}"/><text x="${left - 6}" y="${at}" dy="0.32em" text-anchor="end">${short(v)}</text>`;
    })
    .join("");
}

/** A small chart of curves over λ in [0, 1]: {curves: [{values, mark}], at: [{lam, value, mark}]}. */
function overLambda(width, height, { xs, curves, at = [] }) {
  const left = 46, right = width - 10, top = 8, bottom = height - 22;
  const [low, high] = domain([...curves.map((c) => c.values), at.map((one) => one.value)]);
  const x = linear(0, 1, left, right), y = linear(low, high, bottom, top);
  const paths = curves.map(({ values, mark, dashed }) =>
    `<path class="curve${dashed ? " dashed" : ""}" style="stroke:${mark}" d="M${values.map((v, i) => `${x(xs[i]).toFixed(1)},${y(v).toFixed(1)}`).join("L")}"/>`);
  const points = at.map(({ lam, value, mark }) =>
    `<path class="cursor" d="M${x(lam).toFixed(1)},${top}V${bottom}"/><circle r="4" cx="${x(lam).toFixed(1)}" cy="${y(value).toFixed(1)}" style="fill:${mark}"/>`);
  const labels = [0, 0.25, 0.5, 0.75, 1].map((v) => `<text x="${x(v)}" y="${height - 6}" text-anchor="middle">${v}</text>`);
  return grid(low, high, y, left, right, 4) + labels.join("") + paths.join("") + points.join("");
}
