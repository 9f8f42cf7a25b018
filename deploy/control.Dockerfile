# Dagster's webserver and daemon, and MLflow's server: no model code, no torch.
#   docker build -f deploy/control.Dockerfile -t embed-pipeline:control .
ARG PYTHON_IMAGE=python:3.11.13-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /build
RUN python -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH
COPY constraints.txt ./
RUN pip install --constraint constraints.txt \
    dagster dagster-webserver dagster-docker dagster-postgres mlflow psycopg2-binary

FROM ${PYTHON_IMAGE} AS run
RUN useradd --uid 10001 --create-home --shell /usr/sbin/nologin pipeline \
    && install --directory --owner=pipeline --group=pipeline /data /data/store /mlflow /home/dagster
COPY --from=build /opt/venv /opt/venv
COPY --chown=pipeline:pipeline deploy/dagster.yaml deploy/workspace.yaml /home/dagster/
# The launcher of runs, which needs Dagster alone.
COPY embed_pipeline/__init__.py /opt/launcher/embed_pipeline/
COPY embed_pipeline/orchestration/__init__.py embed_pipeline/orchestration/launcher.py \
    embed_pipeline/orchestration/store_lock.py /opt/launcher/embed_pipeline/orchestration/
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONPATH=/opt/launcher \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    DAGSTER_HOME=/home/dagster \
    MLFLOW_DISABLE_TELEMETRY=true
USER 10001
WORKDIR /home/dagster
EXPOSE 3000 5000
CMD ["dagster-webserver", "--host", "0.0.0.0", "--port", "3000", "--workspace", "workspace.yaml"]
