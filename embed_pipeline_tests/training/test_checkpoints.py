"""Checkpoints are whole, or not used."""

from __future__ import annotations

from pathlib import Path

from embed_pipeline.training import checkpoints


def checkpoint(work: Path, step: int) -> Path:
    folder = work / f"checkpoint-{step}"
    folder.mkdir()
    (folder / "weights").write_text(f"weights of {step}")
    checkpoints.seal_checkpoint(folder)
    return folder


def test_the_newest_whole_checkpoint_is_taken_and_broken_ones_go(tmp_path: Path) -> None:
    checkpoints.prepare_work(tmp_path / "work", "a")
    work = tmp_path / "work"
    first, second, third = (checkpoint(work, step) for step in (2, 10, 30))
    (second / "weights").write_text("weights of 1O")
    (third / "sealed.json").unlink()
    assert checkpoints.latest_checkpoint(work) == first
    assert not second.exists()
    assert not third.exists()


def test_another_trainings_checkpoints_are_removed(tmp_path: Path) -> None:
    work = tmp_path / "work"
    checkpoints.prepare_work(work, "a")
    kept = checkpoint(work, 2)
    checkpoints.prepare_work(work, "a")
    assert checkpoints.latest_checkpoint(work) == kept
    checkpoints.prepare_work(work, "b")
    assert checkpoints.latest_checkpoint(work) is None
