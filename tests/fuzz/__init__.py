"""Generated bad input for every door of the program: `tests/test_fuzz.py` runs it, and says how to run one case alone."""
