"""Data sets, one file each: `load(root, *, ...)` returns `LabelledImages` (`data/labelled.py`), as arrays in memory.

A data set that can be fetched also has `download(root)`; nothing is ever downloaded unless that is asked for.
"""
