"""Recorders keep what real trainers of other libraries computed: all of it is right, and a mistake in it is found."""

import types

import numpy as np
import pytest
from rollouts import advantages, world

from telescope.lab import files, recorders
from telescope.lab.doctor import examine

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


def limited(steps=20):
    """A CartPole whose time limit is short, so that episodes end in both ways."""
    import gymnasium as gym

    return gym.make("CartPole-v1", max_episode_steps=steps)


def sb3_model(name, **settings):
    import sb3_contrib
    import stable_baselines3
    from stable_baselines3.common.env_util import make_vec_env

    algorithm = getattr(stable_baselines3, name, None) or getattr(sb3_contrib, name)
    policy = "MlpLstmPolicy" if name == "RecurrentPPO" else "MlpPolicy"
    small = {} if name == "A2C" else {"batch_size": 32}
    environments = make_vec_env(limited, n_envs=3)
    if name == "MaskablePPO":
        environments = make_vec_env(masked, n_envs=3)
    return algorithm(policy, environments, n_steps=64, device="cpu", seed=0, **small, **settings)


def masked():
    from sb3_contrib.common.wrappers import ActionMasker

    return ActionMasker(limited(), lambda env: np.ones(2, bool))


@pytest.mark.parametrize("name", ["PPO", "A2C", "TRPO", "MaskablePPO", "RecurrentPPO"])
def test_the_callback_of_stable_baselines_keeps_a_right_rollout_with_both_ends(name, tmp_path):
    model = sb3_model(name, gamma=0.9, gae_lambda=0.8)
    model.learn(2 * 192, callback=recorders.sb3(tmp_path / "r.npz"))
    rollout = files.read(tmp_path / "r.npz")
    assert rollout.rewards.shape == (64, 3)
    assert set(np.unique(rollout.rewards)) == {1.0}  # the environment's own
    assert rollout.terminated.any()
    assert rollout.truncated.any()
    report = examine(rollout)
    assert not report.findings, report
    wrong = rollout._replace(truncated=None, terminated=rollout.terminated | rollout.truncated)
    assert [one.name for one in examine(wrong).findings] == ["bootstrapped_termination"]
    first = tuple(int(i) for i in np.argwhere(rollout.truncated)[0])
    assert examine(wrong).findings[0].row == first


def test_an_algorithm_without_a_rollout_buffer_is_refused(tmp_path):
    import stable_baselines3

    model = stable_baselines3.DQN("MlpPolicy", limited(), device="cpu")
    with pytest.raises(ValueError, match="DQN has none"):
        model.learn(10, callback=recorders.sb3(tmp_path / "r.npz"))


@pytest.mark.parametrize("flattened", [False, True])
@pytest.mark.parametrize("with_flags", [False, True])
def test_a_buffer_is_read_before_and_after_training_has_flattened_it(flattened, with_flags, tmp_path):
    model = sb3_model("PPO", n_epochs=1)
    model.learn(192)  # the buffer is flattened by then
    buffer = model.rollout_buffer
    assert buffer.values.shape == (192, 1)
    flags = {"dones": model._last_episode_starts} if with_flags else {}
    if not flattened:
        for name in ("values", "advantages", "returns"):
            setattr(buffer, name, getattr(buffer, name).reshape(3, 64).T)
    recorders.sb3_buffer(tmp_path / "r.npz", buffer, **flags)
    rollout = files.read(tmp_path / "r.npz")
    assert len(rollout.rewards) == (64 if with_flags else 63)
    report = examine(rollout)
    assert not report.findings, report
    moved = rollout._replace(terminated=np.roll(rollout.terminated, 1, 0))
    assert "shifted_flags" in [one.name for one in examine(moved).findings]


def test_a_buffer_that_is_not_full_is_refused(tmp_path):
    with pytest.raises(ValueError, match="holds 0 of 64"):
        recorders.sb3_buffer(tmp_path / "r.npz", sb3_model("PPO").rollout_buffer)


@pytest.mark.parametrize("columns", [1, 2])
@pytest.mark.parametrize("options", [{}, {"average_gae": True}, {"vectorized": False}])
def test_the_hook_of_torchrl_keeps_what_a_collector_and_gae_made(columns, options, tmp_path):
    import torch
    from tensordict.nn import TensorDictModule
    from torchrl.collectors import Collector
    from torchrl.envs import GymWrapper, SerialEnv, StepCounter, TransformedEnv
    from torchrl.objectives.value import GAE

    def environment():
        return TransformedEnv(GymWrapper(limited(1000).unwrapped, categorical_action_encoding=True), StepCounter(15))

    torch.manual_seed(0)
    critic = TensorDictModule(torch.nn.Linear(4, 1), in_keys=["observation"], out_keys=["state_value"])
    module = GAE(gamma=0.95, lmbda=0.9, value_network=critic, **options)
    module.register_forward_hook(recorders.torchrl(tmp_path / "r.npz"))
    made = environment() if columns == 1 else SerialEnv(columns, environment)
    made.set_seed(0)  # with which poles fall before the time limit, too
    collector = Collector(made, None, frames_per_batch=64 * columns, total_frames=64 * columns)
    for batch in collector:
        module(batch)
    collector.shutdown()
    rollout = files.read(tmp_path / "r.npz")
    assert rollout.rewards.shape == ((64,) if columns == 1 else (64, columns))
    assert rollout.next_values is not None
    assert rollout.truncated.any()
    assert rollout.terminated.any()
    report = examine(rollout)
    assert not report.findings, report
    assert np.isclose(rollout.gamma, 0.95)
    wrong = rollout._replace(gamma=0.9)
    assert [one.name for one in examine(wrong).findings] == ["other_discounts"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A language model of two layers, in a folder."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from telescope.language.models.tokenizer import EOS, PAD, VOCABULARY, characters

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    tokens = {"vocab_size": VOCABULARY, "pad_token_id": PAD, "eos_token_id": EOS, "bos_token_id": EOS}
    folder = tmp_path_factory.mktemp("tiny")
    LlamaForCausalLM(LlamaConfig(**sizes, **tokens)).save_pretrained(folder)
    characters().save_pretrained(folder)
    return folder


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("GRPO", {}),
        ("GRPO", {"scale_rewards": "none"}),
        ("GRPO", {"scale_rewards": "batch"}),
        ("RLOO", {}),
        ("RLOO", {"normalize_advantages": True}),
    ],
)
def test_the_callback_of_trl_keeps_scores_and_advantages_of_groups(kind, options, tiny, tmp_path):
    import trl
    from datasets import Dataset
    from transformers import AutoTokenizer

    def lengths(completions, **_):
        return [len(set(text)) / 7 for text in completions]

    def vowels(completions, **_):
        return [float(sum(text.count(vowel) for vowel in "aeiou")) for text in completions]

    settings = {
        "output_dir": str(tmp_path),
        "max_steps": 2,
        "per_device_train_batch_size": 12,
        "num_generations": 4,
        "max_completion_length": 12,
        "reward_weights": [1.0, 0.5],
        "report_to": "none",
        "disable_tqdm": True,
        "save_strategy": "no",
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "dataloader_pin_memory": False,
    }
    trainer = getattr(trl, f"{kind}Trainer")(
        model=str(tiny),
        reward_funcs=[lengths, vowels],
        args=getattr(trl, f"{kind}Config")(**settings | options),
        train_dataset=Dataset.from_list([{"prompt": f"{k} + 1 ="} for k in range(12)]),
        processing_class=AutoTokenizer.from_pretrained(tiny, padding_side="left"),
    )
    trainer.add_callback(recorders.trl(tmp_path / "r.npz", trainer))
    trainer.train()
    rollout = files.read(tmp_path / "r.npz")
    assert (rollout.rewards.shape, rollout.group) == ((12,), 4)
    report = examine(rollout)
    assert not report.findings, report
    assert report.notes == ["the advantages are relative to groups of 4"]
    order = np.random.default_rng(0).permutation(12)
    wrong = examine(rollout._replace(advantages=rollout.advantages[order]))
    assert [one.name for one in wrong.findings] == ["permuted_rows"]


def verl_batch(rng, pad=0.0):
    """The tensors of verl's core_algos.compute_gae_advantage_return, by its published recursion."""
    import torch

    w = world(rng, padded=True)
    mask = w.mask.T.astype(np.float32)
    inner = rng.random(mask.shape) < 0.2  # tokens of a tool
    last = mask.cumsum(1) == mask.sum(1, keepdims=True)
    mask = mask * ~(inner & ~last)
    rewards = w.rewards.T * last * mask
    values = np.where(mask > 0, w.values.T, pad)
    result, following, later = np.zeros(mask.shape), 0.0, 0.0
    for t in reversed(range(mask.shape[1])):
        delta = rewards[:, t] + w.gamma * following - values[:, t]
        here = delta + w.gamma * w.lam * later
        following = values[:, t] * mask[:, t] + (1 - mask[:, t]) * following
        later = here * mask[:, t] + (1 - mask[:, t]) * later
        result[:, t] = later
    live = result[mask > 0]
    whitened = (result - live.mean()) / np.sqrt(live.var(ddof=1) + 1e-8)
    numbers = {"token_level_rewards": rewards, "values": values, "advantages": whitened, "returns": result + values}
    batch = {name: torch.as_tensor(x, dtype=torch.float32) for name, x in (numbers | {"response_mask": mask}).items()}
    return batch, w


def test_the_dump_of_verl_is_right(tmp_path):
    for seed in range(30):
        batch, w = verl_batch(np.random.default_rng(seed), pad=float(seed % 2))
        data = types.SimpleNamespace(batch=batch)
        report = examine(files.read(recorders.verl(tmp_path / "r.npz", data, gamma=w.gamma, lam=w.lam)))
        assert not report.findings, (seed, report)
    batch, w = verl_batch(np.random.default_rng(1))
    assert len(batch["values"]) > 1
    wrong = batch | {"advantages": batch["advantages"].flip(0)}
    assert examine(files.read(recorders.verl(tmp_path / "r.npz", wrong, gamma=w.gamma, lam=w.lam))).findings


def test_a_real_buffer_of_tianshou_is_right_in_its_convention(tmp_path):
    from tianshou.data import Batch, VectorReplayBuffer
    from tianshou.policy import BasePolicy

    for seed in range(20):
        w = world(np.random.default_rng(seed))
        steps, columns = w.rewards.shape
        buffer = VectorReplayBuffer(steps * columns, columns)
        rows = {"rew": w.rewards, "terminated": w.terminated, "truncated": w.truncated}
        rows |= {"obs": w.values, "obs_next": w.final, "act": w.values}
        for t in range(steps):
            buffer.add(Batch({name: x[t] for name, x in rows.items()}))
        indices = buffer.sample_indices(0)
        batch = buffer[indices]
        batch.v_s, batch.v_s_ = batch.obs, batch.obs_next
        batch.returns, batch.adv = BasePolicy.compute_episodic_return(
            batch, buffer, indices, batch.v_s_, batch.v_s, gamma=w.gamma, gae_lambda=w.lam
        )
        names = ("rew", "v_s", "v_s_", "terminated", "truncated", "adv", "returns")
        unfinished = np.isin(indices, buffer.unfinished_index())
        arrays = {name: batch[name] for name in names} | {"gamma": w.gamma, "gae_lambda": w.lam}
        path = files.record(tmp_path / "r.npz", **arrays, unfinished=unfinished)
        report = examine(files.read(path, "tianshou"))
        assert not report.findings, (seed, report)
        assert np.array_equal(advantages(w).T.ravel(), batch.adv) or np.allclose(advantages(w).T.ravel(), batch.adv)
