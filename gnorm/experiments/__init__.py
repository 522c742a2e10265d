"""The paper's experiments and what goes beyond: profiles, data, training, runs, results, tables, figures, the report."""
