"""Small run folders of this library and others, for tests of the report."""

import dataclasses
import html.parser

import numpy as np

from telescope.runs import MetricsLog, RunFolder


@dataclasses.dataclass(frozen=True)
class Config:
    env: str = "CartPole-v1"
    seeds: int = 1
    seed: int = 0
    total_steps: int = 1000
    gamma: float = 0.99
    lam: float = 0.95


def ours(path, scores, *, steps=None, status="finished", algorithm="ppo", config=None, **columns):
    """A run whose seed s has the return `scores[s][i]` at step `steps[i]`. `columns`: name → value, or [S, T]."""
    scores = np.asarray(scores, float)
    config = config or Config(seeds=len(scores))
    run = RunFolder.create(path, config, algorithm=algorithm, execution={}, command=[])
    steps = steps or [1000 * (i + 1) // scores.shape[1] for i in range(scores.shape[1])]
    wide = {name: np.broadcast_to(np.asarray(x, float), scores.shape) for name, x in columns.items()}
    with MetricsLog(run, columns=["return_mean", *columns], tensorboard=False) as log:
        for i, step in enumerate(steps):
            log.write(
                [
                    {"step": step, "iteration": i, "seed": config.seed + s, "return_mean": scores[s, i]}
                    | {name: x[s, i] for name, x in wide.items()}
                    for s in range(len(scores))
                ]
            )
    run.set_status(status)
    return run.path


def cleanrl(path, returns, *, seed=1, env="CartPole-v1", total=1000, **columns):
    """Event files as CleanRL writes them with torch's SummaryWriter: an episode per scalar, at its global step."""
    from torch.utils.tensorboard import SummaryWriter

    settings = {"exp_name": "ppo", "env_id": env, "seed": seed, "total_timesteps": total, "learning_rate": 2.5e-4}
    table = "\n".join(f"|{key}|{value}|" for key, value in settings.items())
    writer = SummaryWriter(str(path))
    writer.add_text("hyperparameters", f"|param|value|\n|-|-|\n{table}")
    for step, score in returns:
        writer.add_scalar("charts/episodic_return", score, step)
        writer.add_scalar("charts/episodic_length", score, step)
    for name, points in columns.items():
        for step, value in points:
            writer.add_scalar(f"losses/{name}", value, step)
    writer.close()
    return path


class Page(html.parser.HTMLParser):
    """The tables of a page: rows of the texts of their cells, below the id of their section; and all its text."""

    def __init__(self, text):
        super().__init__()
        self.tables, self.text, self.tags, self._section, self._cell = {}, "", [], "", None
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.tags.append((tag, found))
        if tag == "section":
            self._section = found.get("id", "")
        elif tag == "table":
            self.tables.setdefault(self._section, []).append([])
        elif tag == "tr":
            self.tables[self._section][-1].append([])
        elif tag in ("td", "th"):
            self._cell = ""

    def handle_endtag(self, tag):
        if tag in ("td", "th"):
            self.tables[self._section][-1][-1].append(self._cell.strip())
            self._cell = None

    def handle_data(self, data):
        self.text += data
        if self._cell is not None:
            self._cell += data


def numbers(text):
    """The numbers of a cell such as `484.2 [470.1, 498.0]`."""
    plain = text.replace("−", "-").replace("[", " ").replace("]", " ").replace(", ", " ").replace(",", "")
    found = []
    for word in plain.split():
        try:
            found.append(float(word))
        except ValueError:
            continue
    return found
