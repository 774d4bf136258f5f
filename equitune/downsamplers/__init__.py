"""Downsamplers, one file each: `build(*, ...)` returns a Downsampler (`groups/downsampler.py`)."""
