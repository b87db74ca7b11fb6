"""Tasks: what is generated, in which spaces, under which group, and how samples are evaluated.

Plug-ins alone, and `contract.py`, which defines the interface of a task.
"""
