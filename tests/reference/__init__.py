"""Padded networks written plainly from the papers: oracles of values, and what speed is held against."""
