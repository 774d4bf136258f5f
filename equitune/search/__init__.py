"""Many trials: Ray Tune runs them, Optuna proposes them. The only room that imports ray and optuna."""
