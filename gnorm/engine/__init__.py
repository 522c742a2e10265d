"""How forward and backward passes are made fast and exact; README.md beside this file explains it."""
