"""The same command gives the same bits, with two threads too: the sums inside a step are added in one order.

Leaves out whole commands, idle and beside other work: `tests/test_equal_commands.py`, which takes minutes.
"""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from telescope.language import models

REPEATS = 8  # with the gradient of `x[rows]` in the place of `index_select`'s, two repeats rarely agree


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)


def test_the_gradient_of_a_group_that_shares_its_prompt_and_its_copies_is_one_number() -> None:
    # Large enough that torch shares the sums out: it does from 32,768 numbers on.
    model = models.tiny(0)
    trunk = models.trunk_of(model)
    generator = torch.Generator().manual_seed(0)
    prompts = torch.randint(0, 8, (1, 12), generator=generator)
    kinds = torch.randint(0, 8, (32, 12), generator=generator)
    tokens = kinds[torch.randint(0, 32, (128,), generator=generator)]  # both threads meet copies of each kind
    batch = (prompts, torch.ones_like(prompts, dtype=torch.bool)), (tokens, torch.ones_like(tokens, dtype=torch.bool))
    weights = torch.randn(128, 12, 1, generator=generator)

    def gradient() -> Tensor:
        states = models.completion_states(trunk, *batch, group=128)
        found = torch.autograd.grad((weights * states).sum(), list(trunk.parameters()))
        return torch.cat([x.flatten() for x in found])

    first = gradient()
    assert all(torch.equal(gradient(), first) for _ in range(REPEATS))
