"""Every promise of `ObjectStore`'s docstrings, as tests that any store can be put through.

Subclass `StorageContract` as ``Test…`` and give it an async fixture ``bucket``: an open, empty store. What a server
cannot do is declared in the subclass, with the reason, and those tests are skipped with it:

    class TestRclone(StorageContract):
        supports_copy = Unsupported("rclone serve s3 answers UploadPartCopy without an ETag and copies nothing")
"""

import asyncio
import contextlib
import itertools
import random
import time
import urllib.request
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import pytest

from snapstore.errors import InvalidInput, ObjectNotFound, PreconditionFailed, StorageError
from snapstore.objectstore import ObjectInfo, ObjectStore, Part, UploadInfo
from tests.trees import noise

T = TypeVar("T")

MIB = 1 << 20

INVALID_KEYS = [
    "",
    "/",
    "/absolute",
    "folder/",
    "a//b",
    ".",
    "..",
    "../above",
    "a/../../above",
    "a/./b",
    "a/..",
    "x" * 256,
    "a/" + "é" * 128,
    "line\nbreak",
    "tab\tkey",
    "nul\0key",
    "delete\x7fkey",
    "surrogate\udc80",
]

ODD_NAMES = [
    "with space",
    " leading and trailing ",
    "plus+plus",
    "percent%2Fslash",
    "50%",
    "question?mark=1&x",
    "hash#tag",
    "quote\"'`",
    "back\\slash",
    "star*[a-z]{x}",
    "colon:semi;comma,",
    "<xml>&amp;",
    ".hidden",
    "...",
    "-dash",
    "~tilde",
    "é",
    "e\u0301",
    "日本語",
    "\U0001f600",
    "x" * 255,
    "é" * 127,
]


class Unsupported:
    """What a server cannot do, and why; it counts as False."""

    def __init__(self, reason: str) -> None:
        self.reason = reason

    def __bool__(self) -> bool:
        return False


def require(capability: "bool | Unsupported") -> None:
    if isinstance(capability, Unsupported):
        pytest.skip(capability.reason)
    assert capability, "what is not supported needs its reason: Unsupported('…')"


def unique(name: str = "object") -> str:
    return f"{uuid.uuid4().hex}/{name}"


def letters(letter: str, size: int) -> bytes:
    """A body that shows at each byte which one it is."""
    return letter.encode() * size


def numbered(size: int, seed: int = 0) -> bytes:
    """A body that shows at each byte where it is."""
    return noise(size, seed)


async def keys_of(bucket: ObjectStore, prefix: str = "", start_after: str = "") -> list[str]:
    return [found.key async for page in bucket.list(prefix, start_after=start_after) for found in page]


async def listed(bucket: ObjectStore, prefix: str = "") -> list[ObjectInfo]:
    return [found async for page in bucket.list(prefix) for found in page]


async def uploads_of(bucket: ObjectStore, key: str) -> list[UploadInfo]:
    return [upload async for page in bucket.list_uploads() for upload in page if upload.key == key]


async def absent(bucket: ObjectStore, key: str) -> bool:
    try:
        await bucket.head(key)
    except ObjectNotFound:
        return key not in await keys_of(bucket, key)
    return False


async def whole(bucket: ObjectStore, key: str) -> bytes:
    return (await bucket.get(key)).content


async def drained(pieces: AsyncIterator[bytes]) -> bytes:
    return b"".join([piece async for piece in pieces])


async def in_turns(jobs: Iterable[Coroutine[Any, Any, T]], at_once: int = 32) -> list[T]:
    """Results of all jobs, so many at once."""
    turns = asyncio.Semaphore(at_once)

    async def one(job: Coroutine[Any, Any, T]) -> T:
        async with turns:
            return await job

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(one(job)) for job in jobs]
    return [task.result() for task in tasks]


async def outcome(attempt: Awaitable[T]) -> T | Exception:
    """What an attempt gave, or the error of the contract that it raised."""
    try:
        return await attempt
    except (PreconditionFailed, StorageError, ObjectNotFound) as error:
        return error


def wins(outcomes: Sequence[object]) -> list[ObjectInfo]:
    assert all(isinstance(result, ObjectInfo | PreconditionFailed) for result in outcomes), outcomes
    return [result for result in outcomes if isinstance(result, ObjectInfo)]


async def interrupted(attempt: Coroutine[Any, Any, object], after: float) -> None:
    """Run ``attempt``, and cancel it when it takes longer than so many seconds."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(after):
            await attempt


class StorageContract:
    part_size: int = 5 * MIB
    """Of all parts but the last. A store that takes smaller ones may say so, to be quick."""
    many: int = 1_050
    """So many objects as to fill more than one page of any server, and more than one DeleteObjects request."""

    supports_conditional_writes: bool | Unsupported = True
    supports_etags_while_overwriting: bool | Unsupported = True
    supports_cut_overwrites: bool | Unsupported = True
    """Whether an object stays as it was where the body that was to replace it is cut."""
    supports_completed_etags: bool | Unsupported = True
    """Whether a completion answers with the ETag that the object has from then on."""
    supports_copy: bool | Unsupported = True
    supports_list_uploads: bool | Unsupported = True
    supports_byte_order: bool | Unsupported = True
    """Where not, listings are still checked for what they hold; their order and where they start only in one folder."""
    supports_paths_beside_objects: bool | Unsupported = True
    """Where not, a path above or below an object is still not found, but never deleted: none of our keys is one."""
    supports_part_gaps: bool | Unsupported = True
    """Part numbers that leave some out, and completions that leave out a part; where not, 1, 2, 3 … and all of them."""
    supports_part_replacement: bool | Unsupported = True
    """Another body for a part that was sent; where not, the same body may still be sent again."""
    supports_upload_times: bool | Unsupported = True
    supports_copy_conditions: bool | Unsupported = True
    supports_copy_range_checks: bool | Unsupported = True
    unusable_names: Mapping[str, str] = {}
    """Of `ODD_NAMES`, with the reason: snapstore's own keys are ASCII, and have few punctuation marks."""

    async def upload(self, bucket: ObjectStore, key: str, bodies: Sequence[bytes]) -> tuple[str, list[Part]]:
        upload_id = await bucket.create_upload(key)
        parts = [await bucket.upload_part(key, upload_id, number, [body]) for number, body in enumerate(bodies, 1)]
        return upload_id, parts

    # -- put, get, head ------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("size", [0, 1, 70_000, 3 * MIB + 1])
    async def test_an_object_comes_back_as_it_was_put(self, bucket: ObjectStore, size: int) -> None:
        key, content = unique(), numbered(size)
        written = await bucket.put(key, content)
        body = await bucket.get(key)
        assert (written.key, written.size) == (key, size)
        assert (body.content, body.etag) == (content, written.etag)

    async def test_a_put_replaces_the_whole_object(self, bucket: ObjectStore) -> None:
        key = unique()
        await bucket.put(key, letters("a", 5000))
        await bucket.put(key, b"short")
        assert await whole(bucket, key) == b"short"
        assert (await bucket.head(key)).size == 5

    async def test_head_and_list_say_what_put_said(self, bucket: ObjectStore) -> None:
        key = unique()
        written = await bucket.put(key, b"four")
        headed, [found] = await bucket.head(key), await listed(bucket, key)
        for seen in (headed, found):
            assert (seen.key, seen.size, seen.etag) == (key, 4, written.etag)
        assert abs(headed.modified - found.modified) < 2, "within the resolution of an HTTP date"
        assert abs(headed.modified - time.time()) < 3600, "in seconds since 1970"

    @pytest.mark.parametrize("name", ODD_NAMES)
    async def test_any_valid_key_can_be_used(self, bucket: ObjectStore, name: str) -> None:
        if name in self.unusable_names:
            pytest.skip(self.unusable_names[name])
        key = unique(name)
        await bucket.put(key, name.encode())
        assert await whole(bucket, key) == name.encode()
        assert await keys_of(bucket, key) == [key]
        await bucket.delete(key)
        assert await absent(bucket, key)

    async def test_keys_differ_by_each_of_their_bytes(self, bucket: ObjectStore) -> None:
        folder = unique("")
        names = ["case", "CASE", "\u00e9", "e\u0301", "a", "a ", "a.", "a+", "a%20", "a%2B"]
        await in_turns(bucket.put(folder + name, name.encode()) for name in names)
        assert sorted(await keys_of(bucket, folder)) == sorted(folder + name for name in names)
        for name in names:
            assert await whole(bucket, folder + name) == name.encode()

    async def test_a_write_that_returned_is_seen_by_every_reader(self, bucket: ObjectStore) -> None:
        key = unique()
        for version in range(5):
            written = await bucket.put(key, b"%d" % version)
            bodies = await in_turns(bucket.get(key) for _ in range(10))
            assert {(body.content, body.etag) for body in bodies} == {(b"%d" % version, written.etag)}
            assert (await bucket.head(key)).etag == written.etag
            assert [found.etag for found in await listed(bucket, key)] == [written.etag]

    async def test_what_is_not_there_is_not_found(self, bucket: ObjectStore) -> None:
        key = unique()
        attempts: list[Callable[[], Awaitable[object]]] = [
            lambda: bucket.get(key),
            lambda: bucket.get(key, start=5, size=5),
            lambda: bucket.get(key, if_match='"0"'),
            lambda: bucket.head(key),
            lambda: drained(bucket.stream(key)),
        ]
        for attempt in attempts:
            with pytest.raises(ObjectNotFound) as caught:
                await attempt()
            assert caught.value.key == key

    async def test_a_folder_of_keys_is_no_object(self, bucket: ObjectStore) -> None:
        key = unique()
        await bucket.put(f"{key}/below", b"")
        for attempt in (bucket.get, bucket.head):
            with pytest.raises(ObjectNotFound):
                await attempt(key)
        require(self.supports_paths_beside_objects)
        await bucket.delete(key)
        assert await keys_of(bucket, key) == [f"{key}/below"]

    async def test_a_key_below_an_object_is_not_there(self, bucket: ObjectStore) -> None:
        key = unique()
        await bucket.put(key, b"")
        for attempt in (bucket.get, bucket.head):
            with pytest.raises(ObjectNotFound):
                await attempt(f"{key}/below")
        require(self.supports_paths_beside_objects)
        await bucket.delete(f"{key}/below")
        assert await keys_of(bucket, key) == [key]

    # -- ranges --------------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("start", [0, 1, 999, 1000, 1001, 1 << 40])
    async def test_a_range_gives_what_lies_within_the_object(self, bucket: ObjectStore, start: int) -> None:
        key, content = unique(), numbered(1000)
        etag = (await bucket.put(key, content)).etag
        for size in (None, 0, 1, 999, 1000, 1001, 1 << 50):
            body = await bucket.get(key, start=start, size=size)
            assert body.content == (content[start:] if size is None else content[start : start + size]), size
            assert body.etag == etag, size

    @pytest.mark.parametrize(("start", "size"), [(0, None), (0, 0), (0, 10), (1, None), (1, 10)])
    async def test_any_range_of_an_empty_object_is_empty(
        self, bucket: ObjectStore, start: int, size: int | None
    ) -> None:
        key = unique()
        etag = (await bucket.put(key, b"")).etag
        body = await bucket.get(key, start=start, size=size)
        assert (body.content, body.etag) == (b"", etag)

    async def test_a_range_is_pinned_to_its_version(self, bucket: ObjectStore) -> None:
        key = unique()
        old = (await bucket.put(key, letters("a", 1000))).etag
        assert (await bucket.get(key, start=10, size=5, if_match=old)).content == b"aaaaa"
        new = (await bucket.put(key, letters("b", 1000))).etag
        for start, size in [(0, None), (10, 5), (1000, 5), (2000, None), (0, 0)]:
            with pytest.raises(PreconditionFailed) as caught:
                await bucket.get(key, start=start, size=size, if_match=old)
            assert caught.value.key == key
        assert (await bucket.get(key, start=10, size=5, if_match=new)).content == b"bbbbb"

    # -- conditional writes and versions -------------------------------------------------------------------------

    async def test_etags_differ_between_bodies(self, bucket: ObjectStore) -> None:
        key = unique()
        bodies = [b"%03d" % version for version in range(30)] + [b"", b"0"]
        etags = [(await bucket.put(key, body)).etag for body in bodies]
        for letter in "xy":
            upload_id, parts = await self.upload(bucket, key, [letters(letter, 3)])
            etags.append((await bucket.complete_upload(key, upload_id, parts)).etag)
        assert len(set(etags)) == len(etags)

    async def test_if_none_match_writes_only_what_was_not_there(self, bucket: ObjectStore) -> None:
        require(self.supports_conditional_writes)
        key = unique()
        first = await bucket.put(key, b"first", if_none_match=True)
        with pytest.raises(PreconditionFailed) as caught:
            await bucket.put(key, b"second", if_none_match=True)
        assert caught.value.key == key
        body = await bucket.get(key)
        assert (body.content, body.etag) == (b"first", first.etag)
        await bucket.delete(key)
        await bucket.put(key, b"third", if_none_match=True)
        assert await whole(bucket, key) == b"third"

    async def test_if_match_replaces_only_that_version(self, bucket: ObjectStore) -> None:
        require(self.supports_conditional_writes)
        key = unique()
        first = await bucket.put(key, b"first")
        second = await bucket.put(key, b"second", if_match=first.etag)
        assert second.etag != first.etag
        with pytest.raises(PreconditionFailed) as caught:
            await bucket.put(key, b"third", if_match=first.etag)
        assert caught.value.key == key
        assert await whole(bucket, key) == b"second"

    async def test_if_match_fails_where_nothing_is(self, bucket: ObjectStore) -> None:
        require(self.supports_conditional_writes)
        key = unique()
        gone = await bucket.put(key, b"gone")
        await bucket.delete(key)
        with pytest.raises(PreconditionFailed):
            await bucket.put(key, b"back", if_match=gone.etag)
        assert await absent(bucket, key)

    async def test_one_of_many_creators_wins(self, bucket: ObjectStore) -> None:
        require(self.supports_conditional_writes)
        key = unique()
        bodies = [b"%d" % writer for writer in range(12)]
        results = await in_turns(outcome(bucket.put(key, body, if_none_match=True)) for body in bodies)
        [winner] = wins(results)
        body = await bucket.get(key)
        assert (body.content, body.etag) == (bodies[results.index(winner)], winner.etag)

    async def test_one_of_many_changers_wins(self, bucket: ObjectStore) -> None:
        require(self.supports_conditional_writes)
        key = unique()
        seen = await bucket.put(key, b"")
        bodies = [b"%d" % writer for writer in range(12)]
        results = await in_turns(outcome(bucket.put(key, body, if_match=seen.etag)) for body in bodies)
        [winner] = wins(results)
        body = await bucket.get(key)
        assert (body.content, body.etag) == (bodies[results.index(winner)], winner.etag)

    # -- atomicity and cancellation ------------------------------------------------------------------------------

    async def test_concurrent_puts_leave_one_whole_body(self, bucket: ObjectStore) -> None:
        key, size = unique(), MIB + 1
        await bucket.put(key, letters("a", size))
        whose: dict[str, bytes] = {}

        async def read() -> None:
            body = await bucket.get(key)
            assert len(body.content) == size
            assert len(set(body.content)) == 1, "a mixture of two bodies"
            if not isinstance(self.supports_etags_while_overwriting, Unsupported):
                assert whose.setdefault(body.etag, body.content) == body.content

        await in_turns(job for letter in "bcdefgh" for job in (bucket.put(key, letters(letter, size)), read(), read()))
        await read()
        headed, [found] = await bucket.head(key), await listed(bucket, key)
        assert headed.etag == found.etag == (await bucket.get(key)).etag

    async def test_a_cancelled_put_leaves_the_object_whole_or_absent(self, bucket: ObjectStore) -> None:
        content = numbered(2 * MIB)
        begun = time.perf_counter()
        await bucket.put(unique(), content)
        lasts = time.perf_counter() - begun
        for step in range(12):
            key = unique()
            await interrupted(bucket.put(key, content), lasts * step / 10)
            if not await absent(bucket, key):
                assert await whole(bucket, key) == content

    async def test_a_cancelled_put_leaves_the_old_object_or_the_new_one(self, bucket: ObjectStore) -> None:
        require(self.supports_cut_overwrites)
        key, old, new = unique(), letters("o", MIB), letters("n", 2 * MIB)
        begun = time.perf_counter()
        await bucket.put(key, new)
        lasts = time.perf_counter() - begun
        for step in range(12):
            await bucket.put(key, old)
            await interrupted(bucket.put(key, new), lasts * step / 10)
            assert await whole(bucket, key) in (old, new)
            assert len(await keys_of(bucket, key)) == 1

    # -- stream --------------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("size", [0, 1, MIB - 1, MIB, MIB + 1, 3 * MIB + 7])
    async def test_a_stream_gives_the_object_in_small_pieces(self, bucket: ObjectStore, size: int) -> None:
        key, content = unique(), numbered(size)
        etag = (await bucket.put(key, content)).etag
        for if_match in (None, etag):
            pieces = [piece async for piece in bucket.stream(key, if_match=if_match)]
            assert b"".join(pieces) == content
            assert max(map(len, pieces), default=0) <= MIB

    async def test_a_stream_is_pinned_to_its_version(self, bucket: ObjectStore) -> None:
        key = unique()
        old = (await bucket.put(key, b"old")).etag
        await bucket.put(key, b"new")
        with pytest.raises(PreconditionFailed):
            await drained(bucket.stream(key, if_match=old))

    @pytest.mark.parametrize("change", ["replaced", "replaced by one of its size", "deleted", "completed over"])
    async def test_a_stream_is_never_a_mixture(self, bucket: ObjectStore, change: str) -> None:
        key, content = unique(), letters("a", 5 * MIB + 1)
        await bucket.put(key, content)
        async with contextlib.aclosing(bucket.stream(key)) as pieces:
            read = await anext(pieces)
            match change:
                case "replaced":
                    await bucket.put(key, letters("b", 100))
                case "replaced by one of its size":
                    await bucket.put(key, letters("b", len(content)))
                case "deleted":
                    await bucket.delete(key)
                case "completed over":
                    upload_id, parts = await self.upload(bucket, key, [letters("b", self.part_size)])
                    await bucket.complete_upload(key, upload_id, parts)
            with contextlib.suppress(StorageError):
                read += await drained(pieces)
                assert read == content
        assert set(read) == {ord("a")}

    async def test_a_stream_may_be_left_half_way(self, bucket: ObjectStore) -> None:
        key, content = unique(), numbered(3 * MIB)
        await bucket.put(key, content)
        for _ in range(20):
            async with contextlib.aclosing(bucket.stream(key)) as pieces:
                assert content.startswith(await anext(pieces))
        assert await whole(bucket, key) == content

    # -- list ----------------------------------------------------------------------------------------------------

    async def test_an_empty_bucket_lists_nothing(self, bucket: ObjectStore) -> None:
        assert await keys_of(bucket) == []
        assert await keys_of(bucket, "nothing/begins/with/this") == []
        assert await keys_of(bucket, start_after="a") == []

    async def test_listings_filter_by_prefix_and_start_in_byte_order(self, bucket: ObjectStore) -> None:
        folder = unique("")
        names = [
            *("a!", "a-b", "a.b", "a/b", "a/b-c", "a/d/e", "a/d/f", "a/d0", "a0", "ab"),
            *("B", "_x/y", "é/ü", "\uff5e", "\U0001f600", "zz/1/2/3/4"),
        ]
        keys = sorted((folder + name for name in names), key=str.encode)
        await in_turns(bucket.put(key, b"") for key in random.Random(1).sample(keys, len(keys)))
        order = list if self.supports_byte_order else sorted
        prefixes = ["", "a", "a/", "a/d", "a/d/", "a/d/e", "a/d/e/", "a/b", "a0", "é", "z", "none", "none/x"]
        after = (
            [""]
            if not self.supports_byte_order
            else ["", "!", "a", "a/", "a/b", "a/b-", "a/d", "a/d/e", "a/d/zzz", "a0", "b", "\uff5e", "~"]
        )
        for prefix, start in itertools.product(prefixes, after):
            wanted = [
                key for key in keys if key.startswith(folder + prefix) and key.encode() > f"{folder}{start}".encode()
            ]
            found = await keys_of(bucket, folder + prefix, folder + start)
            assert order(found) == order(wanted), (prefix, start)
        if not self.supports_byte_order:
            require(self.supports_byte_order)

    async def test_start_after_may_lie_outside_the_prefix(self, bucket: ObjectStore) -> None:
        folder = unique("")
        await bucket.put(f"{folder}m/1", b"")
        assert await keys_of(bucket, f"{folder}m/", f"{folder}a") == [f"{folder}m/1"]
        assert await keys_of(bucket, f"{folder}m/", f"{folder}m") == [f"{folder}m/1"]
        assert await keys_of(bucket, f"{folder}m/", f"{folder}z") == []

    @pytest.mark.parametrize("prefix", ["/", "../", "./", "/etc/", "{folder}//", "{folder}/../", "{folder}/./"])
    async def test_a_prefix_that_begins_no_key_lists_nothing(self, bucket: ObjectStore, prefix: str) -> None:
        key = unique()
        await bucket.put(key, b"")
        assert await keys_of(bucket, prefix.format(folder=key.partition("/")[0])) == []

    async def test_a_listing_has_each_object_once_however_many_there_are(self, bucket: ObjectStore) -> None:
        folder = unique("")
        keys = [f"{folder}{number:05}" for number in range(self.many)]
        await in_turns(bucket.put(key, b"x") for key in keys)
        assert await keys_of(bucket, folder) == keys
        assert await keys_of(bucket, folder, keys[17]) == keys[18:]
        assert await keys_of(bucket, folder[:-1], f"{keys[-2]}!") == keys[-1:]

        others = iter(range(self.many, 2 * self.many))
        seen: list[str] = []
        gone = set()
        async for page in bucket.list(folder):
            seen += [found.key for found in page]
            gone |= {keys[10], keys[-10]}
            await bucket.delete_many([keys[10], keys[-10]])
            await bucket.put(keys[20], b"another")
            await bucket.put(keys[-20], b"another")
            await bucket.put(f"{folder}{next(others):05}", b"new")
        stable = [key for key in keys if key not in gone]
        assert [key for key in seen if key in set(stable)] == stable

        await bucket.delete_many(iter(await keys_of(bucket, folder)))
        assert await keys_of(bucket, folder) == []

    # -- delete --------------------------------------------------------------------------------------------------

    async def test_delete_removes_an_object_and_may_be_repeated(self, bucket: ObjectStore) -> None:
        key, other = unique(), unique()
        await bucket.put(key, b"x")
        await bucket.put(other, b"y")
        for _ in range(2):
            await bucket.delete(key)
            assert await absent(bucket, key)
        await bucket.delete(unique("never/was/there"))
        assert await whole(bucket, other) == b"y"

    async def test_delete_many_removes_those_that_are_there(self, bucket: ObjectStore) -> None:
        folder = unique("")
        await in_turns(bucket.put(f"{folder}{name}", b"") for name in ("a", "b/c", "b/d", "e & <f>", "keep"))
        await bucket.delete_many(f"{folder}{name}" for name in ("a", "none", "b/c", "b/d", "e & <f>", "b/none"))
        assert await keys_of(bucket, folder) == [f"{folder}keep"]

    async def test_delete_many_of_nothing_does_nothing(self, bucket: ObjectStore) -> None:
        key = unique()
        await bucket.put(key, b"")
        await bucket.delete_many([])
        assert await keys_of(bucket, key) == [key]

    # -- multipart uploads ---------------------------------------------------------------------------------------

    async def test_an_upload_becomes_the_object_of_its_parts(self, bucket: ObjectStore) -> None:
        key = unique()
        bodies = [numbered(self.part_size, 1), numbered(self.part_size, 2), b"last"]
        upload_id, parts = await self.upload(bucket, key, bodies)
        assert [(part.number, part.size) for part in parts] == [(1, self.part_size), (2, self.part_size), (3, 4)]
        completed = await bucket.complete_upload(key, upload_id, parts)
        headed = await bucket.head(key)
        assert (completed.key, completed.size) == (key, sum(map(len, bodies)))
        assert headed.size == completed.size
        body = await bucket.get(key)
        assert (body.content, body.etag) == (b"".join(bodies), headed.etag)
        assert headed.etag == completed.etag or not self.supports_completed_etags
        start = self.part_size - 1
        assert (await bucket.get(key, start=start, size=2)).content == bodies[0][-1:] + bodies[1][:1]

    async def test_a_part_may_come_in_chunks(self, bucket: ObjectStore) -> None:
        key = unique()
        upload_id = await bucket.create_upload(key)
        part = await bucket.upload_part(key, upload_id, 1, [b"ab", b"", b"c", numbered(70_000), b"z"])
        assert part.size == 70_004
        await bucket.complete_upload(key, upload_id, [part])
        assert await whole(bucket, key) == b"abc" + numbered(70_000) + b"z"

    @pytest.mark.parametrize("last", [3, 7])
    async def test_parts_may_be_sent_and_named_in_any_order(self, bucket: ObjectStore, last: int) -> None:
        if last > 3:
            require(self.supports_part_gaps)
        key = unique()
        bodies = {1: numbered(self.part_size, 1), 2: numbered(self.part_size, 2), last: b"last"}
        upload_id = await bucket.create_upload(key)
        parts = [await bucket.upload_part(key, upload_id, number, [bodies[number]]) for number in (last, 2, 1)]
        await bucket.complete_upload(key, upload_id, [parts[1], parts[0], parts[2]])
        assert await whole(bucket, key) == b"".join(bodies.values())

    async def test_parts_may_be_sent_at_the_same_time(self, bucket: ObjectStore) -> None:
        key = unique()
        bodies = [*(numbered(self.part_size, seed) for seed in range(5)), b"last"]
        upload_id = await bucket.create_upload(key)
        numbers = random.Random(3).sample(range(6), 6)
        parts = await in_turns(bucket.upload_part(key, upload_id, number + 1, [bodies[number]]) for number in numbers)
        await bucket.complete_upload(key, upload_id, parts)
        assert await whole(bucket, key) == b"".join(bodies)

    async def test_uploads_of_one_key_do_not_mix(self, bucket: ObjectStore) -> None:
        key = unique()
        first, second = await bucket.create_upload(key), await bucket.create_upload(key)
        assert first != second
        a = await bucket.upload_part(key, first, 1, [b"from the first"])
        b = await bucket.upload_part(key, second, 1, [b"from the second"])
        await bucket.complete_upload(key, second, [b])
        assert await whole(bucket, key) == b"from the second"
        await bucket.complete_upload(key, first, [a])
        assert await whole(bucket, key) == b"from the first"

    async def test_a_part_sent_again_replaces_the_one_before(self, bucket: ObjectStore) -> None:
        require(self.supports_part_replacement)
        key = unique()
        upload_id = await bucket.create_upload(key)
        await bucket.upload_part(key, upload_id, 1, [letters("x", self.part_size)])
        last = await bucket.upload_part(key, upload_id, 2, [b"last"])
        first = await bucket.upload_part(key, upload_id, 1, [letters("y", self.part_size)])
        completed = await bucket.complete_upload(key, upload_id, [first, last])
        assert completed.size == self.part_size + 4
        assert await whole(bucket, key) == letters("y", self.part_size) + b"last"

    async def test_a_part_sent_again_may_have_another_size(self, bucket: ObjectStore) -> None:
        require(self.supports_part_replacement)
        key = unique()
        upload_id = await bucket.create_upload(key)
        await bucket.upload_part(key, upload_id, 1, [letters("x", 5000)])
        part = await bucket.upload_part(key, upload_id, 1, [b"short"])
        await bucket.complete_upload(key, upload_id, [part])
        assert await whole(bucket, key) == b"short"

    async def test_parts_that_are_not_named_are_dropped(self, bucket: ObjectStore) -> None:
        require(self.supports_part_gaps)
        key = unique()
        bodies = [letters(letter, self.part_size) for letter in "abcd"]
        upload_id, parts = await self.upload(bucket, key, bodies)
        completed = await bucket.complete_upload(key, upload_id, [parts[0], parts[2]])
        assert completed.size == 2 * self.part_size
        assert await whole(bucket, key) == bodies[0] + bodies[2]

    async def test_an_upload_with_an_unknown_part_makes_no_object(self, bucket: ObjectStore) -> None:
        key = unique()
        upload_id, [part] = await self.upload(bucket, key, [letters("a", self.part_size)])
        other_id, [_, other] = await self.upload(bucket, key, [letters("b", self.part_size), b"other"])
        for unknown in (other, Part(2, '"0123456789abcdef0123456789abcdef"', 5)):
            with pytest.raises(StorageError):
                await bucket.complete_upload(key, upload_id, [part, unknown])
            assert await absent(bucket, key)
        await in_turns(bucket.abort_upload(key, each) for each in (upload_id, other_id))

    async def test_a_part_of_another_upload_is_unknown(self, bucket: ObjectStore) -> None:
        key = unique()
        upload_id, _ = await self.upload(bucket, key, [b"mine "])
        other_id, others = await self.upload(bucket, key, [b"yours"])
        with pytest.raises(StorageError):
            await bucket.complete_upload(key, upload_id, others)
        assert await absent(bucket, key)
        await in_turns(bucket.abort_upload(key, each) for each in (upload_id, other_id))

    async def test_nothing_is_visible_before_an_upload_is_complete(self, bucket: ObjectStore) -> None:
        key = unique()
        upload_id, parts = await self.upload(bucket, key, [letters("a", self.part_size), b"last"])
        assert await absent(bucket, key)
        await bucket.complete_upload(key, upload_id, parts)
        assert not await absent(bucket, key)

    async def test_an_upload_replaces_what_was_there_once_complete(self, bucket: ObjectStore) -> None:
        key = unique()
        old = await bucket.put(key, b"old")
        upload_id, parts = await self.upload(bucket, key, [b"new one"])
        assert (await bucket.get(key, if_match=old.etag)).content == b"old"
        new = await bucket.complete_upload(key, upload_id, parts)
        assert new.etag != old.etag
        assert await whole(bucket, key) == b"new one"
        assert [(found.key, found.size) for found in await listed(bucket, key)] == [(key, 7)]

    @pytest.mark.parametrize("end", ["aborted", "completed"])
    async def test_an_upload_that_has_ended_takes_no_part(self, bucket: ObjectStore, end: str) -> None:
        key = unique()
        upload_id, parts = await self.upload(bucket, key, [b"part"])
        if end == "aborted":
            await bucket.abort_upload(key, upload_id)
        else:
            await bucket.complete_upload(key, upload_id, parts)
        with pytest.raises(StorageError):
            await bucket.upload_part(key, upload_id, 2, [b"late"])
        assert await absent(bucket, key) == (end == "aborted")

    async def test_an_aborted_upload_cannot_be_completed(self, bucket: ObjectStore) -> None:
        key = unique()
        await bucket.put(key, b"old")
        upload_id, parts = await self.upload(bucket, key, [b"part"])
        await bucket.abort_upload(key, upload_id)
        with pytest.raises(StorageError):
            await bucket.complete_upload(key, upload_id, parts)
        assert await whole(bucket, key) == b"old"

    async def test_aborting_may_be_repeated_and_touches_no_object(self, bucket: ObjectStore) -> None:
        key = unique()
        upload_id, parts = await self.upload(bucket, key, [b"part"])
        await bucket.complete_upload(key, upload_id, parts)
        await bucket.abort_upload(key, upload_id)
        second, _ = await self.upload(bucket, key, [b"another"])
        for _ in range(2):
            await bucket.abort_upload(key, second)
        assert await whole(bucket, key) == b"part"

    async def test_uploads_are_listed_until_they_end(self, bucket: ObjectStore) -> None:
        require(self.supports_list_uploads)
        key, other = unique("a & b"), unique()
        begun, parts = await self.upload(bucket, key, [b"part"])
        second, foreign = await bucket.create_upload(key), await bucket.create_upload(other)
        found = await uploads_of(bucket, key)
        assert {upload.upload_id for upload in found} == {begun, second}
        if self.supports_upload_times:
            assert all(abs(upload.started - time.time()) < 3600 for upload in found), "in seconds since 1970"
        await bucket.complete_upload(key, begun, parts)
        assert [upload.upload_id for upload in await uploads_of(bucket, key)] == [second]
        await bucket.abort_upload(key, second)
        assert await uploads_of(bucket, key) == []
        assert [upload.upload_id for upload in await uploads_of(bucket, other)] == [foreign]
        await bucket.abort_upload(other, foreign)
        require(self.supports_upload_times)

    async def test_an_upload_found_in_a_listing_can_be_aborted(self, bucket: ObjectStore) -> None:
        require(self.supports_list_uploads)
        key = unique()
        await self.upload(bucket, key, [b"part"])
        [found] = await uploads_of(bucket, key)
        await bucket.abort_upload(found.key, found.upload_id)
        assert await uploads_of(bucket, key) == []

    async def test_a_cancelled_completion_leaves_the_object_whole_or_absent(self, bucket: ObjectStore) -> None:
        bodies = [numbered(self.part_size), b"last"]
        lasts = 0.0
        for step in range(8):
            key = unique()
            upload_id, parts = await self.upload(bucket, key, bodies)
            begun = time.perf_counter()
            if step == 0:
                await bucket.complete_upload(key, upload_id, parts)
                lasts = time.perf_counter() - begun
            else:
                await interrupted(bucket.complete_upload(key, upload_id, parts), lasts * step / 6)
                await bucket.abort_upload(key, upload_id)
            if not await absent(bucket, key):
                assert await whole(bucket, key) == b"".join(bodies)

    @pytest.mark.parametrize("cancelled", ["the same", "another"])
    async def test_a_cancelled_part_may_be_sent_again(self, bucket: ObjectStore, cancelled: str) -> None:
        if cancelled == "another":
            require(self.supports_part_replacement)
        key, content = unique(), numbered(self.part_size)
        body = content if cancelled == "the same" else letters("x", self.part_size)
        upload_id = await bucket.create_upload(key)
        begun = time.perf_counter()
        await bucket.upload_part(key, upload_id, 1, [content])
        lasts = time.perf_counter() - begun
        for step in range(6):
            await interrupted(bucket.upload_part(key, upload_id, 1, [body]), lasts * step / 5)
        part = await bucket.upload_part(key, upload_id, 1, [content])
        await bucket.complete_upload(key, upload_id, [part])
        assert await whole(bucket, key) == content

    # -- copied parts --------------------------------------------------------------------------------------------

    async def test_a_part_may_be_copied_from_another_object(self, bucket: ObjectStore) -> None:
        require(self.supports_copy)
        source, key, content = unique("a source & more"), unique(), numbered(2 * self.part_size + 9)
        etag = (await bucket.put(source, content)).etag
        upload_id = await bucket.create_upload(key)
        first = await bucket.copy_part(key, upload_id, 1, source, 3, self.part_size, if_match=etag)
        rest = self.part_size + 6
        second = await bucket.copy_part(key, upload_id, 2, source, self.part_size + 3, rest, if_match=etag)
        third = await bucket.upload_part(key, upload_id, 3, [b"sent"])
        assert [(part.number, part.size) for part in (first, second)] == [(1, self.part_size), (2, rest)]
        completed = await bucket.complete_upload(key, upload_id, [first, second, third])
        assert completed.size == len(content) - 3 + 4
        assert await whole(bucket, key) == content[3:] + b"sent"
        assert await whole(bucket, source) == content

    async def test_copied_parts_may_come_in_any_order(self, bucket: ObjectStore) -> None:
        require(self.supports_copy)
        source, key, content = unique(), unique(), numbered(2 * self.part_size)
        etag = (await bucket.put(source, content)).etag
        upload_id = await bucket.create_upload(key)
        last = await bucket.upload_part(key, upload_id, 3, [b"last"])
        second, first = await in_turns(
            bucket.copy_part(key, upload_id, number, source, start, self.part_size, if_match=etag)
            for number, start in [(2, 0), (1, self.part_size)]
        )
        await bucket.complete_upload(key, upload_id, [last, second, first])
        assert await whole(bucket, key) == content[self.part_size :] + content[: self.part_size] + b"last"

    async def test_a_copied_part_replaces_a_sent_one(self, bucket: ObjectStore) -> None:
        require(self.supports_copy)
        source, key, content = unique(), unique(), numbered(self.part_size)
        etag = (await bucket.put(source, content)).etag
        upload_id, _ = await self.upload(bucket, key, [b"sent"])
        part = await bucket.copy_part(key, upload_id, 1, source, 0, self.part_size, if_match=etag)
        await bucket.complete_upload(key, upload_id, [part])
        assert await whole(bucket, key) == content

    async def test_an_object_may_be_extended_by_copying_it(self, bucket: ObjectStore) -> None:
        require(self.supports_copy)
        key, content = unique(), numbered(self.part_size)
        etag = (await bucket.put(key, content)).etag
        upload_id = await bucket.create_upload(key)
        parts = [
            await bucket.copy_part(key, upload_id, 1, key, 0, self.part_size, if_match=etag),
            await bucket.upload_part(key, upload_id, 2, [b"more"]),
        ]
        await bucket.complete_upload(key, upload_id, parts)
        assert await whole(bucket, key) == content + b"more"

    async def test_a_copied_part_is_pinned_to_its_version(self, bucket: ObjectStore) -> None:
        require(self.supports_copy)
        require(self.supports_copy_conditions)
        source, key = unique(), unique()
        old = (await bucket.put(source, letters("a", self.part_size))).etag
        await bucket.put(source, letters("b", self.part_size))
        upload_id = await bucket.create_upload(key)
        with pytest.raises(PreconditionFailed) as caught:
            await bucket.copy_part(key, upload_id, 1, source, 0, self.part_size, if_match=old)
        assert caught.value.key == source
        await bucket.abort_upload(key, upload_id)

    async def test_a_range_outside_the_source_is_not_copied(self, bucket: ObjectStore) -> None:
        require(self.supports_copy)
        require(self.supports_copy_range_checks)
        source, key = unique(), unique()
        etag = (await bucket.put(source, numbered(self.part_size))).etag
        upload_id = await bucket.create_upload(key)
        for start, size in [(0, self.part_size + 1), (self.part_size - 1, 2), (self.part_size, 1), (1 << 40, 5)]:
            with pytest.raises(StorageError):
                await bucket.copy_part(key, upload_id, 1, source, start, size, if_match=etag)
        await bucket.abort_upload(key, upload_id)

    async def test_a_source_that_is_not_there_is_not_found(self, bucket: ObjectStore) -> None:
        require(self.supports_copy)
        source, key = unique(), unique()
        etag = (await bucket.put(source, numbered(self.part_size))).etag
        await bucket.delete(source)
        upload_id = await bucket.create_upload(key)
        with pytest.raises(ObjectNotFound) as caught:
            await bucket.copy_part(key, upload_id, 1, source, 0, self.part_size, if_match=etag)
        assert caught.value.key == source
        await bucket.abort_upload(key, upload_id)

    async def test_nothing_is_copied_into_an_upload_that_has_ended(self, bucket: ObjectStore) -> None:
        require(self.supports_copy)
        source, key = unique(), unique()
        etag = (await bucket.put(source, numbered(self.part_size))).etag
        upload_id = await bucket.create_upload(key)
        await bucket.abort_upload(key, upload_id)
        with pytest.raises(StorageError):
            await bucket.copy_part(key, upload_id, 1, source, 0, self.part_size, if_match=etag)
        assert await absent(bucket, key)

    async def test_a_store_that_cannot_copy_says_so(self, bucket: ObjectStore) -> None:
        if self.supports_copy:
            pytest.skip("this store copies")
        source, key = unique(), unique()
        etag = (await bucket.put(source, numbered(self.part_size))).etag
        upload_id = await bucket.create_upload(key)
        with pytest.raises(StorageError):
            await bucket.copy_part(key, upload_id, 1, source, 0, self.part_size, if_match=etag)
        await bucket.abort_upload(key, upload_id)

    # -- keys that cannot be -------------------------------------------------------------------------------------

    @pytest.mark.parametrize("key", INVALID_KEYS, ids=lambda key: ascii(key)[:20])
    async def test_an_invalid_key_is_refused_before_anything_is_sent(self, bucket: ObjectStore, key: str) -> None:
        attempts: dict[str, Callable[[], Awaitable[object]]] = {
            "put": lambda: bucket.put(key, b"x"),
            "get": lambda: bucket.get(key),
            "stream": lambda: drained(bucket.stream(key)),
            "head": lambda: bucket.head(key),
            "delete": lambda: bucket.delete(key),
            "delete_many": lambda: bucket.delete_many([key]),
            "create_upload": lambda: bucket.create_upload(key),
            "download_url": lambda: bucket.download_url(key, expires=timedelta(hours=1), filename="x"),
        }
        await self.refuse(bucket, attempts)

    @pytest.mark.parametrize("key", ["", "/absolute", "../above", "line\nbreak"], ids=ascii)
    async def test_an_invalid_key_is_refused_by_uploads_too(self, bucket: ObjectStore, key: str) -> None:
        good = unique()
        etag = (await bucket.put(good, b"source")).etag
        upload_id, parts = await self.upload(bucket, good, [b"part"])
        attempts: dict[str, Callable[[], Awaitable[object]]] = {
            "upload_part": lambda: bucket.upload_part(key, upload_id, 1, [b"x"]),
            "copy_part to": lambda: bucket.copy_part(key, upload_id, 1, good, 0, 6, if_match=etag),
            "copy_part from": lambda: bucket.copy_part(good, upload_id, 1, key, 0, 6, if_match=etag),
            "complete_upload": lambda: bucket.complete_upload(key, upload_id, parts),
            "abort_upload": lambda: bucket.abort_upload(key, upload_id),
        }
        await self.refuse(bucket, attempts)
        await bucket.complete_upload(good, upload_id, parts)
        assert await keys_of(bucket) == [good]

    @staticmethod
    async def refuse(bucket: ObjectStore, attempts: dict[str, Callable[[], Awaitable[object]]]) -> None:
        allowed = []
        for name, attempt in attempts.items():
            try:
                await attempt()
            except InvalidInput:
                continue
            except Exception as error:
                allowed.append(f"{name}: {error!r}")
            else:
                allowed.append(name)
        assert allowed == []

    # -- the store itself ----------------------------------------------------------------------------------------

    async def test_a_link_fetches_the_object(self, bucket: ObjectStore) -> None:
        key, content = unique("a & b.tar.zst"), numbered(1000)
        await bucket.put(key, content)
        url = await bucket.download_url(key, expires=timedelta(minutes=5), filename="blog.tar.zst")

        def fetch() -> tuple[bytes, str]:
            with urllib.request.urlopen(url, timeout=30) as response:
                return response.read(), response.headers.get("Content-Disposition", "")

        body, disposition = await asyncio.to_thread(fetch)
        assert body == content
        if url.startswith("http"):
            assert "blog.tar.zst" in disposition

    async def test_the_url_holds_no_credentials(self, bucket: ObjectStore) -> None:
        assert "://" in bucket.url
        assert "@" not in bucket.url

    async def test_hundreds_of_tasks_may_use_it_at_once(self, bucket: ObjectStore) -> None:
        async def use(number: int) -> None:
            key, content = unique(), b"%d" % number
            await bucket.put(key, content)
            assert (await bucket.get(key)).content == content
            assert await keys_of(bucket, key) == [key]
            await bucket.delete(key)

        await in_turns((use(number) for number in range(200)), at_once=200)
        assert await keys_of(bucket) == []
