"""Augmentations, one file each: `augment(images, generator, *, ...)`, whole batches, on the images' own device.

Images are floating point (B, C, H, W) in [0, 1], before normalisation; each image of a batch gets its own draw. At
strength 0 (the argument that `STRENGTH` names) an augmentation returns its input unchanged.
"""
