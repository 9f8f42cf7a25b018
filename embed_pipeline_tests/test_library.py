"""The public Python API: imported when used, and the example script makes a model with it."""

from __future__ import annotations

import doctest
import os
import subprocess
import sys
from pathlib import Path

import pytest

import embed_pipeline
from embed_pipeline_tests.project import small_project, well_behaved
from embed_pipeline_tests.stub_endpoint import stub_endpoint

EXAMPLE = Path(__file__).parents[1] / "examples" / "documents_to_model.py"


def test_every_public_name_is_there_and_documented():
    for name in embed_pipeline.__all__:
        assert getattr(embed_pipeline, name).__doc__, name
        assert name in dir(embed_pipeline)
    assert embed_pipeline.__version__[0].isdigit()
    with pytest.raises(AttributeError, match="has no attribute 'trian'"):
        _ = embed_pipeline.trian


def test_what_the_docstring_shows_is_so():
    assert doctest.testmod(embed_pipeline, optionflags=doctest.ELLIPSIS | doctest.IGNORE_EXCEPTION_DETAIL).failed == 0


def test_importing_the_package_loads_nothing():
    script = "import sys, embed_pipeline; print({'pydantic', 'numpy', 'polars', 'torch'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_a_model_is_not_written_over_a_folder(tmp_path):
    with pytest.raises(FileExistsError, match="name a folder that does not"):
        embed_pipeline.train(None, tmp_path)


@pytest.mark.slow
def test_the_example_makes_a_model(tiny_model, tmp_path):
    with stub_endpoint(well_behaved) as stub:
        project = small_project(tmp_path, tiny_model, stub.base_url)
        done = subprocess.run(
            [sys.executable, str(EXAMPLE), "documents", "--output", "out"],
            cwd=tmp_path,
            env={**os.environ, **project.environment},
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    assert "12 documents, 72 segments" in done.stdout
    assert "generated: " in done.stdout
    assert (tmp_path / "out" / "model" / "modules.json").is_file()
    assert (tmp_path / "out" / "onnx" / "model.onnx").is_file()
    assert not (tmp_path / "store" / "tables").exists(), "nothing is stored but answers and caches"
