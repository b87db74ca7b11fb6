"""How the embedded data set `mini` and its data card are made; not needed to use it.

Run as `python -m bench.mini.make`; nothing else imports this package.
"""
