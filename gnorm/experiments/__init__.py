"""The paper's experiments and what goes beyond: profiles, data, training, runs, results, figures, the pipeline."""
