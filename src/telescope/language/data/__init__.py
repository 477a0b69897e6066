"""Data for language models: tasks, rows, text and tokens, rewards, and their SHA-256 digests."""
