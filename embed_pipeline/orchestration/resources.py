"""What assets are given besides their inputs."""

import dagster as dg

from embed_pipeline.settings import Settings
from embed_pipeline.tracking import Tracker


class MLflow(dg.ConfigurableResource):  # type: ignore[type-arg]  # dagster leaves the parameter to subclasses
    """The MLflow experiment in which trainings are tracked and models registered."""

    uri: str
    experiment: str

    @classmethod
    def of(cls, settings: Settings) -> "MLflow":
        """The resource that the settings name."""
        return cls(uri=settings.tracking_uri(), experiment=settings.tracking.experiment)

    def tracker(self) -> Tracker:
        """Connect."""
        return Tracker(self.uri, self.experiment)


def newest_metadata(instance: dg.DagsterInstance, asset: str, name: str) -> str | None:
    """A text that the newest materialization of ``asset`` recorded; None: there is none."""
    event = instance.get_latest_materialization_event(dg.AssetKey(asset))
    value = event.asset_materialization.metadata.get(name) if event and event.asset_materialization else None
    return str(value.value) if value is not None else None
