"""Which trial comes next, and when a study ends: Optuna proposes, budgets and rungs decide. No Ray and no torch."""
