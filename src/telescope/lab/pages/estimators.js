"use strict";
// The estimators of telescope in float64, one column of a rollout at a time: y[t] = x[t] + a[t] y[t+1].
// A column holds its live steps only, so a masked step needs no rule of its own. Leaves out everything that is drawn.

const GOES_ON = 0, TERMINATED = 1, TRUNCATED = 2, BUFFER_END = 3;

/** Numbers of a rollout, from base64: {type: "f8", data: "…"} → Float64Array. */
function decoded({ type, data }) {
  const kinds = { f4: Float32Array, f8: Float64Array, u1: Uint8Array, u4: Uint32Array };
  return new kinds[type](Uint8Array.fromBase64 ? Uint8Array.fromBase64(data).buffer : bytesOf(atob(data)).buffer);
}

function bytesOf(text) {
  const bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  return bytes;
}

/** Column c of the arrays [C, T]: its n live steps, with the value of the state that each led to, and how each ends. */
function columnOf(arrays, steps, c) {
  const first = c * steps, flags = arrays.flags.subarray(first, first + steps);
  const times = new Int32Array(steps).map((_, t) => t).filter((t) => flags[t] & 4), n = times.length;
  const picked = (array) => array && filled(n, (i) => array[first + times[i]]);
  const kinds = new Uint8Array(n), values = picked(arrays.values), next = new Float64Array(n);
  for (let i = 0; i < n; i++) {
    const flag = flags[times[i]], reached = arrays.reached[first + times[i]];
    kinds[i] = flag & 1 ? TERMINATED : flag & 2 ? TRUNCATED : i === n - 1 ? BUFFER_END : GOES_ON;
    next[i] = kinds[i] === TERMINATED ? 0 : !Number.isNaN(reached) ? reached : i < n - 1 ? values[i + 1] : 0;
  }
  return {
    n, times, rewards: picked(arrays.rewards), values, next, kinds, logRatios: picked(arrays.log_ratios),
    recorded: picked(arrays.advantages), recordedTargets: picked(arrays.returns),
  };
}

function filled(n, number) {
  const x = new Float64Array(n);
  for (let t = 0; t < n; t++) x[t] = number(t);
  return x;
}

/** y[t] = x[t] + a[t] y[t+1], y[n] = 0. */
function recurrence(x, a) {
  const y = new Float64Array(x.length);
  let later = 0;
  for (let t = x.length - 1; t >= 0; t--) y[t] = later = x[t] + (a[t] === 0 ? 0 : a[t] * later);
  return y;
}

/** δ[t] = r[t] + γ'[t] v'[t] − v[t], with γ' = 0 where terminated. */
const residuals = (column, gamma) =>
  column.rewards.map((r, t) => r + (column.kinds[t] === TERMINATED ? 0 : gamma * column.next[t]) - column.values[t]);

/** a[t] = γ λ[t] inside episodes, and 0 where one ends or the data stop. `lam` is a number or an array. */
const traces = (column, gamma, lam) =>
  filled(column.n, (t) => (column.kinds[t] === GOES_ON ? gamma * (typeof lam === "number" ? lam : lam[t]) : 0));

const sums = (x, y) => x.map((one, t) => one + y[t]);

function gae(column, gamma, lam) {
  const advantages = recurrence(residuals(column, gamma), traces(column, gamma, lam));
  return { advantages, targets: sums(column.values, advantages) };
}

/** λ'[t] = y[t] / (1 + y[t]) with y[t] = λκ'[t] (1 + y[t+1]): the mixture over the steps that remain. */
function endCorrected(column, lam) {
  const a = traces(column, 1, lam);
  return recurrence(a, a).map((y) => y / (1 + y));
}

/** Â⁽ᵏ⁾[t] = δ[t] + γκ'[t] Â⁽ᵏ⁻¹⁾[t+1], Â⁽⁰⁾ = 0. */
function kStep(column, gamma, k) {
  const x = residuals(column, gamma), a = traces(column, gamma, 1);
  const y = x.slice();
  for (let step = 1; step < Math.min(k, column.n); step++)
    for (let t = 0; t < column.n; t++) y[t] = x[t] + (a[t] === 0 ? 0 : a[t] * y[t + 1]); // y[t+1] is of step − 1 yet
  return { advantages: y, targets: sums(column.values, y) };
}

/** G[t] − v[t] with G[t] = r[t] + γ'[t] (κ[t] G[t+1] + (1 − κ[t]) v'[t]). GAE at λ = 1 if next values are those of V. */
function monteCarlo(column, gamma) {
  const stops = (t) => column.kinds[t] === TRUNCATED || column.kinds[t] === BUFFER_END;
  const x = column.rewards.map((r, t) => r + (stops(t) ? gamma * column.next[t] : 0));
  const targets = recurrence(x, traces(column, gamma, 1));
  return { advantages: targets.map((g, t) => g - column.values[t]), targets };
}

/** V-trace with one clip for all ratios: targets v + y, advantages ρ̄ (r + γ'(κ target[t+1] + (1 − κ) v') − v). */
function vtrace(column, gamma, lam, clip) {
  const rho = column.logRatios.map((x) => Math.min(clip, Math.exp(x)));
  const x = residuals(column, gamma).map((delta, t) => rho[t] * delta);
  const targets = sums(column.values, recurrence(x, traces(column, gamma, rho.map((one) => lam * one))));
  const advantages = targets.map((_, t) => {
    const kind = column.kinds[t], ahead = kind === GOES_ON ? targets[t + 1] : column.next[t];
    return rho[t] * (column.rewards[t] + (kind === TERMINATED ? 0 : gamma * ahead) - column.values[t]);
  });
  return { advantages, targets };
}

/** Every estimator: its words, what it needs, the numbers that it takes besides γ, and its advantages and targets. */
const ESTIMATORS = {
  gae: {
    label: "GAE(γ, λ)", takes: "lam",
    compute: (column, gamma, { lam }) => gae(column, gamma, lam),
    weights: (column, gamma, { lam }, t) => products(traces(column, gamma, lam), t),
    code: ({ lam }) => `telescope.gae(rewards, values, next_values, **ends, gamma=GAMMA, lam=${lam})`,
  },
  end_corrected: {
    label: "End-corrected GAE", takes: "lam",
    compute: (column, gamma, { lam }) => gae(column, gamma, endCorrected(column, lam)),
    weights: (column, gamma, { lam }, t) => products(traces(column, gamma, endCorrected(column, lam)), t),
    code: ({ lam }) => `telescope.gae(rewards, values, next_values, **ends, gamma=GAMMA, lam=telescope.end_corrected(values, **ends, lam=${lam}))`,
  },
  k_step: {
    label: "k steps", takes: "k",
    compute: (column, gamma, { k }) => kStep(column, gamma, k),
    weights: (column, gamma, { k }, t) => products(traces(column, gamma, 1), t).slice(0, k),
    code: ({ k }) => `telescope.k_step_advantage(rewards, values, next_values, **ends, gamma=GAMMA, k=${k})`,
  },
  td: {
    label: "TD residual (λ = 0)", takes: "",
    compute: (column, gamma) => gae(column, gamma, 0),
    weights: (column, gamma, _, t) => products(traces(column, gamma, 0), t),
    code: () => "telescope.td_error(rewards, values, next_values, terminated=terminated, mask=mask, gamma=GAMMA)",
  },
  monte_carlo: {
    label: "Monte Carlo (λ = 1)", takes: "",
    compute: monteCarlo,
    weights: (column, gamma, _, t) => products(traces(column, gamma, 1), t),
    code: () => "telescope.discounted_return(rewards, next_values, **ends, gamma=GAMMA) - values",
  },
  vtrace: {
    label: "V-trace", takes: "lam", needs: "logRatios",
    compute: (column, gamma, { lam }) => vtrace(column, gamma, lam, 1),
    code: ({ lam }) => `telescope.vtrace(rewards, values, next_values, log_ratios=log_ratios, **ends, gamma=GAMMA, lam=${lam})`,
  },
  recorded: {
    label: "Recorded", takes: "", needs: "recorded",
    compute: (column) => ({
      advantages: column.recorded,
      targets: column.recordedTargets || sums(column.values, column.recorded),
    }),
    code: () => 'np.load("rollout.npz")["advantages"]',
  },
};

/** 1, a[t], a[t] a[t+1], … until the first 0: the weights of δ[t], δ[t+1], … in the advantage of step t. */
function products(a, t) {
  const weights = [1];
  for (let l = t; l < a.length && a[l] !== 0; l++) weights.push(weights.at(-1) * a[l]);
  return weights;
}

/** The λs that are compared with each other, closer together near 1, where horizons differ most. */
const GRID = [0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.925, 0.95, 0.96, 0.97, 0.98, 0.985, 0.99, 0.995, 1];

/** Advantages of every λ of the grid, in one sweep over δ each. */
function overGrid(column, gamma) {
  const x = residuals(column, gamma);
  return GRID.map((lam) => recurrence(x, traces(column, gamma, lam)));
}

/** Over all steps of these columns, for each λ: standard deviation of Â, and distance to and mean difference from λ = 1. */
function tradeOff(columns, gamma, lams) {
  const totals = lams.map(() => ({ sum: 0, squares: 0, apart: 0, shift: 0 }));
  let count = 0;
  for (const column of columns) {
    const x = residuals(column, gamma), sampled = recurrence(x, traces(column, gamma, 1));
    count += column.n;
    lams.forEach((lam, i) => {
      const total = totals[i], advantages = recurrence(x, traces(column, gamma, lam));
      for (let t = 0; t < column.n; t++) {
        const one = advantages[t], apart = one - sampled[t];
        total.sum += one, total.squares += one * one, total.apart += apart * apart, total.shift += apart;
      }
    });
  }
  return totals.map(({ sum, squares, apart, shift }) => ({
    spread: Math.sqrt(Math.max(0, squares / count - (sum / count) ** 2)),
    distance: Math.sqrt(apart / count),
    shift: shift / count,
  }));
}

/** Episodes of a column: [first, last] in live steps. */
function episodesOf(column) {
  const found = [];
  let first = 0;
  for (let t = 0; t < column.n; t++)
    if (column.kinds[t] !== GOES_ON) {
      found.push([first, t]);
      first = t + 1;
    }
  return found;
}
