"""Uploads and threads that fail, stall or are cancelled: nothing is left under way, and nothing in the store."""

import asyncio
import contextlib
import gc
import random
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from snapstore.aio import Workers, drop, run_all, uninterrupted
from snapstore.archive.exclude import Excludes
from snapstore.archive.frames import FRAME
from snapstore.archive.source import Source
from snapstore.archive.walk import Walk
from snapstore.engine import parts
from snapstore.engine.limits import Limits
from snapstore.engine.writer import Request, SnapshotWriter
from snapstore.errors import ObjectNotFound, StorageError
from snapstore.objectstore import Body, Chunks, ObjectInfo, Part, UploadInfo
from snapstore.storage.local import LocalStore
from snapstore.storage.upload import MAX_PARTS, MultipartUpload

KEY = "apps/blog.tar.zst"


class Faulty:
    """A store whose steps can be held up, made to fail, and counted."""

    def __init__(self, store: LocalStore) -> None:
        self._store = store
        self.open = asyncio.Event()
        self.open.set()
        """While cleared, parts wait."""
        self.failing: dict[int | str, Exception] = {}
        """By the number of a part, or the name of another step."""
        self.ticks = 0
        """Turns of the loop that each step takes before it does anything, and after."""
        self.under_way: set[int] = set()
        self.most = 0
        self.begun: list[int] = []
        self.aborted = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def _step(self, name: int | str) -> None:
        await ticks(self.ticks)
        if name in self.failing:
            raise self.failing[name]

    async def create_upload(self, key: str) -> str:
        await self._step("create")
        upload_id = await self._store.create_upload(key)
        await ticks(self.ticks)
        return upload_id

    async def upload_part(self, key: str, upload_id: str, number: int, body: Chunks) -> Part:
        self.begun.append(number)
        self.under_way.add(number)
        self.most = max(self.most, len(self.under_way))
        try:
            await self.open.wait()
            await self._step(number)
            return await self._store.upload_part(key, upload_id, number, body)
        finally:
            self.under_way.remove(number)

    async def complete_upload(self, key: str, upload_id: str, parts: Sequence[Part]) -> ObjectInfo:
        await self._step("complete")
        completed = await self._store.complete_upload(key, upload_id, parts)
        await ticks(self.ticks)
        return completed

    async def abort_upload(self, key: str, upload_id: str) -> None:
        assert not self.under_way, "a part that arrives after the abort would never be removed"
        self.aborted += 1
        await self._step("abort")
        await self._store.abort_upload(key, upload_id)


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Faulty]:
    local = LocalStore(tmp_path / "store")
    await local.open()
    yield Faulty(local)
    assert asyncio.all_tasks() == {asyncio.current_task()}, "something was left running"
    await local.aclose()


@pytest.fixture
async def complaints() -> AsyncIterator[list[str]]:
    """What the loop was told of errors that nobody looked at."""
    told: list[str] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context["message"]))
    yield told
    gc.collect()
    assert told == []


async def ticks(turns: int) -> None:
    for _ in range(turns):
        await asyncio.sleep(0)


async def uploads(store: Faulty) -> list[UploadInfo]:
    return [upload async for page in store.list_uploads() for upload in page]


async def content(store: Faulty) -> bytes | None:
    try:
        body: Body = await store.get(KEY)
        return body.content
    except ObjectNotFound:
        return None


async def send(store: Faulty, parts: int, *, in_flight: int = 3) -> None:
    async with MultipartUpload(store, KEY, in_flight=in_flight) as upload:
        for number in range(1, parts + 1):
            await upload.part(number, [b"part %d " % number])
        await upload.complete()


def sent(parts: int) -> bytes:
    return b"".join(b"part %d " % number for number in range(1, parts + 1))


# -- MultipartUpload -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("in_flight", [1, 2, 3, 20])
async def test_all_parts_become_the_object(store: Faulty, in_flight: int) -> None:
    await send(store, 10, in_flight=in_flight)
    assert await content(store) == sent(10)
    assert await uploads(store) == []
    assert store.aborted == 0


async def test_complete_returns_the_object(store: Faulty) -> None:
    async with MultipartUpload(store, KEY) as upload:
        await upload.part(2, [b"last"])
        await upload.part(1, [b"first ", b"and "])
        completed = await upload.complete()
    assert completed == await store.head(KEY)
    assert await content(store) == b"first and last"


async def test_no_more_parts_are_under_way_than_allowed(store: Faulty) -> None:
    store.open.clear()
    sending = asyncio.create_task(send(store, 8, in_flight=3))
    while len(store.under_way) < 3:
        await ticks(1)
    await ticks(50)
    assert store.begun == [1, 2, 3]
    store.open.set()
    await sending
    assert store.most == 3
    assert await content(store) == sent(8)


async def test_a_part_is_under_way_before_the_next_is_given(store: Faulty) -> None:
    store.open.clear()
    async with MultipartUpload(store, KEY, in_flight=2) as upload:
        async with asyncio.timeout(30):
            await upload.part(1, [b"a"])
            await upload.part(2, [b"b"])
        store.open.set()
        await upload.complete()


async def test_nothing_is_begun_without_a_part(store: Faulty) -> None:
    async with MultipartUpload(store, KEY):
        pass
    assert await uploads(store) == []
    assert store.aborted == 0


async def test_an_upload_left_without_completion_is_aborted(store: Faulty) -> None:
    async with MultipartUpload(store, KEY) as upload:
        await upload.part(1, [b"x"])
    assert (await uploads(store), await content(store)) == ([], None)


async def test_an_error_of_the_caller_comes_out_and_aborts(store: Faulty) -> None:
    async def fail() -> None:
        async with MultipartUpload(store, KEY) as upload:
            await upload.part(1, [b"x"])
            raise LookupError("the caller's own")

    with pytest.raises(LookupError, match="the caller's own"):
        await fail()
    assert (await uploads(store), await content(store)) == ([], None)


@pytest.mark.parametrize(("parts", "failing"), [(1, 1), (3, 1), (3, 3), (9, 1), (9, 2), (9, 5), (9, 9)])
async def test_the_error_of_a_part_comes_out_as_it_is_and_aborts(
    store: Faulty, complaints: list[str], parts: int, failing: int
) -> None:
    store.failing[failing] = error = StorageError("the disk of the server is on fire", KEY)
    with pytest.raises(StorageError) as caught:
        await send(store, parts)
    assert caught.value is error
    assert (await uploads(store), await content(store)) == ([], None)


async def test_parts_that_fail_at_the_same_time_leave_no_error_unseen(store: Faulty, complaints: list[str]) -> None:
    store.open.clear()
    store.failing |= {number: StorageError(f"part {number}") for number in (1, 2, 3)}
    sending = asyncio.create_task(send(store, 6, in_flight=3))
    while len(store.under_way) < 3:
        await ticks(1)
    store.open.set()
    with pytest.raises(StorageError):
        await sending
    del sending
    store.failing.clear()  # an error that is still held is not yet an unseen one
    assert (await uploads(store), await content(store)) == ([], None)


async def test_a_failed_part_ends_those_that_stall(store: Faulty, complaints: list[str]) -> None:
    store.open.clear()

    async def fail(key: str, upload_id: str, number: int, body: Chunks) -> Part:
        if number == 2:
            raise StorageError("part 2")
        return await stalling(key, upload_id, number, body)

    stalling, store.upload_part = store.upload_part, fail  # type: ignore[method-assign]
    with pytest.raises(StorageError, match="part 2"):
        await asyncio.wait_for(send(store, 3), timeout=30)
    assert not store.under_way
    assert (await uploads(store), await content(store)) == ([], None)


async def test_an_upload_that_cannot_begin_leaves_nothing(store: Faulty) -> None:
    store.failing["create"] = StorageError("no")
    with pytest.raises(StorageError, match="no"):
        await send(store, 3)
    assert (store.begun, store.aborted) == ([], 0)


async def test_an_upload_that_cannot_be_completed_is_aborted(store: Faulty) -> None:
    store.failing["complete"] = StorageError("no")
    with pytest.raises(StorageError, match="no"):
        await send(store, 3)
    assert (await uploads(store), await content(store)) == ([], None)


async def test_a_failing_abort_does_not_hide_the_error(store: Faulty, caplog: pytest.LogCaptureFixture) -> None:
    store.failing |= {2: StorageError("the cause"), "abort": StorageError("the abort")}
    with pytest.raises(StorageError, match="the cause"):
        await send(store, 3)
    assert ["the abort" in record.message for record in caplog.records] == [True]


async def assert_no_trace(store: Faulty, parts: int) -> None:
    assert await uploads(store) == []
    assert not store.under_way
    assert asyncio.all_tasks() == {asyncio.current_task()}
    assert await content(store) in (None, sent(parts))
    await store.delete(KEY)


async def cancel_after(turns: int, task: "asyncio.Task[None]", *, times: int = 1) -> bool:
    """Cancel a task after so many turns of the loop; whether that ended it."""
    for _ in range(times):
        await ticks(turns)
        task.cancel()
    try:
        await task
    except asyncio.CancelledError:
        return True
    return False


@pytest.mark.parametrize("times", [1, 3])
async def test_cancelling_at_any_moment_leaves_no_trace(store: Faulty, complaints: list[str], times: int) -> None:
    store.ticks = 2
    cancelled = 0
    for turns in range(120):
        cancelled += await cancel_after(turns, asyncio.create_task(send(store, 4, in_flight=2)), times=times)
        await assert_no_trace(store, 4)
    assert cancelled > 10, "these moments lie within the upload"


async def test_cancelling_while_threads_are_at_work_leaves_no_trace(store: Faulty, complaints: list[str]) -> None:
    loop = asyncio.get_running_loop()
    begun = loop.time()
    await send(store, 6)
    lasts = loop.time() - begun
    dice = random.Random(5)
    for _ in range(150):
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(dice.uniform(0, 1.1 * lasts)):
                await send(store, 6)
        await assert_no_trace(store, 6)


async def test_cancelling_while_parts_stall_leaves_no_trace(store: Faulty) -> None:
    store.open.clear()
    sending = asyncio.create_task(send(store, 5))
    while len(store.under_way) < 3:
        await ticks(1)
    assert await cancel_after(0, sending)
    await assert_no_trace(store, 5)


async def test_a_cancelled_beginning_still_aborts_the_upload_that_the_store_began(store: Faulty) -> None:
    asked, answer = asyncio.Event(), asyncio.Event()
    create = store.create_upload

    async def slow(key: str) -> str:
        upload_id = await create(key)
        asked.set()
        await answer.wait()
        return upload_id

    store.create_upload = slow  # type: ignore[method-assign]
    sending = asyncio.create_task(send(store, 1))
    await asked.wait()
    sending.cancel()
    await ticks(5)
    assert not sending.done()
    answer.set()
    with pytest.raises(asyncio.CancelledError):
        await sending
    assert store.aborted == 1
    await assert_no_trace(store, 1)


async def test_a_cancelled_beginning_does_not_wait_for_ever(store: Faulty, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("snapstore.aio.TIDY_SECONDS", 0.05)
    asked = asyncio.Event()

    async def silent(key: str) -> str:
        asked.set()
        await asyncio.Event().wait()
        raise AssertionError("unreachable")

    store.create_upload = silent  # type: ignore[method-assign]
    sending = asyncio.create_task(send(store, 1))
    await asked.wait()
    sending.cancel()
    async with asyncio.timeout(30):
        with pytest.raises(asyncio.CancelledError):
            await sending
    assert store.aborted == 0
    await assert_no_trace(store, 1)


# -- ArchiveUpload -------------------------------------------------------------------------------------------------

MIB = 1 << 20
GIB = 1 << 30


@pytest.mark.parametrize(
    ("archive", "part", "sent"),
    [
        (0, 8, 3),
        (70 * GIB, 8, 3),
        (142 * GIB, 16, 3),
        (280 * GIB, 32, 3),
        (370 * GIB, 42, 2),
        (500 * GIB, 57, 1),
        (1024 * GIB, 116, 1),
        (5 * 1024 * GIB, 577, 1),
    ],
)
def test_fewer_parts_are_sent_at_once_where_they_are_larger(archive: int, part: int, sent: int) -> None:
    size = parts.part_size(archive, 8 * MIB)
    assert size == part * MIB
    assert size * MAX_PARTS >= archive
    assert parts.in_flight(size) == sent
    assert parts.memory(size) == (sent + 1) * size
    assert parts.memory(size) <= 128 * MIB or sent == 1


@pytest.mark.parametrize(("memory", "sent"), [(0, 1), (200, 1), (300, 2), (400, 3), (1000, 3)])
async def test_an_archive_sends_no_more_parts_than_its_memory_allows(
    store: Faulty, monkeypatch: pytest.MonkeyPatch, memory: int, sent: int
) -> None:
    monkeypatch.setattr(parts, "_MEMORY", memory)
    store.open.clear()

    async def write() -> None:
        async with parts.ArchiveUpload(store, KEY, 100) as upload:
            for _ in range(20):
                await upload.write(b"0123456789" * 5)
            await upload.finish()

    writing = asyncio.create_task(write())
    while len(store.under_way) < sent:
        await ticks(1)
    await ticks(50)
    assert len(store.under_way) == sent
    store.open.set()
    await writing
    assert store.most == sent
    assert await content(store) == b"0123456789" * 100


async def test_a_snapshot_asks_for_the_memory_of_the_parts_that_it_sends(store: Faulty, tmp_path: Path) -> None:
    request = Request("blog", str(tmp_path), (), (), "fail", 3, None)
    writer = SnapshotWriter(store, None, Limits(threads=4), None, request)  # type: ignore[arg-type]

    def asked(size: int) -> int:
        with Source(str(tmp_path)) as source:
            walk = Walk(source, Excludes([]))
            walk.content_size = size
            return writer._memory(walk)

    frames = 7 * FRAME
    assert asked(GIB) == frames + 4 * store.part_size
    assert asked(500 * GIB) == frames + 2 * 57 * MIB < 160 * MIB
    assert asked(1024 * GIB) == frames + 2 * 116 * MIB  # 10,000 parts do not allow for less


# -- Workers -------------------------------------------------------------------------------------------------------


@pytest.fixture
def workers() -> Iterator[Workers]:
    pool = Workers(2, "test")
    yield pool
    pool.close()


class Job:
    """Work in a thread that goes on until it is released."""

    def __init__(self) -> None:
        self.began = threading.Event()
        self.release = threading.Event()
        self.ended = False

    def __call__(self, error: Exception | None = None) -> str:
        self.began.set()
        assert self.release.wait(30)
        self.ended = True
        if error is not None:
            raise error
        return "done"


async def began(job: Job) -> None:
    assert await asyncio.to_thread(job.began.wait, 30)


async def test_a_job_runs_in_a_thread_and_returns_its_value(workers: Workers) -> None:
    def job(first: int, *, second: int) -> tuple[int, bool]:
        return first + second, threading.current_thread() is threading.main_thread()

    assert await workers.run(job, 1, second=2) == (3, False)


async def test_the_error_of_a_job_comes_out_as_it_is(workers: Workers) -> None:
    job, error = Job(), LookupError("x")
    job.release.set()
    with pytest.raises(LookupError) as caught:
        await workers.run(job, error)
    assert caught.value is error


@pytest.mark.parametrize("error", [None, LookupError("nobody is left to hear it")])
@pytest.mark.parametrize("cancellations", [1, 3])
async def test_a_cancelled_caller_waits_for_the_thread(
    workers: Workers, complaints: list[str], cancellations: int, error: Exception | None
) -> None:
    job = Job()
    task = asyncio.create_task(workers.run(job, error))
    await began(job)
    for _ in range(cancellations):
        task.cancel()
        await ticks(10)
        assert not task.done()
    job.release.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert job.ended


async def test_a_job_that_has_not_begun_is_dropped_at_once(workers: Workers) -> None:
    busy, waiting = [Job(), Job()], Job()
    tasks = [workers.start(job) for job in busy]
    for job in busy:
        await began(job)
    queued = workers.start(waiting)
    await ticks(5)
    assert await cancelled(queued)
    for job in busy:
        job.release.set()
    assert await asyncio.gather(*tasks) == ["done", "done"]
    assert not waiting.began.is_set()


async def cancelled(task: "asyncio.Task[Any]") -> bool:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    return task.cancelled()


async def test_a_timeout_covers_a_job_that_ends_late(workers: Workers) -> None:
    job = Job()

    async def limited() -> None:
        async with asyncio.timeout(None) as limit:
            limit.reschedule(0)
            await workers.run(job)

    task = asyncio.create_task(limited())
    await began(job)
    await ticks(10)
    assert not task.done()
    job.release.set()
    with pytest.raises(TimeoutError):
        await task


async def test_a_stoppable_job_is_told_to_stop(workers: Workers) -> None:
    stop, started, ended = threading.Event(), threading.Event(), threading.Event()

    def job() -> None:
        started.set()
        assert stop.wait(30)
        ended.set()

    task = asyncio.create_task(workers.run_stoppable(stop, job))
    await asyncio.to_thread(started.wait, 30)
    assert await cancelled(task)
    assert ended.is_set()


async def test_a_stoppable_job_that_is_let_be_returns_its_value(workers: Workers) -> None:
    stop = threading.Event()
    assert await workers.run_stoppable(stop, lambda: 5) == 5
    assert not stop.is_set()


async def test_dropped_jobs_have_ended(workers: Workers, complaints: list[str]) -> None:
    job = Job()
    task = workers.start(job, LookupError("forgotten"))
    await began(job)
    dropping = asyncio.create_task(drop([task]))
    await ticks(10)
    assert not dropping.done()
    job.release.set()
    await dropping
    assert job.ended
    assert task.done()


async def test_closing_ends_the_threads() -> None:
    before = set(threading.enumerate())
    workers = Workers(3, "test")
    await asyncio.gather(*(workers.run(int) for _ in range(20)))
    assert set(threading.enumerate()) - before
    workers.close()
    assert set(threading.enumerate()) - before == set()


# -- run_all -------------------------------------------------------------------------------------------------------


class Crowd:
    """Jobs that are counted while they run, and taken note of when they are made."""

    def __init__(self) -> None:
        self.made: list[int] = []
        self.running: set[int] = set()
        self.ended: list[int] = []
        self.most = 0
        self.go_on = asyncio.Event()

    def jobs(self, count: int, job: "Callable[[int], Coroutine[Any, Any, None]] | None" = None) -> Iterator[Any]:
        for number in range(count):
            self.made.append(number)
            yield self.run(number, job)

    async def run(self, number: int, job: "Callable[[int], Coroutine[Any, Any, None]] | None") -> None:
        self.running.add(number)
        self.most = max(self.most, len(self.running))
        try:
            await (job(number) if job else self.go_on.wait())
            self.ended.append(number)
        finally:
            try:
                await ticks(3)
            finally:
                self.running.remove(number)


async def test_run_all_awaits_all_jobs() -> None:
    crowd = Crowd()
    crowd.go_on.set()
    await run_all(crowd.jobs(20), at_once=4)
    assert sorted(crowd.ended) == list(range(20))
    assert crowd.most == 4


async def test_run_all_of_nothing_does_nothing() -> None:
    await run_all([], at_once=3)


async def test_run_all_takes_each_job_when_its_turn_comes() -> None:
    crowd = Crowd()
    running = asyncio.create_task(run_all(crowd.jobs(10), at_once=3))
    await ticks(30)
    assert crowd.made == [0, 1, 2]
    assert crowd.running == {0, 1, 2}
    crowd.go_on.set()
    await running
    assert crowd.most == 3


async def test_the_first_error_ends_all_jobs_and_comes_out_as_it_is(complaints: list[str]) -> None:
    crowd, error = Crowd(), LookupError("the first")

    async def job(number: int) -> None:
        if number == 2:
            raise error
        await crowd.go_on.wait()

    with pytest.raises(LookupError) as caught:
        await run_all(crowd.jobs(10, job), at_once=3)
    assert caught.value is error
    assert (crowd.running, crowd.ended, crowd.made) == (set(), [], [0, 1, 2])


async def test_jobs_that_fail_at_the_same_time_leave_no_error_unseen(complaints: list[str]) -> None:
    crowd = Crowd()

    async def job(number: int) -> None:
        await crowd.go_on.wait()
        raise LookupError(number)

    running = asyncio.create_task(run_all(crowd.jobs(10, job), at_once=4))
    await ticks(5)
    crowd.go_on.set()
    with pytest.raises(LookupError):
        await running
    del running
    assert crowd.running == set()


async def test_an_error_of_the_iterator_ends_all_jobs() -> None:
    crowd = Crowd()

    def jobs() -> Iterator[Coroutine[Any, Any, None]]:
        yield from crowd.jobs(2)
        raise LookupError("no more")

    with pytest.raises(LookupError, match="no more"):
        await run_all(jobs(), at_once=5)
    assert crowd.running == set()


async def test_cancelling_run_all_at_any_moment_ends_all_jobs(complaints: list[str]) -> None:
    for turns in range(40):
        crowd = Crowd()
        task = asyncio.create_task(run_all(crowd.jobs(9, lambda number: ticks(number % 3)), at_once=3))
        ended = not await cancel_after(turns, task)
        assert crowd.running == set()
        assert ended == (len(crowd.ended) == 9) or not ended
        assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_a_cancellation_is_not_lost_while_failed_jobs_end() -> None:
    crowd, cleaning = Crowd(), asyncio.Event()

    async def job(number: int) -> None:
        if number == 1:
            raise LookupError("the first")
        try:
            await crowd.go_on.wait()
        finally:
            cleaning.set()
            await ticks(10)

    task = asyncio.create_task(run_all(crowd.jobs(2, job), at_once=2))
    await cleaning.wait()
    task.cancel()
    with pytest.raises((asyncio.CancelledError, LookupError)):
        await task
    assert crowd.running == set()


# -- uninterrupted -------------------------------------------------------------------------------------------------


async def test_uninterrupted_gives_what_its_step_gives() -> None:
    async def step() -> int:
        return 5

    assert await uninterrupted(step()) == 5


async def test_the_error_of_an_uninterrupted_step_comes_out_as_it_is() -> None:
    error = LookupError("x")

    async def step() -> None:
        raise error

    with pytest.raises(LookupError) as caught:
        await uninterrupted(step())
    assert caught.value is error


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("cancellations", [1, 3])
async def test_a_cancellation_comes_out_after_the_step(complaints: list[str], cancellations: int, fails: bool) -> None:
    go_on = asyncio.Event()
    ended = False

    async def step() -> None:
        nonlocal ended
        await go_on.wait()
        ended = True
        if fails:
            raise LookupError("less than the cancellation")

    task = asyncio.create_task(uninterrupted(step()))
    for _ in range(cancellations):
        await ticks(3)
        task.cancel()
    await ticks(3)
    assert not task.done()
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended


async def test_a_step_that_is_itself_cancelled_tells_so() -> None:
    async def step() -> None:
        raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        await uninterrupted(step())
