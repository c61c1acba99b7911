"""Speaks HTTP. Knows the store, never the loops."""
