"""Convolution priors, one file each: `build(*, ...)` returns a MapPrior or a TokenPrior (`layers/prior.py`)."""
