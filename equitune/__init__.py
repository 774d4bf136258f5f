"""equitune: which training choices make a network equivariant, and what does it cost in accuracy?"""

from equitune import torchvision_mend

__version__ = "0.1.0"

torchvision_mend.install()
