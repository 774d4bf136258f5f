"""Models, one file each: `build(shape, classes, prior, *, ...)` returns an nn.Module that takes images in [0, 1].

`shape` is (C, H, W). A model has two attributes beside its weights: `normalise`, its first layer, and `layers`,
which maps the path of each submodule to be measured to the layout of its output, in the order of depth.
"""
