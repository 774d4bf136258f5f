"""Plain values that a trial reports: measurements, epochs, results."""
