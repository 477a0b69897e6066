"""`benchmarks.actors`: what it counts, and the rows that it prints. Leaves out RLlib, which has a Python of its own."""

from benchmarks import actors
from benchmarks.actors import Counter, Rate, Task, line, median


def test_the_warm_up_does_not_count(monkeypatch):
    clock, used = iter([0.0, 1.0, 3.0, 3.0, 4.0, 6.0]), iter([10.0, 16.0])
    monkeypatch.setattr(actors.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(actors, "processor_seconds", lambda: next(used))
    counter = Counter((2.0, 3.0))
    assert [counter.over(steps) for steps in (500, 600, 700, 1_200)] == [False, False, False, True]
    assert counter.rate == Rate(200.0, 2.0)


def test_rows_compare_steps_per_second_and_per_processor():
    task = Task("impala", "CartPole-v1", 1)
    assert line(task, [Rate(1_000.0, 2.0), Rate(3_000.0, 1.0)]).endswith("| 1,000 | 2.0 | 3,000 | 1.0 | 3.0 | 6.0 |")
    assert line(task._replace(actors=0), [Rate(3_000.0, 1.0)]).count("|") == 9
    assert median([Rate(1.0, 5.0), Rate(2.0, 3.0), Rate(9.0, 4.0)]) == Rate(2.0, 4.0)
