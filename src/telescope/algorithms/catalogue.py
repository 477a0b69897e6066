"""All algorithms as a table, for `telescope algorithms` and for readers who look for one.

Leaves out what each of them does (its file) and how it is called (`__init__.py`).
"""

from __future__ import annotations

from typing import Literal, NamedTuple


class Entry(NamedTuple):
    """One algorithm, by the name that a user types."""

    name: str
    subject: Literal["environment", "language task"]
    """What follows the name on the command line."""
    paper: str
    experience: Literal["on-policy", "off-policy", "data"]
    """Where samples come from: the policy that learns, a replay of older ones, or a data set."""
    actions: str
    """Action spaces that it takes."""
    page: str
    """Its page in docs/."""
    measured: str
    """One result; the page says by which command."""


ALL, TOKENS = "Discrete, MultiDiscrete, MultiBinary, Box, Dict", "tokens"
QUANTILES, GROUPS, LANGUAGE, ROWS = "quantile_critics.md", "groups.md", "language.md", "objectives.md"
GRADIENT = "gradient_ppo.md"
SARSA, TRUE_ONLINE = "Sutton & Barto 2018, section 12.7", "van Seijen et al. 2016, JMLR 17"
STREAM = "Elsayed et al. 2024, arXiv 2410.14606"
RLHF, GSPO = "Ouyang et al. 2022, arXiv 2203.02155", "Zheng et al. 2025, arXiv 2507.18071"
REINFORCE = "CartPole-v1, eight seeds, last 100 episodes of training: 499.9 after 500k steps"
A2C = "CartPole-v1, eight seeds, 500,000 steps: each ends with 500 in all of 100 evaluation episodes"
ACTORS = "CartPole-v1, four seeds, 500,000 steps: each ends with 500 in all of 100 evaluation episodes"
IMPALA = "CartPole-v1, four seeds, 500,000 steps: the worst has 488.4 over 100 evaluation episodes"
PPO = "All 128 seeds end with 500 in every one of their 100 evaluation episodes"
DGAE = "Shaik et al. 2025, arXiv 2507.17530"
TRPO = "Hopper-v5, eight seeds, 1,000,000 steps: 3,600 ± 119, the maximum over training"
ALL_500 = "CartPole-v1, eight seeds, 100,000 steps: 500 in all of 100 evaluation episodes"
SAC = "Pendulum-v1, eight seeds: −145 after 15,400 steps, the worst seed −150"
DQN = "eight seeds, 50,000 steps: each ends with 500 in all of 100 evaluation episodes"
PQN = "eight seeds, 200,000 steps: each ends with 500 in all of 100 evaluation episodes"
SUMS = "end at 96 to 99.7 % of the held-out sums of lm/addition"
GRPO = "grpo on CartPole-v1, eight seeds, last 100 episodes of training: 498.9 after 200k steps"

CATALOGUE = tuple(
    Entry(*row)
    for row in (
        ("reinforce", "environment", "Williams 1992, Machine Learning 8", "on-policy", ALL, "reinforce.md", REINFORCE),
        ("grpo", "environment", "Shao et al. 2024, arXiv 2402.03300", "on-policy", ALL, GROUPS, GRPO),
        ("dr_grpo", "environment", "Liu et al. 2025, arXiv 2503.20783", "on-policy", ALL, GROUPS, ""),
        ("dapo", "environment", "Yu et al. 2025, arXiv 2503.14476", "on-policy", ALL, GROUPS, ""),
        ("gspo", "environment", GSPO, "on-policy", ALL, GROUPS, ""),
        ("gspo_token", "environment", GSPO, "on-policy", ALL, GROUPS, ""),
        ("rloo", "environment", "Ahmadian et al. 2024, arXiv 2402.14740", "on-policy", ALL, GROUPS, ""),
        ("cispo", "environment", "MiniMax 2025, arXiv 2506.13585", "on-policy", ALL, GROUPS, ""),
        ("actor_critic", "environment", "Sutton & Barto 2018, section 13.5", "on-policy", ALL, "actor_critic.md", ""),
        ("a2c", "environment", "Mnih et al. 2016, arXiv 1602.01783", "on-policy", ALL, "a2c.md", A2C),
        ("a3c", "environment", "Mnih et al. 2016, arXiv 1602.01783", "on-policy", ALL, "a3c.md", ACTORS),
        ("impala", "environment", "Espeholt et al. 2018, arXiv 1802.01561", "off-policy", ALL, "impala.md", IMPALA),
        ("appo", "environment", "Luo et al. 2020, arXiv 1912.00167", "off-policy", ALL, "appo.md", ACTORS),
        ("trpo", "environment", "Schulman et al. 2015, arXiv 1502.05477", "on-policy", ALL, "trpo.md", TRPO),
        (
            "npg",
            "environment",
            "Kakade 2001; Rajeswaran et al. 2017, arXiv 1703.02660",
            "on-policy",
            ALL,
            "trpo.md",
            "",
        ),
        ("ppo", "environment", "Schulman et al. 2017, arXiv 1707.06347", "on-policy", ALL, "ppo.md", PPO),
        (
            "distributional_ppo",
            "environment",
            "Shaik et al. 2025, arXiv 2507.17530",
            "on-policy",
            ALL,
            QUANTILES,
            ALL_500,
        ),
        ("gradient_ppo", "environment", "Elelimy et al. 2025, arXiv 2507.09087", "on-policy", ALL, GRADIENT, ALL_500),
        ("bc", "environment", "Pomerleau 1988, NeurIPS 1", "data", ALL, "bc.md", ""),
        ("dqn", "environment", "Mnih et al. 2015, Nature 518", "off-policy", "Discrete", "dqn.md", DQN),
        ("sac", "environment", "Haarnoja et al. 2018, arXiv 1801.01290", "off-policy", "Discrete, Box", "sac.md", SAC),
        ("crossq", "environment", "Bhatt et al. 2024, arXiv 1902.05605", "off-policy", "Discrete, Box", "sac.md", ""),
        ("qr_dqn", "environment", "Dabney et al. 2017, arXiv 1710.10044", "off-policy", "Discrete", "dqn.md", ""),
        ("pqn", "environment", "Gallici et al. 2024, arXiv 2407.04811", "on-policy", "Discrete", "pqn.md", PQN),
        ("td_lambda", "environment", "Sutton & Barto 2018, section 12.2", "on-policy", ALL, "td_lambda.md", ""),
        ("true_online_td_lambda", "environment", TRUE_ONLINE, "on-policy", ALL, "td_lambda.md", ""),
        ("sarsa_lambda", "environment", SARSA, "on-policy", "Discrete", "sarsa_lambda.md", ""),
        ("true_online_sarsa_lambda", "environment", TRUE_ONLINE, "on-policy", "Discrete", "sarsa_lambda.md", ""),
        ("stream_ac", "environment", STREAM, "on-policy", ALL, "streaming.md", ""),
        ("stream_q", "environment", STREAM, "off-policy", "Discrete", "streaming.md", ""),
        ("stream_td", "environment", STREAM, "on-policy", ALL, "streaming.md", ""),
        ("sft", "language task", RLHF, "data", TOKENS, LANGUAGE, ""),
        ("reward_model", "language task", RLHF, "data", TOKENS, LANGUAGE, ""),
        ("ppo", "language task", RLHF, "on-policy", TOKENS, LANGUAGE, SUMS),
        ("grpo", "language task", "Shao et al. 2024, arXiv 2402.03300", "on-policy", TOKENS, LANGUAGE, SUMS),
        ("dr_grpo", "language task", "Liu et al. 2025, arXiv 2503.20783", "on-policy", TOKENS, ROWS, ""),
        ("dapo", "language task", "Yu et al. 2025, arXiv 2503.14476", "on-policy", TOKENS, ROWS, ""),
        ("gspo", "language task", GSPO, "on-policy", TOKENS, LANGUAGE, SUMS),
        ("gspo_token", "language task", GSPO, "on-policy", TOKENS, ROWS, ""),
        ("rloo", "language task", "Ahmadian et al. 2024, arXiv 2402.14740", "on-policy", TOKENS, ROWS, ""),
        ("cispo", "language task", "MiniMax 2025, arXiv 2506.13585", "on-policy", TOKENS, ROWS, ""),
        ("reinforce", "language task", "Williams 1992", "on-policy", TOKENS, ROWS, ""),
    )
)
