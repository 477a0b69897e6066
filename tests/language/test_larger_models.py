"""Ways to fit a larger model leave loss and gradients as they are, to rounding: micro-batches, packing, checkpointing.

Over prompts and completions of many lengths, equal completions, several rewards and turns. Leaves out shares of several
processes (`test_parallel.py`) and what the ways save, which `python -m benchmarks.larger` measures.
"""

import copy
import dataclasses
import itertools

import pytest
import torch
from test_language_models import PAD, SUPPORTED, V, alone, made, texts

from telescope.algorithms import grpo, reward_model, rlhf, sft
from telescope.language.experience.rollout import RolloutSession
from telescope.language.experience.sampling import Prompts
from telescope.language.log_probs import token_log_probs
from telescope.language.micro_batches import Size, by_tokens, padded, within
from telescope.language.models import causal as models
from telescope.language.models import packing, states
from telescope.language.models.checkpointing import checkpoint_layers
from telescope.language.models.packing import arranged
from telescope.language.models.probe import probe
from telescope.language.models.states import completion_states, head_of, trunk_of

# Packing

RECURRENT = {"Lfm2", "Qwen3_5"}
MASKED_OTHERWISE = {"Bloom"}  # ALiBi takes positions from a mask over columns
PACKED = [name for name in SUPPORTED if name not in RECURRENT | MASKED_OTHERWISE]


@pytest.mark.parametrize("width", [10, 24, 512])
@pytest.mark.parametrize("group", [1, 6])
@pytest.mark.parametrize("name", PACKED)
def test_packed_texts_have_the_log_probabilities_and_gradients_of_each_alone(name, group, width, monkeypatch):
    monkeypatch.setattr(packing, "width_of", lambda trunk: width)
    model = made(name, SUPPORTED[name])
    rng = torch.Generator().manual_seed(1)
    prompts, tokens, mask = texts(rng)
    weights = torch.randn(tokens.shape, generator=rng)
    asked = prompts if group == 6 else Prompts(*(x.repeat_interleave(6, 0) for x in prompts))
    hidden = completion_states(trunk_of(model), asked, (tokens, mask), group=group, packed=True)
    found = []
    for log_probs in (
        token_log_probs(hidden, tokens=tokens, mask=mask, **head_of(model)).log_probs,
        alone(model, prompts, tokens, mask),
    ):
        (log_probs * weights).sum().backward()
        found.append((log_probs.detach(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}))
        model.zero_grad()
    (ours, gradients), (plain, expected) = found
    torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-4)
    largest = max(float(gradient.abs().max()) for gradient in expected.values())
    for parameter, gradient in expected.items():
        torch.testing.assert_close(gradients[parameter], gradient, rtol=1e-3, atol=2e-5 * largest, msg=parameter)


@pytest.mark.parametrize("name", PACKED)
def test_the_probe_lets_packing_pass_where_it_works(name):
    assert probe(made(name, SUPPORTED[name]), packing="on") is True
    assert probe(made(name, SUPPORTED[name]), packing="auto") is None


@pytest.mark.parametrize("name", sorted(RECURRENT | MASKED_OTHERWISE))
def test_the_probe_refuses_packing_where_it_leaks(name):
    model = made(name, SUPPORTED[name])
    assert probe(model, packing="auto") is False
    with pytest.raises(ValueError, match=rf"packing is 'on', but {name}ForCausalLM"):
        probe(model, packing="on")


def test_attention_that_leaks_between_packed_texts_is_refused(monkeypatch):
    """A model that ignores the mask it is given and looks at all that came before."""
    made_masks = packing._masks

    def leaking(trunk, layout):
        everything = torch.ones_like(layout.seen).tril()
        return made_masks(trunk, layout._replace(seen=everything))

    monkeypatch.setattr(packing, "_masks", leaking)
    with pytest.raises(ValueError, match=r"packing is .*, but LlamaForCausalLM"):
        probe(made("Llama", {}), packing="on")


def test_states_after_the_last_tokens_are_those_of_padded_texts():
    model = made("Llama", {})
    prompts, tokens, mask = texts(torch.Generator().manual_seed(1))
    padded_ones, packed_ones = (
        completion_states(trunk_of(model), prompts, (tokens, mask), group=6, after=True, packed=packed)
        for packed in (False, True)
    )
    assert packed_ones.shape == padded_ones.shape == (18, 8, 32)
    live = torch.arange(8) <= mask.sum(1, keepdim=True)
    torch.testing.assert_close(packed_ones[live], padded_ones[live], rtol=1e-4, atol=1e-5)


def ways(tokens, mask, group, *, after):
    """The number of different beginnings of each prompt's completions, without their last tokens."""
    found = 0
    for several, live in zip(tokens.unflatten(0, (-1, group)), mask.unflatten(0, (-1, group)), strict=True):
        texts_of = [row[: int(n) - (not after)].tolist() for row, n in zip(several, live.sum(1), strict=True)]
        found += len({tuple(text[: i + 1]) for text in texts_of for i in range(len(text))})
    return found


@pytest.mark.parametrize("after", [False, True])
def test_a_layout_has_each_prompt_and_each_beginning_once_and_no_padding(after):
    prompts, tokens, mask = texts(torch.Generator().manual_seed(1))
    tokens[:, 1:3] = 5  # so that completions part in the middle
    tokens[::2, 0] = 4
    layout = arranged(prompts, (tokens, mask), 6, width=100, after=after)
    assert int((layout.source >= 0).sum()) == 9 + 3 + 6 + ways(tokens, mask, 6, after=after)
    assert (layout.source >= 0).all()
    narrow = arranged(prompts, (tokens, mask), 6, width=20, after=after)
    assert narrow.source.shape[1] <= 20


def test_completions_of_equal_prompts_are_one_tree():
    """As in conversations that all begin alike."""
    prompts, tokens, mask = texts(torch.Generator().manual_seed(1))
    same = Prompts(prompts.tokens[[1, 0, 1]], prompts.mask[[1, 0, 1]])
    layout = arranged(same, (tokens, mask), 6, width=100)
    both = torch.cat([tokens[:6], tokens[12:]]), torch.cat([mask[:6], mask[12:]])
    expected = ways(*both, 12, after=False) + ways(tokens[6:12], mask[6:12], 6, after=False)
    assert int((layout.source >= 0).sum()) == 3 + 9 + expected


def test_texts_of_one_length_are_not_packed_unasked():
    """They need no mask as they are."""
    model, whole = made("Llama", {}), torch.ones(4, 6, dtype=torch.bool)
    rng = torch.Generator().manual_seed(0)
    tokens, several = torch.randint(3, V, (4, 6), generator=rng), torch.arange(6) < torch.tensor([[6], [2], [1], [1]])
    for mask, packed in ((whole, False), (several, True)):
        prompts = Prompts(tokens.flip(1), mask.flip(1))
        found = packing.packed_states(trunk_of(model), prompts, (tokens, mask), 1, saving=True)
        assert (found is not None) == packed
    layout = arranged(Prompts(tokens, whole), (tokens, whole), 1, width=30)
    assert layout.source.shape == (2, 22)  # two texts of 6 + 5 tokens


def test_a_row_is_as_wide_as_the_longest_text():
    prompts, tokens, mask = texts(torch.Generator().manual_seed(1))
    assert arranged(prompts, (tokens, mask), 6, width=1).source.shape[1] == 9 + 6
    assert arranged(prompts, (tokens, mask), 6, width=1, after=True).source.shape[1] == 9 + 7


@pytest.mark.parametrize("width", [12, 40])
def test_completions_that_part_in_the_middle_are_each_alone(width, monkeypatch):
    monkeypatch.setattr(packing, "width_of", lambda trunk: width)
    model = made("Mistral", SUPPORTED["Mistral"])
    prompts, tokens, mask = texts(torch.Generator().manual_seed(1))
    tokens = torch.where(mask, tokens % 3 + 4, 0)  # few kinds of tokens, so many common beginnings
    tokens[:, :2] = 5
    found = completion_states(trunk_of(model), prompts, (tokens, mask), group=6, after=True, packed=True)
    expected = completion_states(trunk_of(model), prompts, (tokens, mask), group=6, after=True)
    live = torch.arange(8) <= mask.sum(1, keepdim=True)
    torch.testing.assert_close(found[live], expected[live], rtol=1e-4, atol=1e-5)


# Checkpointing


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", ["Llama", "Gemma3", "Qwen3Moe", "Lfm2"])
def test_checkpointed_layers_have_the_same_values_and_gradients(name, packed):
    if packed and name in RECURRENT:
        pytest.skip("it cannot be packed")
    found, plain = [], made(name, SUPPORTED[name])
    for model in (plain, copy.deepcopy(plain)):
        if model is not plain:
            checkpoint_layers(model)
        prompts, tokens, mask = texts(torch.Generator().manual_seed(1))
        hidden = completion_states(trunk_of(model), prompts, (tokens, mask), group=6, packed=packed)
        log_probs = token_log_probs(hidden, tokens=tokens, mask=mask, **head_of(model)).log_probs
        log_probs.square().sum().backward()
        gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        found.append((log_probs.detach(), gradients))
    (one, expected), (other, gradients) = found
    assert torch.equal(one, other)
    assert gradients.keys() == expected.keys()
    for parameter, gradient in expected.items():
        assert torch.equal(gradients[parameter], gradient), parameter


def saved_numbers(model, group):
    """How many numbers the forward pass keeps for the backward pass, without weights."""
    known = {parameter.data_ptr() for parameter in model.parameters()}
    seen = {}

    def pack(tensor):
        if tensor.data_ptr() not in known:
            seen[tensor.data_ptr()] = tensor.numel()
        return tensor

    prompts, tokens, mask = texts(torch.Generator().manual_seed(1))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        held = completion_states(trunk_of(model), prompts, (tokens, mask), group=group)
    assert held.requires_grad
    return sum(seen.values())


def test_checkpointed_layers_keep_less():
    model = made("Llama", {"num_hidden_layers": 6})
    whole = saved_numbers(model, 6)
    checkpoint_layers(model)
    assert saved_numbers(model, 6) < 0.5 * whole


def test_a_copy_of_a_checkpointed_model_runs_its_own_weights():
    model = made("Llama", {})
    checkpoint_layers(model)
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.model.layers.parameters():
            parameter.mul_(2)
    tokens = torch.arange(3, 9)[None]
    assert not torch.equal(model(tokens).logits, other(tokens).logits)


def test_a_model_without_layers_to_run_again_is_refused():
    with pytest.raises(ValueError, match="gradient_checkpointing is set, but Linear has no layers"):
        checkpoint_layers(torch.nn.Linear(2, 2))


# A budget of tokens


@pytest.mark.parametrize("budget", [1, 7, 20, 55, 10_000])
def test_pieces_keep_the_order_and_the_budget(budget):
    rng = torch.Generator().manual_seed(budget)
    sizes = [Size(int(a), int(o), 3) for a, o in torch.randint(1, 9, (40, 2), generator=rng)]
    for rows in (slice(0, 40), slice(5, 17), slice(40, 40)):
        found = by_tokens(sizes, rows, budget)
        assert [i for piece in found for i in range(40)[piece]] == list(range(40)[rows])
        for piece in found:
            assert padded(sizes[piece]) <= budget or piece.stop - piece.start == 1
        for one, other in itertools.pairwise(found):  # no piece could take the next row too
            assert padded(sizes[one.start : other.start + 1]) > budget


def test_a_group_that_is_too_large_is_cut():
    assert padded([Size(2, 3, 2), Size(5, 1, 2)]) == 2 * 5 + 4 * 3
    assert within([Size(10, 5, 8)], 8, 30) == 4
    assert within([Size(10, 5, 8)], 8, 50) == 8
    assert within([Size(100, 5, 8)], 8, 30) == 1
    assert within([Size(2, 5, 8), Size(2, 5, 8)], 8, 30) == 16


# Whole updates

SMALL = {"total_steps": 1, "eval_every": 0, "eval_prompts": 4, "threads": 1}
ROLLOUTS = SMALL | {"prompts": 5, "group": 4, "minibatches": 1, "warm_start": 0.0, "max_tokens": 6}


def vowels(completions):
    return [sum(c in "aeiou" for c in text) + 0.25 * len(text) for text in completions]


def digits(completions):
    return [float(sum(map(ord, text)) % 7) for text in completions]


CASES = {
    "grpo": (grpo, grpo.GRPO(task="lm/addition", reward=digits, beta=0.1, **ROLLOUTS)),
    "gspo": (grpo, grpo.GRPO(task="lm/addition", reward=digits, objective="gspo", **ROLLOUTS)),
    "several": (grpo, grpo.GRPO(task="lm/addition", reward=(digits, vowels), normalise_each=True, **ROLLOUTS)),
    "ppo": (rlhf, rlhf.RLHF(task="lm/addition", reward=digits, truncation="bootstrap", **ROLLOUTS)),
    "ppo, head": (rlhf, rlhf.RLHF(task="lm/addition", reward=digits, value_model="head", **ROLLOUTS)),
    "turns, grpo": (grpo, grpo.GRPO(task="lm/guess", **{**ROLLOUTS, "max_tokens": 8})),
    "turns, ppo": (rlhf, rlhf.RLHF(task="lm/guess", gae_over="turns", **{**ROLLOUTS, "max_tokens": 8})),
    "sft": (sft, sft.SFT(task="lm/addition", batch_size=12, **SMALL)),
    "reward_model": (reward_model, reward_model.RewardModelling(batch_size=6, **SMALL)),
}
WAYS = {
    "budget": {"micro_tokens": 70},
    "small budget": {"micro_tokens": 13, "packing": "off"},
    "rows": {"micro_batch": 3, "packing": "off"},
    "padding": {"packing": "off"},
    "packing": {"packing": "on"},
    "checkpointing": {"gradient_checkpointing": True, "packing": "off"},
    "all": {"packing": "on", "micro_tokens": 60, "gradient_checkpointing": True},
}


@pytest.fixture(scope="module")
def whole():
    return {}


def learned(module, config):
    """What one step has made of the weights, the gradient's norm and the loss."""
    *_, last = module.train(config)
    row = last.rows[0]
    numbers = {name: row[name] for name in ("loss", "policy_loss", "value_loss", "gradient_norm") if row.get(name)}
    return numbers, last.state["optimiser"]["moments"]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("case", CASES)
def test_a_step_has_the_loss_and_the_gradients_of_the_whole_batch(case, way, whole):
    module, config = CASES[case]
    if case not in whole:
        whole[case] = learned(module, config)
    numbers, moments = learned(module, dataclasses.replace(config, **WAYS[way]))
    assert numbers.keys() == whole[case][0].keys()
    for name, number in whole[case][0].items():
        assert numbers[name] == pytest.approx(number, rel=2e-4, abs=2e-6), name
    largest = max(float(one["exp_avg"].abs().max()) for one in whole[case][1] if one)
    for found, expected in zip(moments, whole[case][1], strict=True):
        assert found.keys() == expected.keys()
        if expected:  # the first moment after one step is (1 − β) times the gradient
            torch.testing.assert_close(found["exp_avg"], expected["exp_avg"], rtol=1e-3, atol=2e-5 * largest)


@pytest.mark.parametrize("task", ["lm/addition", "lm/guess"])
def test_the_budget_is_kept(task, monkeypatch):
    places = []
    run = states._run

    def watched(trunk, tokens, mask, last, cache=None):
        places.append(tokens.numel())
        return run(trunk, tokens, mask, last, cache)

    monkeypatch.setattr(states, "_run", watched)
    config = grpo.GRPO(task=task, micro_tokens=64, packing="off", **{**ROLLOUTS, "max_tokens": 8})
    session = RolloutSession(config, grpo.row(config), None, grpo.STATISTICS)
    session.begin({"policy": session.policy}, None)
    rollout = session.collect()
    places.clear()
    seen = []
    for here, part in session.batches(rollout):
        seen += here.tolist()
        session.states(part)
    assert seen == list(range(20))
    assert len(places) > 2
    longest = max(size.asked + size.own for size in rollout.sizes(torch.arange(5)))
    assert max(places) <= max(64, longest)


def test_two_ways_to_say_how_much_are_one_too_many():
    with pytest.raises(ValueError, match="micro_tokens is 5, but micro_batch is 3"):
        grpo.GRPO(micro_batch=3, micro_tokens=5)


def test_models_of_positions_in_a_table_are_packed_by_their_own_positions():
    """GPT-2's table has 64 rows; a row of packed texts may be longer."""
    model = made("GPT2", PAD)
    rng = torch.Generator().manual_seed(2)
    mask = torch.ones(8, 20, dtype=torch.bool)
    prompts = Prompts(torch.randint(3, V, (8, 20), generator=rng), mask)
    tokens = torch.randint(3, V, (8, 5), generator=rng)
    found = completion_states(trunk_of(model), prompts, (tokens, mask[:, :5]), packed=True)
    expected = completion_states(trunk_of(model), prompts, (tokens, mask[:, :5]))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_the_built_in_model_is_packed_and_checkpointed():
    model = models.tiny(0)
    checkpoint_layers(model)
    assert probe(model.eval(), packing="on") is True


def test_a_piece_without_a_token_to_run_calls_the_model_as_often_as_the_others(monkeypatch):
    """With FSDP ranks would wait for each other: one that had only ends of texts called the model once, not twice."""
    calls = []
    run = states._run
    monkeypatch.setattr(states, "_run", lambda *a: (calls.append(0), run(*a))[1])
    model = made("Llama", {})
    prompts, tokens, mask = texts(torch.Generator().manual_seed(1))
    for live in (mask, mask & (torch.arange(7) < 1)):
        calls.clear()
        found = completion_states(trunk_of(model), prompts, (tokens, live), group=6)
        assert found.shape == (18, 7, 32)
        assert len(calls) == 2
