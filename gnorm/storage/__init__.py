"""Files and checkpoints: written whole or not at all, read with one check."""
