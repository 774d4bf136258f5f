"""What priors, downsamplers, averagings and networks are made of: their interfaces and their shared layers."""
