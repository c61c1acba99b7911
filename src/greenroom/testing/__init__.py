"""Shipped tests and fakes: contracts that every store and engine must keep, and databases to run them on."""
