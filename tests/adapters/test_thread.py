"""The thread that works for a loop: order, results, errors, and an end that waits."""

import asyncio
import threading
from collections.abc import Callable

import pytest

from mesh.adapters.thread import LoopThread


async def _run(thread: LoopThread, job: Callable[..., object], *arguments: object) -> object:
    return await asyncio.get_running_loop().run_in_executor(thread, job, *arguments)


def test_jobs_run_in_the_thread_one_after_another() -> None:
    """In the order in which they were handed over, never two at once."""
    done: list[int] = []

    async def main() -> None:
        with LoopThread("worker") as thread:
            jobs = [_run(thread, done.append, n) for n in range(100)]
            await asyncio.gather(*jobs)
            name = await _run(thread, lambda: threading.current_thread().name)
            assert name == "worker"

    asyncio.run(main())
    assert done == list(range(100))


def test_an_error_belongs_to_who_waits() -> None:
    """It is raised there, and the thread goes on."""

    async def main() -> None:
        with LoopThread("worker") as thread:
            with pytest.raises(ZeroDivisionError):
                await _run(thread, lambda: 1 // 0)
            assert await _run(thread, lambda: 7) == 7

    asyncio.run(main())


def test_the_loop_goes_on_while_a_job_blocks() -> None:
    """Row 27: a disk that stalls never blocks the loop."""

    async def main() -> None:
        gate = threading.Event()
        with LoopThread("worker") as thread:
            waiting = asyncio.ensure_future(_run(thread, gate.wait))  # noqa: TID251 - no group: it outlives nothing
            for _ in range(10):
                await asyncio.sleep(0)
            assert not waiting.done()
            gate.set()
            assert await waiting

    asyncio.run(main())


def test_a_caller_that_gave_up_is_not_told() -> None:
    """The job runs all the same, and nothing breaks when it ends."""
    done: list[int] = []

    async def main() -> None:
        gate = threading.Event()
        with LoopThread("worker") as thread:
            loop = asyncio.get_running_loop()
            job = loop.run_in_executor(thread, gate.wait)
            job.cancel()
            gate.set()
            await loop.run_in_executor(thread, done.append, 1)

    asyncio.run(main())
    assert done == [1]


def test_ending_waits_for_what_was_handed_over() -> None:
    """What was taken is done, though the loop is gone by then."""
    done: list[int] = []
    gate = threading.Event()
    thread = LoopThread("worker")

    def late() -> None:
        gate.wait()
        done.append(1)

    async def main() -> None:
        asyncio.get_running_loop().run_in_executor(thread, late)

    asyncio.run(main())
    gate.set()
    thread.shutdown()
    assert done == [1]
