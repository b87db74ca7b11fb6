"""Building blocks shared by networks, in plain torch: pair lists, padding, layers. Nothing here knows a particular
network or a kernel."""
