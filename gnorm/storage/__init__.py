"""Files, folders and checkpoints: written whole or not at all; checkpoints are read by one loader with one check."""
