"""Averages over moved images, one file each: `average(model, *, ...)` returns an Averaging (`layers/averaging.py`)."""
