"""Metrics of samples, as functions of `Structures`; RDKit lives here.

No torch, no models and no run folders: tasks call these functions and store the values.
"""
