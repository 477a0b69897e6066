"""A damaged run folder is refused with a sentence, or gives the very result of the whole one; nothing outside changes.

Kills: readers that trust a byte, follow a pipe or a link, or raise what is no sentence.
"""

import pytest

from folders import Fuzz


@pytest.fixture(scope="module")
def fuzz(tmp_path_factory):
    return Fuzz(tmp_path_factory.mktemp("fuzz"), ["ppo"])


def test_a_few_damaged_folders(fuzz):
    assert [found for seed in range(24) if (found := fuzz.case(seed))] == []


@pytest.mark.slow
def test_two_thousand_damaged_folders(tmp_path_factory):
    fuzz = Fuzz(tmp_path_factory.mktemp("fuzz"), ["ppo", "dqn", "sft", "grpo"])
    wrong = []
    for seed in range(1000, 3000):
        if found := fuzz.case(seed):
            print(found, flush=True)
            wrong.append(found)
    assert wrong == []
