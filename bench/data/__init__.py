"""Data sets: one plug-in per file, found through `bench.registry.datasets`, and nothing else.

What data sets share is in `bench.structures`; loading one imports no RDKit.
"""
