"""Batches as a user gives them, checked and cut into micro-batches."""
