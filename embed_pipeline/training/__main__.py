"""Train on every GPU of one or more machines: ``torchrun --nproc-per-node 8 -m embed_pipeline.training``.

Reads the stored tables and the settings, trains, and leaves the winning weights where the asset ``finetuned_model``
looks for them: materialize it afterwards, with the same settings, and it uses them. All machines must see the same
store. Killed and started again with the same command, it continues from its last checkpoint.
"""

from __future__ import annotations

import logging
import sys

from embed_pipeline.embedding.families import ModelError
from embed_pipeline.machine import sleep_at_barriers
from embed_pipeline.settings import SettingsError, load_settings
from embed_pipeline.training.task import TrainingError, is_first_process
from embed_pipeline.training.train import stored_task, train_seeds

logger = logging.getLogger(__name__)


def main() -> int:
    """Train as one of the processes; 0, or 1 with the reason in the log."""
    sleep_at_barriers()
    first = is_first_process()
    logging.basicConfig(level=logging.INFO if first else logging.WARNING, format="%(asctime)s %(message)s")
    try:
        task = stored_task(load_settings())
        seeds = train_seeds(task)
    except (SettingsError, TrainingError, ModelError) as error:
        logger.error("%s", error)  # noqa: TRY400 - the sentence says it all
        return 1
    if first:
        for seed in seeds:
            logger.info("seed %d: %d steps, dev nDCG@10 %s", seed.seed, seed.steps, seed.dev_ndcg_10)
        logger.info("trained; materialize finetuned_model to use the weights in %s", task.work)
    return 0


if __name__ == "__main__":
    sys.exit(main())
