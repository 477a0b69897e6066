"""What a language model learns from: demonstrations, preferences, and sampled completions with their scores."""
