"""The bundle: loads with sentence-transformers and onnxruntime, and says when it was changed."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from markdown_it import MarkdownIt

from embed_pipeline.embedding.encoder import Encoder
from embed_pipeline.embedding.families import ModelError
from embed_pipeline.embedding.onnx_backend import OnnxBackend
from embed_pipeline.release.bundle import Lineage, check_bundle_model, write_bundle
from embed_pipeline.release.manifest import BundleError, ModelFacts, read_manifest, verify_bundle
from embed_pipeline.release.model_card import model_card

LINEAGE = Lineage(
    version="3",
    created_from={"training_examples": "abc123"},
    metrics={"test": {"base": {"nDCG@10": 0.5}, "tuned": {"nDCG@10": 0.625}}},
    parity={"min_cosine": 0.9999999},
    mlflow={"model_version": "7"},
)


@pytest.fixture(scope="module")
def written(tiny_model: Path, tiny_export: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = Path(shutil.copytree(tiny_model, tmp_path_factory.mktemp("trained") / "model"))
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "_name_or_path": "/home/someone/base"}))
    (model / "README.md").write_text("finetuned from /home/someone/base")
    (model / "training_args.bin").write_bytes(b"pickle")
    bundle = tmp_path_factory.mktemp("release") / "bundle"
    write_bundle(bundle, model=model, onnx_folder=tiny_export, lineage=LINEAGE)
    return bundle


@pytest.fixture
def bundle(written: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(written, tmp_path / "bundle"))


@pytest.mark.slow
def test_both_forms_load_and_agree(bundle):
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(bundle / "model"), device="cpu", local_files_only=True)
    encoder = Encoder(OnnxBackend(bundle / "onnx", threads=1))
    texts = ["python class", "value of a function"]
    pairs = (
        (model.encode_query(texts), encoder.encode(texts, "query")),
        (model.encode_document(texts), encoder.encode(texts, "passage")),
    )
    for left, right in pairs:
        assert (left * right).sum(axis=1).min() >= 0.99999
    assert not np.allclose(pairs[0][1], pairs[1][1])


@pytest.mark.slow
def test_what_is_released_is_read_back_as_what_was_evaluated(bundle, tiny_model, exporting):
    check_bundle_model(bundle, tiny_model, trusted=False)
    path = bundle / "model" / "config_sentence_transformers.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "prompts": {"query": "other ", "document": "the "}}))
    with pytest.raises(ModelError, match="a query of [0-9]+ words has another vector"):
        check_bundle_model(bundle, tiny_model, trusted=False)


def test_lengths_that_nobody_trained_are_not_published(tiny_model, tiny_export, tmp_path):
    model = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    config = json.loads((model / "config.json").read_text())
    for declared, trained, expected in (([8, 32], (), None), (None, (), None), ([8, 16], (16,), [16])):
        (model / "config.json").write_text(json.dumps({**config, "matryoshka_dimensions": declared}))
        bundle = tmp_path / f"bundle-{declared}"
        lineage = replace(LINEAGE, matryoshka_dimensions=trained)
        manifest = write_bundle(bundle, model=model, onnx_folder=tiny_export, lineage=lineage)
        released = json.loads((bundle / "model" / "config.json").read_text())
        assert released.get("matryoshka_dimensions") == expected
        assert manifest.model.matryoshka_dimensions == list(trained)


def test_the_manifest_says_what_it_holds(bundle):
    manifest = verify_bundle(bundle)
    assert manifest == read_manifest(bundle)
    assert (manifest.version, manifest.created_from, manifest.metrics) == (
        "3",
        LINEAGE.created_from,
        LINEAGE.metrics,
    )
    assert manifest.model.model_dump() == {
        "dimensions": 32,
        "max_tokens": 64,
        "query_prefix": "what is ",
        "passage_prefix": "the ",
        "base_model": "sentence-transformers/all-MiniLM-L6-v2",
        "matryoshka_dimensions": [],
        "passage_context": "none",
    }
    assert {"README.md", "model/model.safetensors", "onnx/model.onnx", "onnx/tokenizer.json"} <= set(manifest.files)


def test_training_leftovers_and_paths_stay_behind(bundle):
    contents = {path.name: path.read_bytes() for path in bundle.rglob("*") if path.is_file()}
    assert "training_args.bin" not in contents
    assert not any(b"/home/someone" in content for content in contents.values())


def test_the_card_has_front_matter_figures_and_prefixes(bundle):
    card = (bundle / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: sentence-transformers\n")
    parts = ("| `test.tuned.nDCG@10` | 0.625 |", "| query | `'what is '` |", "abc123", "encode_query", "onnxruntime")
    assert [part for part in parts if part not in card] == []
    assert (bundle / "model" / "README.md").read_text() == card


@pytest.mark.parametrize(
    "hostile", ["![x](http://h/p.png)", "a | b\n---\nlicense: x", "<img src=x>", "`x` [y](javascript:z)"]
)
def test_names_and_prefixes_in_the_card_are_text(hostile):
    facts = ModelFacts(dimensions=8, max_tokens=64, query_prefix=hostile, passage_prefix=hostile, base_model=hostile)
    card = model_card(
        facts,
        "v1-0123abcd",
        metrics={hostile: {"nDCG": 0.5, "set": hostile}},
        passage_vectors="base",
        hybrid=None,
        parity={},
        created_from={hostile: hostile},
    )
    _, head, body = card.split("---\n", 2)
    assert yaml.safe_load(head)["base_model"] == hostile
    assert set(yaml.safe_load(head)) == {"library_name", "pipeline_tag", "base_model", "tags"}
    page = MarkdownIt("commonmark").enable("table").render(body)
    assert not re.search(r"<(img|a)\b", page)


@pytest.mark.parametrize("name", ["model/model.safetensors", "onnx/model.onnx", "README.md"])
def test_a_changed_or_missing_file_is_named(bundle, name):
    path = bundle / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(BundleError, match=f"{name} is not the file"):
        verify_bundle(bundle)
    path.unlink()
    with pytest.raises(BundleError, match=f"{name} is missing"):
        verify_bundle(bundle)


def test_an_added_file_is_named(bundle):
    (bundle / "model" / "extra.pkl").write_bytes(b"x")
    with pytest.raises(BundleError, match=r"model/extra\.pkl is not in the manifest"):
        verify_bundle(bundle)


def test_a_file_outside_the_bundle_is_refused(bundle):
    path = bundle / "manifest.json"
    manifest = json.loads(path.read_text())
    for name in ("../outside", "/etc/hostname"):
        path.write_text(json.dumps({**manifest, "files": {name: "0"}}))
        with pytest.raises(BundleError, match="lies outside"):
            verify_bundle(bundle)


@pytest.mark.parametrize("text", [None, "{", '{"format": 2}', "[]"])
def test_what_is_no_manifest_is_refused(bundle, text):
    path = bundle / "manifest.json"
    path.unlink() if text is None else path.write_text(text)
    with pytest.raises(BundleError, match=r"manifest\.json"):
        read_manifest(bundle)


def test_a_full_folder_and_a_folder_that_is_no_model_are_refused(bundle, tiny_export, tmp_path):
    with pytest.raises(BundleError, match="not empty"):
        write_bundle(bundle, model=bundle / "model", onnx_folder=tiny_export, lineage=LINEAGE)
    with pytest.raises(BundleError, match="sentence-transformers folder"):
        write_bundle(tmp_path / "new", model=tmp_path, onnx_folder=tiny_export, lineage=LINEAGE)
    with pytest.raises(BundleError, match=r"embedding_config\.json"):
        write_bundle(tmp_path / "new", model=bundle / "model", onnx_folder=tmp_path, lineage=LINEAGE)


@pytest.mark.parametrize(("context", "says"), [("none", "its text alone"), ("path", "the headings above it")])
def test_a_release_says_what_belongs_before_a_passage(tiny_model, tiny_export, tmp_path, context, says):
    bundle = tmp_path / "bundle"
    lineage = replace(LINEAGE, passage_context=context)
    write_bundle(bundle, model=tiny_model, onnx_folder=tiny_export, lineage=lineage)
    assert read_manifest(bundle).model.passage_context == context
    assert says in (bundle / "README.md").read_text(encoding="utf-8")
    manifest = json.loads((bundle / "manifest.json").read_text())
    del manifest["model"]["passage_context"]
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    assert read_manifest(bundle).model.passage_context == "none", "a release of before"
