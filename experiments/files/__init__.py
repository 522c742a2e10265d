"""Where files lie, locks, the cache, and what results were made with."""
