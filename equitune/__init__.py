"""equitune: which training choices make a network equivariant, and what does it cost in accuracy?"""

__version__ = "0.1.0"
