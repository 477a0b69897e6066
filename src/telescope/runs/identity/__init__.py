"""Whose a run folder is: its record, its signature, and whether its files are its own."""
