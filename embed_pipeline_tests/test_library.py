"""The public Python API: imported when used, and the example script and the notebook make models with it."""

from __future__ import annotations

import doctest
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import polars as pl
import pytest

import embed_pipeline
from embed_pipeline_tests.project import made_up_name, small_project, well_behaved
from embed_pipeline_tests.stub_endpoint import stub_endpoint

EXAMPLES = Path(__file__).parents[1] / "examples"


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


def notebook_code() -> str:
    """The notebook's cells, one after the other."""
    notebook = nbformat.read(EXAMPLES / "documents_to_model.ipynb", as_version=4)
    nbformat.validate(notebook)
    return "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code")


AS_IN_A_NOTEBOOK = f"""
import asyncio
async def cell():
    exec({notebook_code()!r}, {{}})
asyncio.run(cell())
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("program", "output", "says"),
    [
        ([str(EXAMPLES / "documents_to_model.py"), "handbook", "--output", "out"], "out", "12 documents, 72 segments"),
        (["-c", AS_IN_A_NOTEBOOK], "tuned", "negatives:"),
    ],
    ids=["script", "notebook"],
)
def test_an_example_makes_a_model(tiny_model, tmp_path, program, output, says):
    with stub_endpoint(well_behaved) as stub:
        project = small_project(tmp_path, tiny_model, stub.base_url)
        project.documents.rename(tmp_path / "handbook")
        done = subprocess.run(
            [sys.executable, *program],
            cwd=tmp_path,
            env={**os.environ, **project.environment},
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    assert says in done.stdout
    assert "generated: " in done.stdout
    assert (tmp_path / output / "model" / "modules.json").is_file()
    assert (tmp_path / output / "onnx" / "model.onnx").is_file()
    assert not (tmp_path / "store" / "tables").exists(), "nothing is stored but answers and caches"


@pytest.mark.slow
def test_the_baseline_is_known_before_anything_is_generated(tiny_model, tmp_path):
    queries = tmp_path / "queries"
    (queries / "qrels").mkdir(parents=True)
    names = {f"topic-{number:02d}.md": made_up_name(number * 3) for number in range(12)}
    (queries / "queries.jsonl").write_text(
        "".join(json.dumps({"_id": path, "text": f"what is {name}?"}) + "\n" for path, name in names.items())
    )
    (queries / "qrels" / "test.tsv").write_text(
        "query-id\tcorpus-id\tscore\n" + "".join(f"{path}\t{path}\t1\n" for path in names)
    )
    project = small_project(
        tmp_path / "project", tiny_model, "http://127.0.0.1:9/v1", evaluation__query_sets=str(queries)
    )
    # Of two copies the first by name stays, and the judgement on the other holds for it.
    (project.documents / "a-copy.md").write_bytes((project.documents / "topic-03.md").read_bytes())
    status, output = project.command("baseline")
    assert status == 0, output
    assert "What a tuned model has to beat" in output
    assert len(re.findall(r"queries \(12\)", output)) == 3
    assert "tuned  " not in output
    assert "difference" not in output, "nothing is said of a model that is not there"
    assert not (project.store / "tables").exists()
    status, output = project.command("--set", "evaluation.query_sets=", "baseline")
    assert status == 1
    assert "no query set of evaluation.query_sets judges one of these documents" in output
    settings = embed_pipeline.Settings(
        embedding={"model": str(tiny_model)},
        evaluation={"query_sets": [queries]},
        paths={"store": tmp_path / "store"},
        corpus={"segment_tokens": 60},
    )
    found = embed_pipeline.baseline(embed_pipeline.read_documents(project.documents, settings), settings)
    best = found.filter((pl.col("metric") == "nDCG") & (pl.col("k") == 10) & (pl.col("slice") == "all"))
    assert dict(best.select("system", "value").iter_rows())["bm25"] == 1
    assert best["queries"].to_list() == [12, 12, 12]


def test_the_notebook_reads_documents_that_are_there():
    (folder,) = re.findall(r'read_documents\("(.*)"\)', notebook_code())
    assert list((EXAMPLES / folder).glob("*.md"))
