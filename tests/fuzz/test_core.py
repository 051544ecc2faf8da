"""The short form of ``make fuzz``: hostile files for the native core, as it is installed."""

from __future__ import annotations

import pytest

from fixtures import effort, fuzzing

pytestmark = pytest.mark.fuzz


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_hostile_files(seed: int) -> None:
    fuzzer = fuzzing.Fuzzer(seed)
    try:
        report = fuzzer.run(effort.times(4000))
    finally:
        fuzzer.close()
    print(*report.lines(), sep="\n")
    # Each way through the core was taken, and what lies behind the checksums was reached.
    for outcome in (
        "decoded",
        "applied",
        "merged 1",
        "merged 2",
        "scanned",
        "LTXChecksumError",
        "LTXError",
    ):
        assert report.outcomes[outcome], outcome


def test_the_corpus_is_good_and_of_every_kind() -> None:
    files = fuzzing.corpus()
    assert len(files) > 20
    for data in files:
        assert fuzzing._decode(data) == "decoded"


def test_a_rule_that_is_broken_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(data: bytes) -> str:
        raise RuntimeError("broken")

    monkeypatch.setattr(fuzzing, "_decode", wrong)
    fuzzer = fuzzing.Fuzzer(1)
    try:
        with pytest.raises(RuntimeError) as caught:
            fuzzer.run(100)
    finally:
        fuzzer.close()
    assert "of seed 1" in caught.value.__notes__[0]
