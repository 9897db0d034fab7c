"""kill -9 at random moments of a load."""

from pathlib import Path

from tests.crashes import crash_rounds


def test_nothing_is_lost_or_doubled_by_kills_in_the_middle_of_a_load(tmp_path: Path) -> None:
    indexed_at_death = crash_rounds(tmp_path, rounds=4, seed=20)
    assert min(indexed_at_death) < 60, "no kill came before the load's end"
