"""Ours against the padded reference: `make perf`, `make performance`."""
