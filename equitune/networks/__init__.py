"""The network of a configuration: described once a trial, then built; its cost, memory and exactness."""
