"""Which backend encodes a corpus: only a proven one, the same for a whole comparison, and found once a machine."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from embed_pipeline.embedding import onnx_export, proven
from embed_pipeline.embedding.encoder import Encoder
from embed_pipeline.embedding.families import ModelError
from embed_pipeline.embedding.onnx_backend import OnnxBackend
from embed_pipeline.embedding.openvino_backend import OpenVinoBackend
from embed_pipeline.embedding.proven import (
    CorpusBackend,
    choose_backend,
    cosines_of,
    least_cosine,
    open_base_encoder,
    proof_texts,
    proof_vectors,
)
from embed_pipeline.settings import Embedding, Paths, Settings
from embed_pipeline_tests import families
from embed_pipeline_tests.tiny import write_tiny_model

PASSAGES = [f"the value of object {n} in a class {'of python ' * (n % 20)}" for n in range(100)]
SEGMENTS = pl.DataFrame({"text": PASSAGES, "batch": ["1"] * len(PASSAGES)})
Clock = Callable[..., None]


def settings_of(model: Path, store: Path, **embedding: object) -> Settings:
    prefixes = {"query_prefix": "what is ", "passage_prefix": "the "}
    wanted = Embedding.model_validate(
        {"model": str(model), "device": "cpu", "backend": "auto", **prefixes, **embedding}
    )
    return Settings(paths=Paths(store=store), embedding=wanted)


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("tuned") / "model", seed=1)


@pytest.fixture(scope="module")
def exported(tiny_model: Path, tuned: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with the exports of both models, of which nothing is proven."""
    store = tmp_path_factory.mktemp("exported")
    found = choose_backend([tiny_model, tuned], PASSAGES, settings_of(tiny_model, store, backend="onnx"))
    for folder in found.exports.values():
        (folder / "proof.json").unlink()
    return store


@pytest.fixture
def settings(tiny_model: Path, exported: Path, tmp_path: Path) -> Callable[..., Settings]:
    """Makes settings with a store that has the exports."""
    shutil.copytree(exported, tmp_path / "store")
    return partial(settings_of, tiny_model, tmp_path / "store")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Sets the seconds that torch, onnxruntime and OpenVINO take, and makes a hundred passages many."""
    monkeypatch.setattr(proven, "LEAST_PASSAGES", 100)

    def taking(**seconds: float) -> None:
        def measured(works: list[Callable[[], object]], _: int) -> list[float]:
            return [seconds[work.func.__self__.backend.runtime] for work in works]  # type: ignore[attr-defined]

        monkeypatch.setattr(proven, "time_in_turns", measured)

    return taking


def exports_of(settings: Settings) -> list[Path]:
    return sorted((settings.paths.store / "exports").glob("[!.]*"))


def chosen(settings: Settings, *models: str | Path) -> CorpusBackend:
    return choose_backend(models or [settings.embedding.model], PASSAGES, settings)


def turn(monkeypatch: pytest.MonkeyPatch, backend: type[OnnxBackend | OpenVinoBackend], part: str = "") -> None:
    """Make ``backend`` give other vectors, of exports with ``part`` in their paths."""
    right = backend._begin

    def begin(self: OnnxBackend | OpenVinoBackend, *given: object, **options: bool) -> Callable[[], np.ndarray]:
        vectors = right(self, *given, **options)()  # type: ignore[arg-type]
        return lambda: vectors[:, ::-1] if part in str(self._path) else vectors

    monkeypatch.setattr(backend, "_begin", begin)


def test_with_few_passages_auto_is_torch_and_makes_nothing(tiny_model, tmp_path):
    settings = settings_of(tiny_model, tmp_path)
    assert chosen(settings).name == "torch"
    assert open_base_encoder(settings, SEGMENTS).backend.runtime == "torch"
    assert Embedding().backend == "torch"
    assert not (tmp_path / "exports").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("seconds", "runtime"),
    [
        ({"torch": 1, "onnxruntime": 2, "openvino": 3}, "torch"),
        ({"torch": 3, "onnxruntime": 1, "openvino": 2}, "onnxruntime"),
        ({"torch": 3, "onnxruntime": 2, "openvino": 1}, "openvino"),
    ],
)
def test_with_many_auto_is_the_fastest_and_gives_torchs_vectors(settings, clock, seconds, runtime):
    clock(**seconds)
    encoder = open_base_encoder(settings(), SEGMENTS)
    assert encoder.backend.runtime == runtime
    for kind in ("query", "passage"):
        expected = Encoder.load(settings().embedding.model, settings().embedding).encode(PASSAGES, kind)
        assert cosines_of(encoder.encode(PASSAGES, kind), expected).min() >= 0.99999


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["onnx", "openvino"])
def test_a_backend_that_is_named_encodes_any_number_of_passages(settings, backend):
    assert chosen(settings(backend=backend)).name == backend


@pytest.mark.slow
def test_what_was_found_on_this_machine_is_not_sought_again(settings, clock, monkeypatch):
    clock(torch=3, onnxruntime=2, openvino=1)
    assert chosen(settings()).name == "openvino"

    def never(*_: object, **__: object) -> None:
        raise AssertionError("done again")

    for place, name in ((onnx_export, "export_onnx"), (proven, "least_cosine"), (proven, "time_in_turns")):
        monkeypatch.setattr(place, name, never)
    assert chosen(settings()).name == "openvino"
    monkeypatch.setattr(proven, "processor", lambda: "another processor")
    with pytest.raises(AssertionError, match="done again"):
        chosen(settings())


@pytest.mark.slow
def test_a_named_backend_that_gives_other_vectors_is_an_error(settings, monkeypatch):
    turn(monkeypatch, OnnxBackend)
    with pytest.raises(ModelError, match=r"with onnxruntime gives other vectors .* set embedding\.backend to 'auto'"):
        chosen(settings(backend="onnx"))
    # What was found is kept, and it is still an error.
    with pytest.raises(ModelError, match="with onnxruntime gives other vectors"):
        chosen(settings(backend="onnx"))


@pytest.mark.slow
def test_auto_leaves_a_backend_that_gives_other_vectors_and_says_so(settings, clock, monkeypatch, caplog):
    clock(torch=3, onnxruntime=1, openvino=2)
    turn(monkeypatch, OnnxBackend)
    assert chosen(settings()).name == "openvino"
    assert "onnxruntime does not encode the corpus" in caplog.text
    turn(monkeypatch, OpenVinoBackend)
    monkeypatch.setattr(proven, "processor", lambda: "another processor")
    assert chosen(settings()).name == "torch"
    assert "openvino does not encode the corpus" in caplog.text


@pytest.mark.slow
def test_models_that_are_compared_are_proven_together(settings, clock, monkeypatch, tuned):
    clock(torch=3, onnxruntime=1, openvino=2)
    both = chosen(settings(), settings().embedding.model, tuned)
    assert both.name == "onnx"
    assert [both.open(model).backend.runtime for model in (settings().embedding.model, tuned)] == ["onnxruntime"] * 2
    vectors = [both.open(model).encode(PASSAGES, "query") for model in (settings().embedding.model, tuned)]
    assert cosines_of(*vectors).max() < 0.9
    # The tuned model alone is not proven with either.
    for backend in (OnnxBackend, OpenVinoBackend):
        turn(monkeypatch, backend, both.exports[str(tuned)].name)
    (both.exports[str(tuned)] / "proof.json").unlink()
    assert chosen(settings(), settings().embedding.model, tuned).name == "torch"
    assert chosen(settings(), settings().embedding.model).name == "onnx"


def test_an_export_that_fails_is_said_and_leaves_nothing(tiny_model, tmp_path, clock, monkeypatch, caplog):
    clock()
    settings = partial(settings_of, tiny_model, tmp_path)

    def failing(_: object, output: Path, *__: object) -> None:
        output.mkdir()
        raise onnx_export.OnnxExportError("no such operator")

    monkeypatch.setattr(onnx_export, "export_onnx", failing)
    assert chosen(settings()).name == "torch"
    assert "cannot be exported: no such operator" in caplog.text
    assert exports_of(settings()) == []
    with pytest.raises(ModelError, match="cannot be exported: no such operator"):
        chosen(settings(backend="onnx"))


@pytest.mark.slow
def test_an_export_is_that_of_its_weights_and_prefixes_and_few_are_kept(settings, monkeypatch, tmp_path, tuned):
    monkeypatch.setattr(proven, "_KEPT_EXPORTS", 2)
    first = chosen(settings(backend="onnx")).exports[settings().embedding.model]
    other = settings(backend="onnx")
    other = other.model_copy(update={"embedding": other.embedding.model_copy(update={"query_prefix": "how "})})
    second = chosen(other).exports[other.embedding.model]
    assert json.loads((second / "embedding_config.json").read_text())["query_prefix"] == "how "
    moved = Path(shutil.copytree(settings().embedding.model, tmp_path / "moved"))
    assert chosen(settings(backend="onnx"), moved).exports[str(moved)] == first
    third = chosen(settings(backend="onnx"), tuned)
    assert exports_of(settings()) == sorted([first, *third.exports.values()])


@pytest.mark.slow
def test_vectors_of_two_backends_are_not_mixed_in_the_store(settings):
    for backend in ("torch", "onnx", "openvino", "onnx"):
        open_base_encoder(settings(backend=backend), SEGMENTS).encode(PASSAGES, "passage")
    assert len(list((settings().paths.store / "vectors").rglob("*.npy"))) == 3


@pytest.mark.slow
def test_half_precision_is_torchs_alone(settings, clock):
    clock(torch=3, onnxruntime=1, openvino=1)
    assert chosen(settings(precision="bf16")).name == "torch"
    with pytest.raises(ValueError, match="precision is bf16, which backend = onnx does not compute"):
        settings(precision="bf16", backend="onnx")


@pytest.mark.slow
def test_without_openvino_there_is_onnxruntime(settings, clock, monkeypatch):
    clock(torch=3, onnxruntime=2, openvino=1)
    found = proven.find_spec
    monkeypatch.setattr(proven, "find_spec", lambda name: None if name == "openvino" else found(name))
    assert chosen(settings()).name == "onnx"


def test_it_is_proven_on_the_shortest_and_the_longest_whole_and_as_queries():
    texts = [*(f"{'word ' * n}end" for n in range(200)), " "]
    found = proof_texts(texts)
    assert found == proof_texts(reversed(texts))
    assert len(set(found)) == len(found)
    assert {"end", texts[199], "word " * 11 + "word"} <= set(found)
    assert len([text for text in found if text in texts]) == proven.PROOF_PASSAGES
    assert proof_texts([]) == []


def test_a_vector_without_direction_is_as_far_as_can_be():
    left = np.array([[1, 0], [0, 0], [np.nan, 1]], dtype=np.float32)
    assert cosines_of(left, np.array([[1, 0]] * 3, dtype=np.float32)).tolist() == [1, -1, -1]


def test_turns_are_timed_after_a_first_time():
    calls: list[str] = []
    seconds = proven.time_in_turns([lambda: calls.append("a"), lambda: calls.append("b")], 3)
    assert calls == ["a", "b"] * 4
    assert len(seconds) == 2
    assert max(seconds) < 1


@pytest.fixture(autouse=True)
def _said(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)


@pytest.mark.slow
def test_queries_that_take_another_way_are_proven_too(tmp_path):
    routed = Encoder.load(families.two_heads(tmp_path / "router"), Embedding(device="cpu"))
    expected = proof_vectors(routed, PASSAGES[:8])
    assert expected.keys() == {"passage", "query"}
    assert least_cosine(routed.backend, PASSAGES[:8], expected) > 1 - 1e-6
    routed.backend.query_side = None
    assert least_cosine(routed.backend, PASSAGES[:8], expected) < 0.98
