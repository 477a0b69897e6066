"""The same command gives the same bits, with two threads too: the sums inside a step are added in one order.

Leaves out whole commands, idle and beside other work: `tests/algorithms/test_equal_commands.py`, which takes minutes.
"""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from telescope.control.agents.distributions import categorical
from telescope.language.models import causal as models
from telescope.language.models.states import completion_states, trunk_of
from telescope.threads import own_settings, settle

REPEATS = 8  # with the gradient of `x[rows]` in the place of `index_select`'s, two repeats rarely agree


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("packed", [False, True])
def test_the_gradient_of_a_group_that_shares_its_prompt_and_its_copies_is_one_number(packed: bool) -> None:
    # Large enough that torch shares the sums out: it does from 32,768 numbers on.
    model = models.tiny(0)
    trunk = trunk_of(model)
    generator = torch.Generator().manual_seed(0)
    prompts = torch.randint(0, 8, (1, 12), generator=generator)
    kinds = torch.randint(0, 8, (32, 12), generator=generator)
    tokens = kinds[torch.randint(0, 32, (128,), generator=generator)]  # both threads meet copies of each kind
    batch = (prompts, torch.ones_like(prompts, dtype=torch.bool)), (tokens, torch.ones_like(tokens, dtype=torch.bool))
    weights = torch.randn(128, 12, 1, generator=generator)

    def gradient() -> Tensor:
        states = completion_states(trunk, *batch, group=128, packed=packed)
        found = torch.autograd.grad((weights * states).sum(), list(trunk.parameters()))
        return torch.cat([x.flatten() for x in found])

    first = gradient()
    assert all(torch.equal(gradient(), first) for _ in range(REPEATS))


def test_whatever_network_a_run_trains_its_gradient_is_one_number() -> None:
    # A network of the user's own may read rows several times over by x[rows], as a mixture of experts does.
    x = torch.randn(32, 512, requires_grad=True)
    rows = torch.randint(0, 32, (512,))
    weights = torch.randn(512, 512)

    @own_settings
    def loop() -> Iterator[Tensor]:
        settle(2, "cpu")
        for _ in range(REPEATS):
            yield torch.autograd.grad((x[rows] * weights).sum(), x)[0]

    before = torch.get_deterministic_debug_mode()
    first, *others = loop()
    assert all(torch.equal(first, other) for other in others)
    assert torch.get_deterministic_debug_mode() == before  # outside, it is the caller's


def test_the_log_probability_of_an_action_has_a_gradient_without_a_scatter() -> None:
    # Compiled code leaves its fused loops for a scatter once sums have an order.
    outputs = torch.randn(5, 3, requires_grad=True)
    log_probs = categorical(3).log_prob(outputs, torch.tensor([0, 1, 2, 2, 0]), torch.tensor([[True, True, True]] * 5))
    expected = torch.log_softmax(outputs, -1)[torch.arange(5), [0, 1, 2, 2, 0]]
    assert torch.equal(log_probs, expected)
    names, todo = set(), [log_probs.grad_fn]
    while todo:
        node = todo.pop()
        names.add(type(node).__name__)
        todo += [parent for parent, _ in node.next_functions if parent is not None]
    assert not {name for name in names if "Gather" in name or "Index" in name}
