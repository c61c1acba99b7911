"""Remembers: one set of statements, two databases (SQLite and PostgreSQL), one contract suite."""
