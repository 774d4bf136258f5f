"""What is known of a study before anything runs: its plan, its cost, and whether its networks can be built."""
