"""Molecules as files hold them: numpy arrays, readers, writers, downloads, data sets' common contract.

No networks and no diffusion; torch only where structures become graphs, RDKit only where sdf is read.
"""
