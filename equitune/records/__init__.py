"""What happened: the study's folder, the only truth, and the value objects that lie in it."""
