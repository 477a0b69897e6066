"""Worker processes: how they start, and how seeds are spread over them."""
