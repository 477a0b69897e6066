"""Processes beside the first: how they start, and how seeds are spread over them."""
