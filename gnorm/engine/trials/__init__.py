"""Models that the package's tests say nothing of, tried before they are believed."""
