"""Batches within the budget, turns that are fair, a queue that is bounded, and work that is dropped."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import numpy as np
import pytest

from embed_pipeline.serving.batcher import Batcher, Cores
from embed_pipeline.serving.metrics import Metrics
from embed_pipeline.serving.serving_errors import RequestError


class Model:
    """Gives each row its first id and its length; may be held, and notes its batches."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.alone: list[bool] = []
        self.firsts: list[set[int]] = []
        self.opened, self.entered = threading.Event(), threading.Event()
        self.opened.set()

    def __call__(self, ids, *, alone):
        rows = ids
        self.alone.append(alone)
        self.batches.append([len(row) for row in rows])
        self.firsts.append({int(row[0]) for row in rows})
        self.entered.set()
        assert self.opened.wait(10)
        if any(row[0] == 13 for row in rows):
            raise RuntimeError("out of luck")
        return np.array([[np.nan if row[0] == 7 else row[0], len(row)] for row in rows], dtype=np.float32)


def batcher(model: Model, **options: Any) -> Batcher:
    defaults = {
        "lanes": 1,
        "batch_tokens": 64,
        "max_padding": 10,
        "max_queue_tokens": 1000,
        "max_queue_seconds": 60,
        "metrics": Metrics(),
        "cores": Cores(options.get("lanes", 1)),
    }
    return Batcher(model, **{**defaults, **options})


def rows(*lengths: int, first: int = 1) -> list[np.ndarray]:
    return [np.full(length, first, dtype=np.int32) for length in lengths]


async def held(queue: Batcher, model: Model) -> Any:
    """Keep the model busy with one row, so that what comes now waits."""
    model.opened.clear()
    model.entered.clear()
    job = queue.submit(rows(4), 0)
    assert await asyncio.to_thread(model.entered.wait, 10)
    return job


def test_vectors_come_back_in_the_order_of_the_rows():
    model = Model()

    async def scenario():
        queue = batcher(model)
        lengths = [5, 60, 1, 33, 20, 2, 60]
        jobs = [queue.submit(rows(*lengths, first=first), 0) for first in (1, 2)]
        answers = await asyncio.gather(*(job.future for job in jobs))
        queue.close()
        return lengths, answers

    lengths, answers = asyncio.run(scenario())
    for first, answer in zip((1, 2), answers, strict=True):
        assert answer.tolist() == [[first, length] for length in lengths]


def test_batches_keep_the_budget_and_hold_like_lengths_of_all_requests():
    model = Model()

    async def scenario():
        queue = batcher(model)
        await held(queue, model)
        jobs = [queue.submit(rows(length), 0) for length in (8, 30, 9, 31, 8, 32, 9, 100)]
        model.opened.set()
        await asyncio.gather(*(job.future for job in jobs))
        queue.close()

    asyncio.run(scenario())
    waited = model.batches[1:]
    assert sorted(map(sorted, waited)) == [[8, 8, 9, 9], [30, 31], [32], [100]]
    assert all(max(batch) * len(batch) <= 64 or len(batch) == 1 for batch in waited)


@pytest.mark.parametrize("lengths", [(20, 9, 9, 10, 20), (9, 9, 20, 20, 10)])
def test_rows_far_apart_in_length_do_not_share_a_batch(lengths):
    model = Model()

    async def scenario():
        queue = batcher(model, batch_tokens=1000)
        await held(queue, model)
        jobs = [queue.submit(rows(length), 0) for length in lengths]
        model.opened.set()
        await asyncio.gather(*(job.future for job in jobs))
        queue.close()

    asyncio.run(scenario())
    assert all(max(batch) <= 10 + min(batch) for batch in model.batches)
    assert len(model.batches) == 3


def test_a_short_request_does_not_wait_for_a_long_one_that_came_before():
    model = Model()

    async def scenario():
        queue = batcher(model, max_queue_tokens=100_000)
        await held(queue, model)
        bulk = queue.submit(rows(*[32] * 200), 0)
        single = queue.submit(rows(32, first=2), 0)
        model.opened.set()
        await asyncio.gather(single.future, bulk.future)
        queue.close()

    asyncio.run(scenario())
    assert len(model.batches) > 100
    assert [2 in firsts for firsts in model.firsts].index(True) <= 2


def test_an_idle_model_starts_at_once_and_a_busy_one_collects():
    model = Model()

    async def scenario():
        queue = batcher(model)
        first = await held(queue, model)
        jobs = [queue.submit(rows(4), 0) for _ in range(5)]
        model.opened.set()
        await asyncio.gather(first.future, *(job.future for job in jobs))
        queue.close()

    asyncio.run(scenario())
    assert model.batches == [[4], [4] * 5]


class SideBySide(Model):
    """Goes on when so many batches are in it at once."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.barrier = threading.Barrier(count)

    def __call__(self, ids, *, alone):
        self.barrier.wait(10)
        return super().__call__(ids, alone=alone)


def test_many_texts_are_shared_out_to_the_lanes_and_computed_side_by_side():
    model = SideBySide(4)

    async def scenario():
        queue = batcher(model, lanes=4, batch_tokens=1000)
        answer = await queue.submit(rows(100, 101, 99, 100, first=3), 0).future
        queue.close()
        return answer

    assert asyncio.run(scenario()).tolist() == [[3, 100], [3, 101], [3, 99], [3, 100]]
    assert sorted(model.batches) == [[99], [100], [100], [101]]
    assert model.alone == [False] * 4


def test_short_texts_share_a_lane():
    model = Model()

    async def scenario():
        queue = batcher(model, lanes=2, batch_tokens=1000)
        await held(queue, model)
        jobs = [queue.submit(rows(9), 0) for _ in range(7)]
        model.opened.set()
        await asyncio.gather(*(job.future for job in jobs))
        queue.close()

    asyncio.run(scenario())
    assert max(map(len, model.batches)) > 3


def test_few_texts_run_one_after_another_over_all_cores():
    model = Model()

    async def scenario():
        queue = batcher(model, lanes=8)
        first = await held(queue, model)
        second = queue.submit(rows(40), 0)
        await asyncio.sleep(0.1)
        assert len(model.batches) == 1
        model.opened.set()
        await asyncio.gather(first.future, second.future)
        queue.close()

    asyncio.run(scenario())
    assert model.batches == [[4], [40]]
    assert model.alone == [True, True]


def test_a_lane_that_is_free_does_not_wait_for_the_others():
    model = Model()

    async def scenario():
        queue = batcher(model, lanes=2)
        first = await held(queue, model)
        model.entered.clear()
        second = queue.submit(rows(40), 0)
        assert await asyncio.to_thread(model.entered.wait, 10)
        assert not first.future.done()
        model.opened.set()
        await asyncio.gather(first.future, second.future)
        queue.close()

    asyncio.run(scenario())
    assert model.alone == [True, False]


def test_a_batch_that_fails_on_a_lane_fails_its_request_and_not_the_one_beside():
    async def scenario():
        queue = batcher(Model(), lanes=2)
        unlucky, lucky = queue.submit(rows(50, first=13), 0), queue.submit(rows(50), 0)
        with pytest.raises(RuntimeError, match="out of luck"):
            await unlucky.future
        assert (await lucky.future).tolist() == [[1, 50]]
        assert (await queue.submit(rows(5), 0).future).tolist() == [[1, 5]]
        queue.close()

    asyncio.run(scenario())


def test_who_wants_all_cores_is_not_passed_by_those_who_want_one():
    cores, order = Cores(2), []

    def take(name: str, *, all_of_them: bool) -> None:
        with cores.taken(all_of_them=all_of_them):
            order.append(name)

    with cores.taken(all_of_them=False):
        waiting = []
        for name in ("all", "one"):
            waiting.append(threading.Thread(target=take, args=(name,), kwargs={"all_of_them": name == "all"}))
            waiting[-1].start()
            while len(cores.queue) < len(waiting):
                threading.Event().wait(0.01)
        assert order == []
    for thread in waiting:
        thread.join(10)
    assert order == ["all", "one"]


def test_a_full_queue_refuses_and_says_when_to_come_back():
    model = Model()

    async def scenario():
        queue = batcher(model, max_queue_tokens=100)
        await held(queue, model)
        job = queue.submit(rows(*[30] * 3), 0)
        for ask in (lambda: queue.submit(rows(30), 0), lambda: queue.reservation(1, 30).__enter__()):
            with pytest.raises(RequestError, match="the queue holds 90 of at most 100 tokens") as caught:
                ask()
            assert caught.value.status == 429
            assert int(caught.value.headers["Retry-After"]) >= 1
        queue.submit(rows(10), 0)
        model.opened.set()
        await job.future
        queue.close()

    asyncio.run(scenario())


def test_a_request_that_would_wait_too_long_is_refused_and_one_whose_turn_comes_soon_is_not():
    model = Model()

    def slow(ids, *, alone):
        time.sleep(0.02)
        return model(ids, alone=alone)

    async def scenario():
        queue = batcher(slow, batch_tokens=10, max_queue_tokens=100_000, max_queue_seconds=0.2)
        await queue.submit(rows(*[10] * 10), 0).future
        await held(queue, model)
        bulk = queue.submit(rows(*[10] * 1000), 0)
        with pytest.raises(RequestError, match=r"this request would wait longer than 0\.2 s") as caught:
            queue.submit(rows(*[10] * 100), 0)
        assert caught.value.status == 429
        assert int(caught.value.headers["Retry-After"]) >= 1
        singles = [queue.submit(rows(10), 0) for _ in range(8)]
        with pytest.raises(RequestError, match="would wait longer"):
            singles.extend(queue.submit(rows(10), 0) for _ in range(8))
        model.opened.set()
        await asyncio.gather(*(single.future for single in singles))
        queue.drop(bulk)
        queue.close()

    asyncio.run(scenario())


def test_how_long_a_queue_takes_is_not_judged_by_a_lone_short_text():
    async def scenario():
        queue = batcher(Model(), max_queue_tokens=100_000, max_queue_seconds=1e-9)
        await queue.submit(rows(4), 0).future
        jobs = [queue.submit(rows(64), 0) for _ in range(2)]
        await asyncio.gather(*(job.future for job in jobs))
        queue.close()

    asyncio.run(scenario())


def test_a_reservation_counts_until_it_ends_and_not_against_itself():
    async def scenario():
        queue = batcher(Model(), max_queue_tokens=100)
        with queue.reservation(1, 90), pytest.raises(RequestError), queue.reservation(1, 20):
            pass
        with queue.reservation(1, 90):
            job = queue.submit(rows(90), 90)
        await job.future
        # A lone request is let in whatever its estimate.
        with queue.reservation(1, 10_000):
            pass
        queue.close()

    asyncio.run(scenario())


def test_dropped_work_never_runs_and_frees_its_room():
    model = Model()

    async def scenario():
        queue = batcher(model, max_queue_tokens=100)
        await held(queue, model)
        gone, stays = queue.submit(rows(40, 40, first=3), 0), queue.submit(rows(10, first=4), 0)
        queue.drop(gone)
        late = queue.submit(rows(80), 0)
        model.opened.set()
        assert (await stays.future).tolist() == [[4, 10]]
        await late.future
        queue.close()
        assert gone.future.cancelled()

    asyncio.run(scenario())
    assert 40 not in [length for batch in model.batches for length in batch]


def test_a_batch_that_fails_fails_its_requests_and_nothing_after():
    async def scenario():
        queue = batcher(Model())
        unlucky = queue.submit(rows(50, 50, first=13), 0)
        with pytest.raises(RuntimeError, match="out of luck"):
            await unlucky.future
        assert (await queue.submit(rows(5), 0).future).tolist() == [[1, 5]]
        queue.close()

    asyncio.run(scenario())


def test_a_vector_that_is_not_finite_fails_its_request_alone():
    model = Model()

    async def scenario():
        queue = batcher(model)
        await held(queue, model)
        wrong, right = queue.submit(rows(8, first=7), 0), queue.submit(rows(8, first=2), 0)
        model.opened.set()
        assert (await right.future).tolist() == [[2, 8]]
        with pytest.raises(FloatingPointError):
            await wrong.future
        queue.close()

    asyncio.run(scenario())
    assert model.batches[1] == [8, 8]


def test_closing_finishes_what_waits_and_what_is_about_to():
    model = Model()

    async def scenario():
        queue = batcher(model)
        await held(queue, model)
        job = queue.submit(rows(*[60] * 5), 0)
        with queue.reservation(1, 5):
            closing = asyncio.create_task(asyncio.to_thread(queue.close))
            model.opened.set()
            await job.future
            late = queue.submit(rows(5), 5)
        await late.future
        await closing

    asyncio.run(scenario())
    assert sum(map(len, model.batches)) == 7


def test_closing_waits_for_a_request_that_is_being_tokenised():
    async def scenario():
        queue = batcher(Model())
        with queue.reservation(1, 5):
            closing = asyncio.create_task(asyncio.to_thread(queue.close))
            await asyncio.sleep(0.05)
            assert not closing.done()
            late = queue.submit(rows(5), 5)
        assert (await late.future).tolist() == [[1, 5]]
        await closing

    asyncio.run(asyncio.wait_for(scenario(), 10))


def test_a_closed_queue_takes_nothing():
    queue = batcher(Model())
    queue.close()
    with pytest.raises(RequestError, match="another release is served by now") as caught, queue.reservation(1, 4):
        pass
    assert (caught.value.status, caught.value.headers["Retry-After"]) == (503, "1")
