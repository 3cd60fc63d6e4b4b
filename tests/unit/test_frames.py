"""Frames survive any cutting of the stream; nonsense is refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minivmm.frames import HEADER, MAX_PAYLOAD, Decoder, Frame, FrameError, Kind

frames = st.builds(
    Frame, st.integers(0, 2**32 - 1), st.sampled_from(list(Kind)), st.binary(max_size=300)
)


@given(st.lists(frames, max_size=8), st.integers(1, 50))
def test_any_cutting_gives_the_frames_back(sent: list[Frame], step: int) -> None:
    stream = b"".join(frame.encode() for frame in sent)
    decoder = Decoder()

    got = [f for at in range(0, len(stream), step) for f in decoder.feed(stream[at : at + step])]

    assert got == sent


@pytest.mark.parametrize("header", [(1, 200, 0), (1, Kind.STDIN, MAX_PAYLOAD + 1)])
def test_bad_headers_are_refused(header: tuple[int, int, int]) -> None:
    with pytest.raises(FrameError):
        Decoder().feed(HEADER.pack(*header))
