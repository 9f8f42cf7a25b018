"""NVIDIA Data Designer asking an endpoint so many times; run by llm_client.py in an environment that has it."""

from __future__ import annotations

import json
import sys
import tempfile
import time

import data_designer.config as dd
from data_designer.interface import DataDesigner


def main(base_url: str, calls: int, concurrency: int) -> None:
    """Make ``calls`` records with one text column and print how long it took and how many came."""
    with tempfile.TemporaryDirectory() as folder:
        provider = dd.ModelProvider(name="stub", endpoint=base_url, provider_type="openai", api_key="none")
        model = dd.ModelConfig(
            alias="writer",
            model="stub",
            provider="stub",
            skip_health_check=True,
            inference_parameters=dd.ChatCompletionInferenceParams(
                temperature=0.3, max_tokens=64, max_parallel_requests=concurrency
            ),
        )
        builder = dd.DataDesignerConfigBuilder(model_configs=[model])
        builder.add_column(
            dd.SamplerColumnConfig(name="number", sampler_type=dd.SamplerType.UUID, params=dd.UUIDSamplerParams())
        )
        builder.add_column(dd.LLMTextColumnConfig(name="text", prompt="Question {{ number }}", model_alias="writer"))
        designer = DataDesigner(artifact_path=folder, model_providers=[provider])
        designer.set_run_config(dd.RunConfig(buffer_size=calls, disable_early_shutdown=True))
        begun = time.monotonic()
        results = designer.create(builder, num_records=calls, dataset_name="d")
        seconds = time.monotonic() - begun
        records = len(results.load_dataset())
    print(json.dumps({"seconds": seconds, "answered": records}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
