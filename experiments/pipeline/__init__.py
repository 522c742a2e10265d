"""The order of notebooks, and workers for their trajectories."""
