"""Commands in the guest: bytes, statuses, signals, many at once."""

from __future__ import annotations

import hashlib
import random
from concurrent.futures import ThreadPoolExecutor

from harness import Guest

EVERY_BYTE = bytes(range(256))


def test_all_bytes_pass_both_ways(guest: Guest) -> None:
    sent = EVERY_BYTE * 400

    done = guest.run("sh", "-c", "tee /dev/stderr", stdin=sent)

    assert (done.status, done.stdout, done.stderr) == (0, sent, sent)


def test_arguments_arrive_as_they_are(guest: Guest) -> None:
    words = ["a b", "", "it's", "$HOME", "two\nlines", "\\0", "%s", "*", "ü", "\udcff\udc80"]

    done = guest.run("sh", "-c", 'for w; do printf "%s\\0" "$w"; done', "sh", *words)

    assert done.stdout.split(b"\0")[:-1] == [w.encode("utf-8", "surrogateescape") for w in words]


def test_status_and_signals(guest: Guest) -> None:
    assert guest.run("sh", "-c", "exit 42").status == 42
    assert guest.run("sh", "-c", "kill -9 $$").status == 128 + 9
    assert guest.run("/no/such/command").status == 127


def test_concurrent_commands_do_not_mix(guest: Guest) -> None:
    chooser = random.Random(7)
    inputs = [chooser.randbytes(50_000) for _ in range(8)]

    with ThreadPoolExecutor(len(inputs)) as pool:
        jobs = [pool.submit(digest_in_guest, guest, data, n) for n, data in enumerate(inputs)]
        results = [job.result() for job in jobs]

    expected = [(n, f"{hashlib.md5(data).hexdigest()}  -") for n, data in enumerate(inputs)]
    assert results == expected


def digest_in_guest(guest: Guest, data: bytes, number: int) -> tuple[int, str]:
    done = guest.run("sh", "-c", f"md5sum; exit {number}", stdin=data)
    return done.status, done.stdout.decode().strip()


def test_large_output_is_complete(guest: Guest) -> None:
    done = guest.run("sh", "-c", "seq 1 40000")

    assert done.stdout == b"".join(b"%d\n" % n for n in range(1, 40001))
