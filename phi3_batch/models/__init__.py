"""What MLflow logs and loads: the models themselves, their signatures, and how they are logged."""
