"""The identity of a run folder: its record, its signature, and checks that its files belong to it."""
