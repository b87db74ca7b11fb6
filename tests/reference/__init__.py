"""Padded networks written plainly from the specification: oracles of values, and what speed is held against."""
