"""Profiles, corpora, trainings, the hub, and a profile's model with its batches."""
