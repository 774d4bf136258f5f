"""A trial from its configuration to its result: epochs, rungs, measurement, several processes."""
