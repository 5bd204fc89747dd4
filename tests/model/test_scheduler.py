from __future__ import annotations

import asyncio

import pytest

from services.model.errors import QueueFull
from services.model.scheduler import Scheduler


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_first_come_first_served_within_places_and_tokens() -> None:
    scheduler = Scheduler(places=2, tokens=100, queue=10)
    first = await scheduler.admit(60)
    large = asyncio.create_task(scheduler.admit(50))  # does not fit beside the first
    small = asyncio.create_task(scheduler.admit(10))  # would, but does not overtake
    await settle()
    assert (scheduler.running, scheduler.waiting, large.done(), small.done()) == (1, 2, False, False)
    scheduler.release(first)
    await settle()
    assert (scheduler.running, scheduler.waiting, scheduler.reserved) == (2, 0, 60)
    scheduler.release(large.result())
    scheduler.release(small.result())
    assert (scheduler.running, scheduler.reserved) == (0, 0)


async def test_alone_waits_for_all_and_all_wait_for_it() -> None:
    scheduler = Scheduler(places=3, tokens=100, queue=10)
    first = await scheduler.admit(1)
    alone = asyncio.create_task(scheduler.admit(1, alone=True))
    after = asyncio.create_task(scheduler.admit(1))
    await settle()
    assert (alone.done(), after.done()) == (False, False)
    scheduler.release(first)
    await settle()
    assert (alone.done(), after.done(), scheduler.running) == (True, False, 1)
    scheduler.release(alone.result())
    await settle()
    assert after.done()
    scheduler.release(after.result())
    assert (scheduler.running, scheduler.reserved) == (0, 0)


async def test_places_are_the_other_bound() -> None:
    scheduler = Scheduler(places=1, tokens=100, queue=10)
    first = await scheduler.admit(1)
    second = asyncio.create_task(scheduler.admit(1))
    await settle()
    assert not second.done()
    scheduler.release(first)
    await second


async def test_a_request_for_more_than_everything_gets_everything() -> None:
    scheduler = Scheduler(places=1, tokens=100, queue=0)
    assert (await scheduler.admit(1000)).tokens == 100


async def test_full() -> None:
    scheduler = Scheduler(places=1, tokens=100, queue=1)
    await scheduler.admit(1)
    waiting = asyncio.create_task(scheduler.admit(1))
    await settle()
    with pytest.raises(QueueFull) as caught:
        await scheduler.admit(1)
    assert int(caught.value.headers()["Retry-After"]) >= 1
    waiting.cancel()
    await settle()
    assert scheduler.waiting == 0


async def test_who_leaves_the_head_of_the_queue_lets_the_next_in() -> None:
    scheduler = Scheduler(places=3, tokens=100, queue=10)
    await scheduler.admit(60)
    large = asyncio.create_task(scheduler.admit(50))
    small = asyncio.create_task(scheduler.admit(10))
    await settle()
    large.cancel()
    await settle()
    assert small.done()
    assert (scheduler.running, scheduler.reserved, scheduler.waiting) == (2, 70, 0)


async def test_a_place_given_in_the_moment_of_leaving_is_given_back() -> None:
    scheduler = Scheduler(places=1, tokens=100, queue=10)
    first = await scheduler.admit(1)
    second = asyncio.create_task(scheduler.admit(1))
    third = asyncio.create_task(scheduler.admit(1))
    await settle()
    scheduler.release(first)  # gives the place to the second, which has not run since
    second.cancel()
    await settle()
    assert second.cancelled()
    assert third.done()
    scheduler.release(third.result())
    assert (scheduler.running, scheduler.reserved) == (0, 0)
