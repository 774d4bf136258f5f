"""One trial, in one process: build, fit, measure, return. Knows no Ray, no Optuna and no MLflow."""
