"""Tasks: what is generated, in which spaces, under which group, and how samples are judged.

Plug-ins alone, beside `contract.py`, which says what a task is.
"""
