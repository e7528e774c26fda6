"""Named data sources: random access to encoded images and their labels."""
