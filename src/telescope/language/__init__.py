"""Language models as policies: a completion is an episode, and a token is an action.

Leaves out the training loops (`algorithms/`) and what runs leave on disk (`runs/`).
"""
