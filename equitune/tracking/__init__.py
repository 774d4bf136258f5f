"""MLflow, as a projection of the study's folder. The only room that imports mlflow."""
