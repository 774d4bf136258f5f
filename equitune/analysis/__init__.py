"""From records to conclusions: numbers only, no torch and no pictures."""
