"""What was asked for: a study as its author writes it, and a trial with every value filled in."""
