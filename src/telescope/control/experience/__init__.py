"""What agents learn from: steps of the environments, normalised and kept as rollouts or in a replay buffer."""
