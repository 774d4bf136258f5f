"""Measures of learned equivariance, one file each: `measure(model, untrained, images, *, ...)` returns a `Report`.

A measure gives one value an image and a group element; `evaluation/pair_statistics.py` alone averages them.
`METRICS` names what a measure adds to a trial's metrics, and which direction is better; `GROUP_METRICS`, by group, what
it adds for that group alone.
"""
