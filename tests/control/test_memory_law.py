"""Sequences against steps: a rollout evaluated in sequences is what acting step by step gives, bit for bit in float64.

Leaves out the single functions of a memory (`test_memory.py`).
"""

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from telescope.algorithms import a2c, impala, ppo, trpo
from telescope.control.agents.actor import ActorCritic
from telescope.control.agents.layout import create
from telescope.control.agents.memory import CELLS, unroll, with_memory
from telescope.control.agents.networks import mlp
from telescope.control.experience.corrected import behaviour, unpacked, with_vtrace
from telescope.control.experience.credit import judged_again, memories, recalled, remembered, samples, with_advantages
from telescope.control.experience.samples import episode_begins
from telescope.control.training import Session
from telescope.policy import Policy
from worlds import Recall, Shown

SMALL = ppo.PPO(
    env=Recall,
    env_kwargs={"steps": 5},
    seeds=2,
    num_envs=5,
    num_steps=8,
    minibatch_size=16,
    epochs=2,
    total_steps=160,
    memory="gru",
    memory_size=16,
    hidden=(5,),
    threads=1,
    compile="off",
)


def shaken(session):
    """New parameters, so that biases are not 0 and memories differ."""
    noise = torch.randn(session.parameters.shape, generator=torch.Generator().manual_seed(0))
    session.learner = session._first_learner(session.parameters + 0.3 * noise)


def close(found, wanted):
    return torch.allclose(found, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("autoreset", ["same_step", "next_step"])
@pytest.mark.parametrize("truncated", [False, True])
@pytest.mark.parametrize(
    "settings", [{}, {"memory": "lstm"}, {"shared_memory": True}, {"memory_size": 3}, {"env": Shown}], ids=str
)
def test_sequences_are_steps(settings, truncated, autoreset):
    """Over three rollouts, so that episodes lie across their borders; outputs, values and memories.

    Bit for bit, but for pictures: a convolution sums the products of more pictures in another order.
    """
    same, scale = (close, 255) if "env" in settings else (torch.equal, 1)
    config = dataclasses.replace(SMALL, autoreset=autoreset, **settings)
    config = dataclasses.replace(config, env_kwargs={"steps": 5, "truncated": truncated})
    session = Session(config, None, ppo.Learner, recurrent=True)
    try:
        shaken(session)
        agent, vectors = session.agent, session.parameters.double()
        memory = torch.zeros(2, 5, agent.network.memory, dtype=torch.float64)
        ended = torch.ones(2, 5, dtype=torch.bool)
        met = 0
        for _ in range(3):
            rollout = session.collect()
            first, batch = memory.clone(), samples(session, rollout)
            first[ended] = 0.0
            for s in range(2):
                steps, h, begins = [], memory[s], ended[s]
                for t in range(8):  # as somebody who acts, with flags for episodes that begin
                    outputs, values, h = agent.step(vectors[s], rollout.observations[t, s].double() / scale, h, begins)
                    steps.append((outputs, values, h))
                    begins = rollout.terminated[t, s] | rollout.truncated[t, s] | ~rollout.mask[t, s]
                    met += int(begins.sum())
                memory[s], ended[s] = h, begins
                own = batch._replace(
                    observations=batch.observations[s].double() / scale,
                    memory=first[s].repeat(8, 1),
                    begins=batch.begins[s],
                )
                seen = remembered(agent, vectors[s], own, 8).unflatten(0, (8, 5))
                for t, (outputs, values, h) in enumerate(steps):
                    assert same(seen[t], h)
                    found = agent.network.apply(agent.layout.unflatten(vectors[s]), seen[t])
                    assert same(found[0], outputs)
                    assert same(found[1], values)
                new = episode_begins(rollout)[1:, s, :, None]
                kept = torch.where(new, 0.0, torch.stack([h for *_, h in steps[:-1]]))  # before steps 1 to 7
                torch.testing.assert_close(rollout.memory[1:, s].double(), kept, rtol=0, atol=1e-5)
        assert met > 10, "episodes ended"
    finally:
        session.close()


@pytest.mark.parametrize("rows", [1, 3, 4, 7])
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("kind", CELLS)
def test_all_cells_at_once_are_each_by_itself(kind, shared, rows):
    network = with_memory(mlp(16, 2, hidden=(3,)), 3, 16, kind, shared=shared)
    vectors, layout = create(network, [3])
    named = layout.unflatten(vectors[0].double() + 0.1)
    rng = torch.Generator().manual_seed(1)
    observations = torch.randn(9, rows, 3, generator=rng, dtype=torch.float64)
    memory = torch.randn(rows, network.memory, generator=rng, dtype=torch.float64)
    begins = torch.rand(9, rows, generator=rng) < 0.3
    found = network.unroll(named, observations, memory, begins)
    wanted = unroll(lambda x, h: network.remember(named, x, h), observations, memory, begins)
    assert torch.equal(found, wanted)


def test_the_lstm_is_torchs():
    torch.manual_seed(0)
    network = with_memory(mlp(5, 2, hidden=(3,)), 3, 5, "lstm")
    ours = {
        k: torch.as_tensor(x) + 0.1 * torch.randn(x.shape) for k, x in network.init(np.random.default_rng(0)).items()
    }
    theirs = nn.LSTMCell(3, 5)
    order = torch.tensor([0, 1, 3, 2])  # theirs are the gates i, f, g, o; ours i, f, o, g
    with torch.no_grad():
        for part, name in (("input", "ih"), ("hidden", "hh")):
            weight, bias = ours[f"memory.{part}.weight"].T, ours[f"memory.{part}.bias"]
            getattr(theirs, f"weight_{name}").copy_(weight.unflatten(0, (4, 5))[order].flatten(0, 1))
            getattr(theirs, f"bias_{name}").copy_(bias.unflatten(0, (4, 5))[order].flatten())
    seen, memory = torch.randn(7, 3), torch.randn(7, 10)
    wanted = torch.cat(theirs(seen, (memory[:, :5], memory[:, 5:])), 1).detach()
    torch.testing.assert_close(network.remember(ours, seen, memory), wanted, rtol=1e-5, atol=1e-6)
    arrays = {name: x.numpy() for name, x in ours.items()}
    np.testing.assert_allclose(network.remember(arrays, seen.numpy(), memory.numpy()), wanted, rtol=1e-5, atol=1e-6)
    vectors = torch.stack([torch.cat([x.reshape(-1) for x in ours.values()])] * 2)
    layout = create(network, [0])[1]
    both = network.remember(layout.unflatten(vectors), seen.expand(2, -1, -1), memory.expand(2, -1, -1))
    torch.testing.assert_close(both[1], wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", CELLS)
def test_policy_and_value_remember_apart(kind):
    """Neither reads the other's cell, and with two sizes the policy sees the first numbers only."""
    network = with_memory(mlp(8, 2, hidden=(3,)), (2, 3), 8, kind, shared=False)
    vectors, layout = create(network, [0])
    agent = ActorCritic(network, None, layout)
    seen = torch.randn(5, 4, 3, generator=torch.Generator().manual_seed(0))
    memory, begins = torch.zeros(4, network.memory), torch.zeros(5, 4, dtype=torch.bool)

    def answers(vector, observations):
        after = agent.unroll(vector, observations, memory, begins)[-1]
        return network.apply(layout.unflatten(vector), after)

    for which, part in ((0, "value."), (1, "policy.")):
        gradient = torch.func.grad(lambda v, which=which: answers(v, seen)[which].square().sum())(vectors[0])
        assert not gradient[layout.part(part)].any()
        assert gradient[layout.part("policy." if which == 0 else "value.")].any()
    other = seen.clone()
    other[..., 2] += 1
    assert torch.equal(answers(vectors[0], other)[0], answers(vectors[0], seen)[0])
    assert not torch.equal(answers(vectors[0], other)[1], answers(vectors[0], seen)[1])


def test_what_the_critic_alone_sees_stays_out_of_the_policys_memory():
    from test_dressing import Unseen

    config = dataclasses.replace(SMALL, env=Unseen, env_kwargs={}, critic_observations=("truth",))
    session = Session(config, None, ppo.Learner, recurrent=True)
    try:
        session.collect()
        named = session.agent.layout.unflatten(session.parameters[0])
        sizes = [len(named[f"{which}.memory.input.weight"]) for which in ("policy", "value")]
        assert sizes == [3, 8]
    finally:
        session.close()


@pytest.mark.parametrize("steps", [3, 4])  # 4: episodes end where rollouts do
def test_memories_are_recalled_by_other_parameters(steps):
    """As if the agents of these parameters had played the rollout from its first memory on, its final states too."""
    config = dataclasses.replace(SMALL, env_kwargs={"steps": steps, "truncated": True}, recompute_advantages=True)
    session = Session(config, None, ppo.Learner, recurrent=True)
    try:
        session.collect()
        rollout = session.collect()
        batch = samples(session, rollout)
        shaken(session)
        again = recalled(session, session.parameters, rollout)
        begins = episode_begins(rollout)
        for s in range(2):
            for b in range(5):
                h = rollout.memory[0, s, b]
                for t in range(8):
                    h = torch.zeros_like(h) if begins[t, s, b] else h
                    torch.testing.assert_close(again.memory[t, s, b], h, rtol=1e-4, atol=1e-6)
                    h = session.agent.see(session.parameters[s], rollout.observations[t, s, b][None], h[None])[0]
                    for k in np.flatnonzero((rollout.finals.places == [[t], [s], [b]]).all(0)):
                        torch.testing.assert_close(torch.tensor(again.finals.memory[k]), h, rtol=1e-4, atol=1e-6)
                ended = rollout.terminated[-1, s, b] | rollout.truncated[-1, s, b]
                wanted = torch.zeros_like(h) if ended else h
                torch.testing.assert_close(again.last_memory[s, b], wanted, rtol=1e-4, atol=1e-6)
        assert len(rollout.finals.memory) > 5
        judged, fresh = judged_again(session, rollout, batch)
        torch.testing.assert_close(judged.memory, again.memory)
        torch.testing.assert_close(fresh.memory, memories(again)[0])
        other = with_advantages(config, session, judged, fresh)
        assert not torch.allclose(other.values, batch.values)
    finally:
        session.close()


def test_equal_parameters_have_ratio_1_in_vtrace():
    config = impala.IMPALA(
        env=Recall,
        seeds=2,
        num_envs=3,
        num_steps=8,
        total_steps=96,
        memory="lstm",
        memory_size=4,
        hidden=(5,),
        threads=1,
    )
    session = Session(config, None, impala.Beginning(config), recurrent=True)
    try:
        shaken(session)
        sent = behaviour(config, session)(session.collect())
        rollout, log_probs = unpacked(sent)
        batch, clipped = with_vtrace(config, session, rollout, log_probs, session.parameters)
        assert clipped["rho_clipped"].tolist() == [0, 0]
        own = samples(session, rollout)
        torch.testing.assert_close(batch.values, own.values, rtol=1e-4, atol=1e-5)
        shaken(session)  # a learner that is ahead of who acted
        newer, _ = with_vtrace(config, session, rollout, log_probs, session.parameters)
        own = samples(session, recalled(session, session.parameters, rollout))
        torch.testing.assert_close(newer.values, own.values, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(newer.values, samples(session, rollout).values, rtol=1e-3)
    finally:
        session.close()


@pytest.mark.parametrize("settings", [{}, {"value_fit": "trust_region"}])
def test_trpo_fits_values_behind_their_own_memory(settings):
    """The policy stays where its step has put it, its memory included."""
    config = trpo.TRPO(
        env=Recall,
        seeds=2,
        num_envs=4,
        num_steps=8,
        minibatch_size=16,
        epochs=2,
        total_steps=32,
        memory="gru",
        memory_size=4,
        hidden=(5,),
        max_kl=1e-9,  # so that the policy stays
        threads=1,
        **settings,
    )
    session = Session(config, None, trpo.Learner, recurrent=True)
    before, layout = session.parameters[0], session.agent.layout
    session.close()
    [after] = [step.policy["parameters"][0] for step in trpo.train(config)]
    assert (after - before)[layout.part("policy.")].abs().max() < 1e-4
    assert (after - before)[layout.part("value.memory.hidden")].abs().max() > 1e-4


@pytest.mark.parametrize("kind", CELLS)
def test_a_state_is_passed_in_and_out(kind):
    """`act` with a state is what a player does, and so is a player that is told which episodes are over."""
    config = dataclasses.replace(SMALL, memory=kind, total_steps=40)
    *_, last = ppo.train(config)
    policy = Policy(config, last.policy)
    policy.parameters.normal_(generator=torch.Generator().manual_seed(0))
    rng = np.random.default_rng(0)
    seen = rng.uniform(-1, 1, (9, 3, 1)).astype(np.float32)
    begins = rng.random((9, 3)) < 0.3
    begins[0] = True
    player, told, state = policy.player(), policy.player(), policy.start(3)
    for observations, flags in zip(seen, begins, strict=True):
        told.reset(flags)
        values = policy.value(observations, state=state, begins=flags)
        actions, after = policy.act(observations, state=state, begins=flags)
        wanted = player(observations, begins=flags).tolist()
        assert actions.tolist() == wanted == told(observations).tolist()
        one, alone = policy.act(observations[1], state=state[1], begins=flags[1])
        assert one == actions[1]
        np.testing.assert_allclose(alone, after[1], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(policy.value(observations[1], state=state[1], begins=flags[1]), values[1], rtol=1e-4)
        state = after
    for wrong, told_so in (
        ({"state": state[:, :3]}, "state is"),
        ({"state": state, "begins": [True]}, r"begins has shape \(1,\)"),
        ({"state": state[:2]}, "3 observations, but"),
    ):
        with pytest.raises(ValueError, match=told_so):
            policy.act(seen[0], **wrong)
    with pytest.raises(ValueError, match=r"done has shape \(2,\)"):
        player.reset([True, False])
    forgetful = Policy(dataclasses.replace(config, memory="none", memory_size=64), next(
        ppo.train(dataclasses.replace(config, memory="none", memory_size=64))
    ).policy)  # fmt: skip
    with pytest.raises(ValueError, match="has no memory"):
        forgetful.act(seen[0], state=state)


def test_a_seed_alone_remembers_as_in_company():
    config = a2c.A2C(
        env=Recall,
        seeds=3,
        num_envs=3,
        num_steps=8,
        total_steps=96,
        memory="lstm",
        memory_size=8,
        hidden=(5,),
        threads=1,
    )
    *_, together = a2c.train(config)
    *_, alone = a2c.train(dataclasses.replace(config, seeds=1, seed=1))
    found, wanted = together.policy["parameters"][1], alone.policy["parameters"][0]
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-5)
