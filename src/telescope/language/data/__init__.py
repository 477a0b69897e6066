"""What a language model is given: tasks, rows, text and tokens, rewards, and the fingerprints of all of it."""
