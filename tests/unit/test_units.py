"""Durations and sizes, read and written."""

from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyrep.units import (
    format_duration,
    format_size,
    from_ns,
    parse_duration,
    parse_size,
    round_size,
)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0),
        ("-0", 0),
        ("300ms", 0.3),
        ("1.5h", 5400),
        ("2h45m", 9900),
        ("1h15m30.918s", 4530.918),
        (".5s", 0.5),
        ("5.s", 5),
        ("+5s", 5),
        ("-1.5m", -90),
        ("1us", 1e-6),
        ("1µs", 1e-6),
        ("1μs", 1e-6),
        ("2000ns", 2e-6),
        ("168h", 604800),
        ("1m1m", 120),
    ],
)
def test_go_durations_are_read(text: str, seconds: float) -> None:
    assert parse_duration(text) == timedelta(seconds=seconds)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "invalid duration ''"),
        ("abc", "invalid duration"),
        ("-", "invalid duration"),
        (".s", "invalid duration"),
        ("1s ", "unknown unit 's '"),
        (" 1s", "invalid duration"),
        ("30", "missing unit"),
        ("1.5", "missing unit"),
        ("1h30", "missing unit"),
        ("1.2.3s", "missing unit"),
        ("7d", "7d is 168h"),
        ("5S", "unknown unit 'S'"),
        ("1e3s", "unknown unit 'e'"),
        ("٣s", "invalid duration"),
        ("3000000h", "longer than 292 years"),
    ],
)
def test_other_durations_are_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_duration(text)


def test_a_tiny_duration_does_not_become_zero() -> None:
    assert parse_duration("1ns") == timedelta(microseconds=1)
    assert from_ns(-1) == timedelta(microseconds=-1)
    assert from_ns(1999) == timedelta(microseconds=1)
    assert from_ns(0) == timedelta()


@pytest.mark.parametrize(
    ("duration", "text"),
    [
        (timedelta(), "0s"),
        (timedelta(hours=24), "24h"),
        (timedelta(minutes=90), "1h30m"),
        (timedelta(seconds=1.5), "1.5s"),
        (timedelta(seconds=3601), "1h1s"),
        (timedelta(milliseconds=500), "500ms"),
        (timedelta(microseconds=1500), "1.5ms"),
        (timedelta(microseconds=7), "7us"),
        (timedelta(seconds=-20), "-20s"),
    ],
)
def test_durations_are_written_short(duration: timedelta, text: str) -> None:
    assert format_duration(duration) == text


@given(st.timedeltas(timedelta(days=-100_000), timedelta(days=100_000)))
def test_a_written_duration_reads_back(duration: timedelta) -> None:
    assert parse_duration(format_duration(duration)) == duration


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("42", 42),
        ("42B", 42),
        ("1k", 1000),
        ("1KB", 1000),
        ("1KiB", 1024),
        ("1ki", 1024),
        ("5MiB", 5 << 20),
        ("5 mb", 5_000_000),
        (" 1.5 GiB ", 3 << 29),
        ("1,000", 1000),
        ("2TB", 2 * 10**12),
        ("1PiB", 1 << 50),
        ("1E", 10**18),
        ("1.9B", 1),
        ("9223372036854775807", (1 << 63) - 1),
    ],
)
def test_sizes_are_read(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty size string"),
        ("  ", "empty size string"),
        ("MB", "invalid size format"),
        ("5XB", "invalid size format"),
        ("-5MB", "invalid size format"),
        ("1.2.3MB", "invalid size format"),
        (".", "invalid size format"),
        (",", "invalid size format"),
        ("5MB more", "invalid size format"),
        (
            "9223372036854775808",
            r"size 9223372036854775808 exceeds maximum allowed value \(9223372036854775807\)",
        ),
        ("8EiB", "exceeds maximum allowed value"),
    ],
)
def test_other_sizes_are_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_size(text)


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0B"),
        (1, "1B"),
        (4097, "4097B"),
        (1000, "1kB"),
        (5_000_000, "5MB"),
        (1 << 30, "1GiB"),
        (64 << 20, "64MiB"),
        (1 << 60, "1EiB"),
    ],
)
def test_sizes_are_written_exactly(size: int, text: str) -> None:
    assert format_size(size) == text


@given(st.integers(0, (1 << 63) - 1))
def test_a_written_size_reads_back(size: int) -> None:
    assert parse_size(format_size(size)) == size


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0B"),
        (1023, "1023B"),
        (1024, "1KiB"),
        (4_404_019, "4.2MiB"),
        ((1 << 20) - 1, "1MiB"),
        (1 << 40, "1TiB"),
    ],
)
def test_sizes_are_rounded_for_people(size: int, text: str) -> None:
    assert round_size(size) == text
