"""The engine: one loop that closes the gap between known and computed tokens of every sequence."""
