"""Convolution priors, one file each: `build(*, ...)` returns a MapPrior or a TokenPrior (`groups/prior.py`)."""
