"""Experience that agents learn from: environment steps, as rollouts or in a replay buffer, and their normalisation."""
