"""Plain torch that networks share: index lists of pairs, padded slots, layers. Nothing here knows a network or a
kernel."""
