"""Values of configuration keys: ranges and durations."""
