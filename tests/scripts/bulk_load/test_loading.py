"""How a bulk load is spread over machines."""

from collections.abc import Sequence

import pytest

from backend.errors import ConfigurationError
from scripts.bulk_load.loading import plan_actors

GIB = 2**30


def _nodes(*sizes: tuple[float, float]) -> list[dict[str, float]]:
    """Machines with so many cores, and so many GiB of memory."""
    return [{"CPU": cores, "memory": gib * GIB} for cores, gib in sizes]


@pytest.mark.parametrize(
    ("nodes", "plan"),
    [
        (_nodes((2, 16)), (1, 2)),
        (_nodes((8, 16), (8, 16), (8, 16)), (3, 8)),
        (_nodes((4, 64), (16, 64)), (5, 4)),
        (_nodes((4, 64), (16, 9)), (3, 4)),  # memory for two
        (_nodes((2, 3.9), (8, 64)), (1, 8)),  # not for one
        ([{"memory": 64.0 * GIB}, *_nodes((8, 64))], (1, 8)),  # a head that works on nothing
        (_nodes((2.5, 64), (5, 64)), (3, 2)),
        (_nodes((8, 4)), (1, 8)),  # exactly
    ],
)
def test_machines_have_an_actor_each_as_far_as_memory_goes(
    nodes: Sequence[dict[str, float]], plan: tuple[int, int]
) -> None:
    assert plan_actors(nodes, 4 * GIB) == plan


def test_actors_that_have_no_use_for_all_cores_share_a_machine() -> None:
    nodes = _nodes((16, 64), (8, 64), (8, 9))
    assert plan_actors(nodes, 4 * GIB, 2) == (8 + 4 + 2, 2)
    assert plan_actors(_nodes((1, 8)), 4 * GIB, 2) == (1, 1)


@pytest.mark.parametrize("nodes", [[], _nodes((0.5, 64)), _nodes((8, 3.9)), [{"CPU": 8.0}]])
def test_models_that_fit_nowhere_are_told(nodes: Sequence[dict[str, float]]) -> None:
    with pytest.raises(ConfigurationError, match="needs 4096 MiB of memory and a core, and no"):
        plan_actors(nodes, 4 * GIB)
