"""Forward and backward passes, fast and exact; README.md beside this file explains it."""
