"""Proves who calls: keys, and later tokens, encryption at rest and the audit chain."""
