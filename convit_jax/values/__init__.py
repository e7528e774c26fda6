"""What a value may be: ranges, and durations as people write them."""
