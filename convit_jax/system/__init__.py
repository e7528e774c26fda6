"""The machine under the program: files, caches, memory pages."""
