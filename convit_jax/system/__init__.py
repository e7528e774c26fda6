"""The operating system: paths, files, the cache, memory pages, devices."""
