"""Foreign files: weights, exported programs and layouts of other people's networks, checked before they run."""
