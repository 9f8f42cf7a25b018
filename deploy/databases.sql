-- Run once, when the volume is empty. Dagster's database is made by POSTGRES_DB; MLflow's here, with a user that may
-- enter no other.
\getenv password MLFLOW_POSTGRES_PASSWORD
CREATE ROLE mlflow LOGIN PASSWORD :'password';
CREATE DATABASE mlflow OWNER mlflow;
REVOKE CONNECT ON DATABASE dagster, mlflow, postgres FROM PUBLIC;
