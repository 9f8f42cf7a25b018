"""``python -m embed_pipeline.serving BUNDLE``: the endpoint alone, without the rest of the product."""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

from embed_pipeline.escaping import TerminalFormatter, for_terminal
from embed_pipeline.machine import sleep_at_barriers
from embed_pipeline.serving.server import serve
from embed_pipeline.serving.serving_errors import ServingError
from embed_pipeline.settings import SettingsError, load_settings


def main() -> int:
    """Serve the bundle that the command line names; 1 with a message where that fails."""
    sleep_at_barriers()
    parser = argparse.ArgumentParser(prog="python -m embed_pipeline.serving", description=__doc__)
    parser.add_argument("bundle", type=Path, help="folder of the release bundle")
    parser.add_argument("--port", type=int, default=None, help="instead of serving.port; 0: any free one")
    arguments = parser.parse_args()
    handler = logging.StreamHandler()
    handler.setFormatter(TerminalFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    try:
        serve(arguments.bundle, load_settings(), port=arguments.port)
    except (ServingError, SettingsError) as error:
        sys.stderr.write(f"error: {for_terminal(str(error))}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
