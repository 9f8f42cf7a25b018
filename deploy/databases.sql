-- Run once, when the volume is empty: Dagster's database is made by POSTGRES_DB, MLflow's here.
CREATE DATABASE mlflow;
