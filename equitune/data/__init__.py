"""The images of a study: read, decoded, kept, split, resized, and on the device that trains."""
