"""An upgrade that changes how an asset is made makes it stale: its method's version is raised, and nobody forgets."""

from __future__ import annotations

import pytest

from embed_pipeline.methods import METHODS, Method, made_by
from embed_pipeline.settings import TRAINING, Settings
from embed_pipeline_tests.record_methods import PACKAGE, code_hash, present, recorded


@pytest.mark.slow
def test_the_code_that_makes_the_assets_is_as_recorded():
    before, now = recorded()["code"], present()["code"]
    changed = sorted(path for path in before.keys() | now.keys() if before.get(path) != now.get(path))
    rooms = {path.split("/")[0] for path in changed}
    touched = [name for name, method in METHODS.items() if rooms & {*method.rooms}]
    assert not changed, (
        f"{', '.join(changed)} changed since the methods were recorded. Where the same inputs and settings give "
        f"another result now, raise the version of what they make in embed_pipeline/methods.py ({', '.join(touched)}); "
        "then record: make methods"
    )


@pytest.mark.slow
def test_the_versions_are_as_recorded():
    assert recorded()["versions"] == present()["versions"], "a version was raised; record it: make methods"


def test_every_room_of_a_method_is_there():
    assert all((PACKAGE / room / "__init__.py").is_file() for method in METHODS.values() for room in method.rooms)


def test_a_record_follows_the_code_and_not_its_prose():
    code = 'def f(a):\n    """Say."""\n    return a + 1\n'
    assert code_hash(code) == code_hash('"""Room."""\n\n\ndef f( a ):\n    # why\n    return a + 1\n')
    assert code_hash(code) != code_hash(code.replace("1", "2"))


@pytest.mark.parametrize(("raised", "stale"), [(TRAINING, {TRAINING, "finetuned_model"}), ("segments", {"segments"})])
def test_a_raised_version_makes_stale_what_the_method_makes(monkeypatch, raised, stale):
    settings = Settings()
    before = {name: made_by(name, settings) for name in METHODS}
    monkeypatch.setattr("embed_pipeline.methods.METHODS", {**METHODS, raised: Method(METHODS[raised].version + 1, ())})
    assert {name for name in METHODS if made_by(name, settings) != before[name]} == stale
