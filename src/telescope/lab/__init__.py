"""The lab: worlds whose truth is known, estimators measured against it, and tools that look into rollouts.

`lab.mdp` is for everybody who tests an estimator, also one from another library; `lab.record` writes a rollout of any
program for `telescope doctor`, and `lab.recorders` has one line for each library. Leaves out training.
"""

from telescope.lab.files import record

__all__ = ["record"]
