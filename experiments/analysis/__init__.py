"""Trajectories compared: paired differences, claims, tables, figures."""
