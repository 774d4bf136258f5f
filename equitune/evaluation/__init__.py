"""What the measures are made of: images that are moved, pairs that are compared, and their statistics."""
