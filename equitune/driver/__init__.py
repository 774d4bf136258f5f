"""Ray runs a study: the cluster, its machines, workers and places, and the driver's life."""
