"""The lab: worlds whose truth is known, estimators measured against it, and tools that look into rollouts.

`lab.mdp` is for everybody who tests an estimator, also one from another library. Leaves out training.
"""
