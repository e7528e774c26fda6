"""A name → random access to labelled bytes."""
