"""Speed, measured against what others offer: `python -m benchmarks.estimators` (`make bench`).

It leaves out whether results are right, which is the tests' business, but for one rule: nothing wrong is timed.
"""
