"""Every family in use, with tiny weights in its real layout: the vectors of plain sentence-transformers, everywhere."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from embed_pipeline.embedding.encoder import Encoder
from embed_pipeline.embedding.families import TASKS, ModelError, max_tokens_of, route_of, static_embedding
from embed_pipeline.embedding.model_folder import check_model_folder, read_back, write_model_folder
from embed_pipeline.embedding.models import load_model
from embed_pipeline.embedding.onnx_backend import OnnxBackend
from embed_pipeline.embedding.onnx_export import OnnxExportError, export_onnx
from embed_pipeline.settings import Embedding, Release
from embed_pipeline_tests import families

pytestmark = pytest.mark.slow

CPU = Embedding(device="cpu")
OLDEST = "EMBED_OLDEST_VERSIONS"
"""Names a folder with sentence-transformers 5.1 and transformers 4.56, installed with ``pip install --target``."""
UNTRACED = ("longformer",)
"""Families that torch cannot trace: trained and evaluated, not exported."""
SAME_GRAPH = (
    "BERT, transformers alone",
    "BERT, XLM-R's tokenizer",
    "RoBERTa, lower case",
    "camembert",
    "data2vec",
    "roberta-prelayernorm",
    "xlm-r-xl",
    "Qwen3",
    "Mistral",
    "shorter vectors",
    "router of encoders",
)
"""Families whose graphs are made of the same operators as another's, which is exported here; ``make families`` exports
all. An export takes some ten seconds."""
LATER = ("nomic", "EmbeddingGemma")
"""Architectures that transformers 4.56.0 does not know, or does not compute in both directions."""


def unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def plain(folder: Path, kind: str, prefix: str) -> np.ndarray:
    """Vectors of sentence-transformers itself, with the prompt that the model is meant to get."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    if model.tokenizer is not None and getattr(model.tokenizer, "pad_token", "") is None:
        # sentence-transformers stops without one.
        model.tokenizer.pad_token = model.tokenizer.eos_token
    if folder.name == "Mistral":
        model.tokenizer.add_bos_token = model.tokenizer.add_eos_token = True
    if static_embedding(model) is None:
        model.max_seq_length = max_tokens_of(model)
    encode = model.encode_query if kind == "query" else model.encode_document
    return unit(encode(list(families.sample_texts()), prompt=prefix))


@pytest.mark.parametrize("name", families.FAMILIES)
def test_vectors_are_those_of_sentence_transformers_and_saving_and_exporting_keep_them(name, tmp_path):
    folder = families.FAMILIES[name](tmp_path / name)
    model = load_model(folder, CPU)
    encoder, texts = Encoder.of(model, CPU), list(families.sample_texts())
    prefixes = {"query": encoder.backend.of_kind("query").query_prefix, "passage": encoder.backend.passage_prefix}
    expected = {kind: encoder.encode(texts, kind) for kind in prefixes}
    for kind, prefix in prefixes.items():
        np.testing.assert_allclose(expected[kind], plain(folder, kind, prefix), atol=2e-5)
    if name in families.ROBERTA_KIN:
        assert max_tokens_of(model) == 128, "positions begin after the padding token"
    write_model_folder(model, tmp_path / "saved")
    check_model_folder(model, tmp_path / "saved")
    again = load_model(tmp_path / "saved", CPU)
    limits = ([max_tokens_of(route_of(each, kind)) for kind in TASKS] for each in (again, model))
    assert next(limits) == next(limits)
    assert (again.prompts["query"], again.prompts["document"]) == (model.prompts["query"], model.prompts["document"])
    if name in SAME_GRAPH:
        return
    if name in UNTRACED:
        with pytest.raises(OnnxExportError, match="torch cannot trace"):
            export_onnx(folder, tmp_path / "onnx", Release(), CPU)
        return
    export_onnx(folder, tmp_path / "onnx", Release(), CPU)
    exported = Encoder(OnnxBackend(tmp_path / "onnx", threads=1))
    for kind in prefixes:
        np.testing.assert_allclose(exported.encode(texts, kind), expected[kind], atol=2e-5)


def test_a_text_ends_as_its_tokenizer_is_configured(tmp_path):
    encoder = Encoder.load(families.mistral(tmp_path / "mistral"), CPU)
    (row,) = encoder.backend.tokenize(["csv"])
    tokenizer = encoder.backend.config.tokenizer
    assert (row[0], row[-1]) == (tokenizer.token_to_id("<s>"), tokenizer.token_to_id("</s>"))


@pytest.mark.parametrize("make", [families.two_encoders, families.two_heads])
def test_each_kind_of_text_takes_its_own_route(make, tmp_path):
    encoder = Encoder.load(make(tmp_path / "router"), CPU)
    texts = ["how does the reader work", "what is an encoder"]
    apart = (encoder.encode(texts, "query") * encoder.encode(texts, "passage")).sum(axis=1)
    assert apart.max() < 0.98


def test_a_router_without_a_route_for_passages_is_refused(tmp_path):
    folder = families.two_heads(tmp_path / "router")
    path = folder / "2_Router" / "router_config.json"
    config = json.loads(path.read_text())
    config["structure"]["doc"] = config["structure"].pop("document")
    config["parameters"]["default_route"] = None
    path.write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"no route 'document', only \['doc', 'query'\]"):
        load_model(folder, CPU)


def test_a_model_that_is_judged_by_the_cosine_says_so(tmp_path):
    from sentence_transformers import SentenceTransformer

    model = load_model(families.mpnet_dot(tmp_path / "mpnet"), CPU)
    write_model_folder(model, tmp_path / "saved")
    saved = SentenceTransformer(str(tmp_path / "saved"), device="cpu")
    assert saved.similarity_fn_name == "cosine"
    np.testing.assert_allclose(np.linalg.norm(saved.encode(["a", "b c"]), axis=1), 1, atol=1e-5)


@pytest.mark.parametrize("modes", [["mean", "cls"], ["cls", "mean"]])
def test_joined_poolings_keep_their_order(tmp_path, modes):
    folder = families.bert(tmp_path / "bert")
    path = folder / "1_Pooling" / "config.json"
    path.write_text(json.dumps({"embedding_dimension": 32, "pooling_mode": modes, "include_prompt": True}))
    model = load_model(folder, CPU)
    write_model_folder(model, tmp_path / "saved")
    check_model_folder(model, tmp_path / "saved")


def test_the_exported_tokenizer_cuts_where_the_model_does(tmp_path):
    from tokenizers import Tokenizer

    folder = families.bert(tmp_path / "bert")
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "truncation_side": "left"}))
    export_onnx(folder, tmp_path / "onnx", Release(), CPU)
    truncation = Tokenizer.from_file(str(tmp_path / "onnx" / "tokenizer.json")).truncation
    assert (truncation["direction"], truncation["max_length"]) == ("left", 512)


@pytest.mark.parametrize("name", ["BERT", "Mistral", "ModernBERT", "static embedding", "router of encoders"])
def test_servers_can_parse_the_configuration(name, tmp_path):
    """What Text Embeddings Inference (router/src/lib.rs) and vLLM (adapters.py, config.py) ask of a folder."""
    model = load_model(families.FAMILIES[name](tmp_path / "base"), CPU)
    folder = tmp_path / "saved"
    write_model_folder(model, folder)
    modules = json.loads((folder / "modules.json").read_text())
    assert {module["type"].rpartition(".")[0] for module in modules} == {"sentence_transformers.models"}
    for path in folder.rglob("*_Pooling/config.json"):
        pooling = json.loads(path.read_text())
        assert sum(value is True for key, value in pooling.items() if key.startswith("pooling_mode_")) == 1
        assert {"pooling_mode_cls_token", "pooling_mode_mean_tokens", "word_embedding_dimension"} <= pooling.keys()
    for path in folder.rglob("sentence_bert_config.json"):
        read = json.loads(path.read_text())
        assert isinstance(read["max_seq_length"], int)
        assert isinstance(read["do_lower_case"], bool)
    for path in folder.rglob("tokenizer_config.json"):
        config = json.loads(path.read_text())
        assert config["tokenizer_class"] != "TokenizersBackend"
        assert isinstance(config["model_max_length"], int)
        assert config["pad_token"]


def test_a_base_that_does_not_survive_its_own_save_is_refused(tmp_path):
    model = load_model(families.bert(tmp_path / "bert"), CPU)
    write_model_folder(model, tmp_path / "saved")
    pooling = tmp_path / "saved" / "1_Pooling" / "config.json"
    config = json.loads(pooling.read_text())
    pooling.write_text(json.dumps(config | {"pooling_mode_cls_token": False, "pooling_mode_max_tokens": True}))
    with pytest.raises(ModelError, match="another vector than in memory"):
        check_model_folder(model, tmp_path / "saved")
    pooling.write_text("{")
    with pytest.raises(ModelError, match="cannot read what was written"):
        check_model_folder(model, tmp_path / "saved")


@pytest.mark.slow
def test_a_process_of_its_own_reads_the_folder_back(tmp_path, monkeypatch):
    model = load_model(families.modernbert(tmp_path / "base"), CPU)
    write_model_folder(model, tmp_path / "saved")
    # A store is a relative path by default.
    monkeypatch.chdir(tmp_path)
    least = read_back(Encoder.of(model, CPU), Path("saved"))
    assert min(least.values()) > 1 - 1e-6
    (tmp_path / "saved" / "tokenizer.json").write_text("{")
    with pytest.raises(ModelError, match="cannot read what was written"):
        read_back(Encoder.of(model, CPU), tmp_path / "saved")


@pytest.mark.slow
@pytest.mark.skipif(OLDEST not in os.environ, reason=f"{OLDEST} names no folder with the oldest versions")
@pytest.mark.parametrize("name", [name for name in families.FAMILIES if name not in LATER])
def test_the_oldest_versions_read_the_folder(name, tmp_path):
    model = load_model(families.FAMILIES[name](tmp_path / "base"), CPU)
    write_model_folder(model, tmp_path / "saved")
    least = read_back(Encoder.of(model, CPU), tmp_path / "saved", path=os.environ[OLDEST])
    assert min(least.values()) > 1 - 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("make", [families.qwen3, families.modernbert])
def test_a_graph_that_does_not_run_is_refused(make, tmp_path):
    """Rotary positions in operator set 23 are exported in a form that onnxruntime does not compute for two texts."""
    folder = make(tmp_path / "base")
    with pytest.raises(OnnxExportError, match=r"does not run on texts of \[.*set release.opset to 20 or lower"):
        export_onnx(folder, tmp_path / "onnx", Release(opset=23), CPU)
