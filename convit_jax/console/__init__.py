"""The command line and the screen: what a user types, and what a user sees."""
