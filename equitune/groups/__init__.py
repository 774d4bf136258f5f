"""The mathematics of symmetry: elements, their actions on images and feature maps, and the only interpolation code.

Shapes, here and in every room above: B images, C channels, G = |group|, H x W pixels, D features, T tokens.
"""
