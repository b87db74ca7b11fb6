"""Measures: what is measured of a trained model besides its samples. Plug-ins alone, beside `contract.py`."""
