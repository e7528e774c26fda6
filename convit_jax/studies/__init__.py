"""Studies: many runs that differ in what is asked about, and what came out of them together."""
