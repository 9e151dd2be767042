"""Frames from the other side of a wall: bounded before they are read, and refused when they are none."""

import socket
import struct
import threading
import time
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unmask.sandbox.channel import Channel, Garbled, wait
from unmask.sandbox.inside import wire


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    yield ours, theirs
    ours.close()
    theirs.close()


@given(st.lists(st.tuples(st.binary(min_size=1, max_size=1), st.binary(max_size=50)), max_size=8), st.integers(1, 40))
@settings(deadline=None)
def test_frames_arrive_whole_however_they_are_cut(frames: list[tuple[bytes, bytes]], piece: int) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        channel = Channel(ours, limit=10_000)
        data = b"".join(wire.frame(kind, payload) for kind, payload in frames)
        found = []
        for at in range(0, len(data), piece):
            theirs.sendall(data[at : at + piece])
            while (frame := channel.take()) is not None:
                found.append(frame)
        theirs.close()
        while (frame := channel.take()) != (b"", b""):
            if frame is not None:
                found.append(frame)
        assert found == frames


def test_a_frame_larger_than_the_limit_is_refused_by_its_header(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    channel = Channel(ours, limit=1000)
    theirs.sendall(struct.pack("<cQ", b"R", 1 << 60))
    with pytest.raises(Garbled, match="more than 1000 bytes"):
        channel.take()


def test_the_limit_is_for_all_frames_together(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    channel = Channel(ours, limit=1000)
    theirs.sendall(wire.frame(b"R", bytes(600)))
    assert channel.take() == (b"R", bytes(600))
    theirs.sendall(wire.frame(b"R", bytes(600)))
    with pytest.raises(Garbled):
        channel.take()


def test_nothing_is_none_and_the_end_is_empty(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    channel = Channel(ours, limit=1000)
    assert channel.take() is None
    theirs.sendall(wire.frame(b"R", b"a") + b"half")
    theirs.close()
    assert channel.take() == (b"R", b"a")
    assert channel.take() in (None, (b"", b""))
    assert channel.take() == (b"", b"")
    assert channel.take() == (b"", b"")


def test_waiting_ends_with_the_first_byte_and_with_the_time(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    channel = Channel(ours, limit=1000)
    started = time.monotonic()
    wait([channel], 0.05)
    assert 0.04 < time.monotonic() - started < 5
    timer = threading.Timer(0.05, lambda: theirs.sendall(b"x"))
    timer.start()
    started = time.monotonic()
    wait([channel], 20)
    assert time.monotonic() - started < 10
    timer.join()


def test_sending_to_one_who_does_not_read_ends(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, _ = pair
    channel = Channel(ours, limit=1000)
    with pytest.raises(OSError):
        channel.send(b"J", bytes(1 << 24), seconds=0.05)


def test_a_blocking_reader_refuses_before_it_allocates(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    theirs.sendall(struct.pack("<cQ", b"R", 1 << 60))
    with pytest.raises(wire.FrameError, match="a frame of 1152921504606846976 bytes where 100 are allowed"):
        wire.receive(ours, limit=100)


@pytest.mark.parametrize("data", [b"R", struct.pack("<cQ", b"R", 5), struct.pack("<cQ", b"R", 5) + b"abc"])
def test_a_blocking_reader_refuses_what_is_cut_off(pair: tuple[socket.socket, socket.socket], data: bytes) -> None:
    ours, theirs = pair
    theirs.sendall(data)
    theirs.close()
    with pytest.raises(wire.FrameError, match="in the middle of a frame"):
        wire.receive(ours)


def test_a_blocking_reader_tells_the_end(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    wire.send(theirs, b"R", b"abc")
    theirs.close()
    assert wire.receive(ours) == (b"R", b"abc")
    assert wire.receive(ours) == (b"", b"")
