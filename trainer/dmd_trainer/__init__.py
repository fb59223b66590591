"""Distribution Matching Distillation: teachers, losses, training, evaluation, registry."""

import os

# Nobody hears of a run but those whom its manifest names. MLflow's client, which reads this when it is first imported,
# would report its use to MLflow's makers.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
