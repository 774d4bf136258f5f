"""Any network, measured: networks from files, comparisons of networks, export, and the journal of a measurement."""
