"""Studies: training runs that differ in model, fraction of the data and seed, and their results."""
