"""Experience for language models: demonstrations, preferences, and sampled completions with their scores."""
