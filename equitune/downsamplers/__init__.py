"""Downsamplers, one file each: `build(*, ...)` returns a Downsampler (`layers/downsampler.py`)."""
