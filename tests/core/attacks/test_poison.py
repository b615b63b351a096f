"""Attackers who change their own examples: by hand, alike in every engine, and nobody else's."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import fedcl
from fedcl.assembly import build_site, is_guarded
from fedcl.core.attacks.adversary import Adversary
from fedcl.core.attacks.lies import Attackers
from fedcl.core.attacks.poison import Poison
from fedcl.core.client import Model, Reply
from fedcl.core.errors import ConfigError
from fedcl.core.local import Local, cross_entropy
from fedcl.core.request import Answer, Position, Request
from fedcl.core.task import Examples
from tests.ray_house import RayHouse
from tests.tiny import TABLE, assert_same_runs, same, tiny

BACKDOOR = {"attack": "backdoor", "clients": [1, 3], "target": 2, "size": 2}


def poison(**own: Any) -> Poison:
    return Poison(Adversary(clients=(1, 3), **own), frozenset({1, 3}), 5, 4, 7.0)


def test_labels_are_turned_around_or_as_the_pairs_say() -> None:
    data = Examples(torch.arange(4.0)[:, None], torch.arange(4))
    marks = torch.tensor([True, True, True, False])
    assert poison(attack="label_flip").applied(data, marks).y.tolist() == [3, 2, 1, 3]
    pairs = poison(attack="label_flip", flips=((1, 2), (2, 1)))
    assert pairs.applied(data, marks).y.tolist() == [0, 2, 1, 3]
    assert data.y.tolist() == [0, 1, 2, 3] and same(pairs.applied(data, marks).x, data.x)


@pytest.mark.parametrize(("shape", "changed"), [((2, 4, 4), 2 * 2 * 2), ((6,), 2), ((3, 5), 3 * 2)])
def test_a_trigger_is_the_last_square_or_the_last_features(
    shape: tuple[int, ...], changed: int
) -> None:
    x = torch.rand(3, *shape)
    found = poison(attack="backdoor", size=2).triggered(x)
    assert int((found != x).sum()) == 3 * changed and float(found.max()) == 7.0
    last = found[..., -2:, -2:] if len(shape) == 3 else found[..., -2:]
    assert bool((last == 7.0).all())


def test_a_share_of_the_attackers_examples_is_marked_whoever_is_with_them() -> None:
    own = poison(attack="backdoor", poisoned=0.25, first=1, last=2)
    together = own.marks((0, 1, 2, 3), (10, 20, 10, 8), 1)
    assert together is not None
    assert [int(part.sum()) for part in together.split([10, 20, 10, 8])] == [0, 5, 0, 2]
    alone = own.marks((3,), (8,), 1)
    assert alone is not None and same(alone, together[40:])
    assert own.marks((1,), (20,), 0) is own.marks((1,), (20,), 3) is own.marks((0, 2), (5, 5), 1)
    later = own.marks((1,), (20,), 2)
    assert later is not None and not same(later, together[10:30]), "another draw at each stage"
    assert poison(attack="label_flip").share == 1.0 and poison(attack="backdoor").share == 0.5


def test_clients_and_blocks_hold_the_same_poisoned_examples() -> None:
    honest, site = build_site(tiny()), build_site(tiny(adversary=BACKDOOR))
    value = site.population.poison.value  # type: ignore[attr-defined]
    members = tuple(range(5))
    block = site.population.block(members, 0, site.model, [None] * 5, list(members))
    rows = torch.tensor([block.starts[3], block.starts[0], block.starts[4] - 1])
    visited = block.visited(rows)
    assert same(visited.x, block.data.take(rows).x) and same(visited.y, block.data.take(rows).y)
    for k in members:
        clean = honest.population.client(k, 0, site.model, None, 0).data
        data = site.population.client(k, 0, site.model, None, 0).data
        assert same(data.x, block.client(k).data.x) and same(data.y, block.client(k).data.y)
        if k not in (1, 3):
            assert same(data.x, clean.x) and same(data.y, clean.y)
            continue
        marked = (data.x != clean.x).flatten(1).any(1)
        assert int(marked.sum()) == round(0.5 * len(data))
        assert bool((data.x[marked][..., -2:, -2:] == value).all())
        assert bool((data.y[marked] == 2).all()) and same(data.y[~marked], clean.y[~marked])


def run(attack: dict[str, Any], engine: dict[str, Any] | None = None) -> fedcl.Record:
    changes = {"stream.tasks": 1, "training.cohort": 0}
    return fedcl.run(tiny(changes, adversary=attack, engine=engine or TABLE["engine"]))


@pytest.mark.parametrize("attack", ["label_flip", "backdoor"])
def test_attackers_learn_alike_in_blocks(attack: str) -> None:
    own = {"attack": attack, "share": 0.4, "size": 2}
    loop, blocks = run(own), run(own, {"name": "vectorized"})
    honest = run({})
    for name, value in loop.params.items():
        torch.testing.assert_close(blocks.params[name], value, rtol=0, atol=1e-5)
    assert any(not same(honest.params[k], v) for k, v in loop.params.items())
    assert not is_guarded(tiny(adversary=own)), "poisoned data costs no engine its fast path"


@pytest.mark.ray
def test_workers_poison_the_same_examples(ray_house: RayHouse) -> None:
    ray_house.start()  # another test may hold the machine while a session starts: one for all
    own = {**BACKDOOR, "boost": 2.0}
    ray = run(own, {"name": "ray", "workers": 2, "inner": "serial"})
    assert_same_runs(ray, run(own))


@pytest.mark.flower
def test_flower_poisons_the_same_examples() -> None:
    assert_same_runs(run(BACKDOOR, {"name": "flower"}), run(BACKDOOR))


def test_nobody_attacks_before_or_after_the_stages_named() -> None:
    assert_same_runs(run({**BACKDOOR, "first": 1}), run({}))


def boosted(bound: float, program: Any, **own: Any) -> list[float]:
    answers = [Answer(id, Reply({"u": torch.tensor([1.0, 2.0])})) for id in range(2)]
    adversary = Adversary("backdoor", clients=(0,), boost=10.0, **own)
    found = Attackers(adversary, 2, 0).act(
        Request(Position(0, 0, 0), program, Model({})), answers, bound
    )
    assert found[1].reply.tensors["u"].tolist() == [1.0, 2.0]
    return [float(number) for number in found[0].reply.tensors["u"]]


def counts(client: Any, message: Any) -> Reply:
    return Reply({})


def test_a_boosted_change_keeps_to_the_bound_if_it_shall() -> None:
    train = Local(cross_entropy)
    assert boosted(0.0, train) == [10.0, 20.0]
    assert boosted(5.0, train) == pytest.approx([5.0 / 5**0.5, 10.0 / 5**0.5], rel=1e-5)
    assert boosted(5.0, train, clipped=False) == [10.0, 20.0]
    assert boosted(0.0, counts) == [1.0, 2.0], "statistics are no changes of the model"


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ({"attack": "backdoor", "target": 4}, r"the label 4, .* 0 to 3"),
        ({"attack": "label_flip", "flips": [[0, 9]]}, r"the label 9"),
        ({"attack": "label_flip", "flips": [[0, 1], [0, 2]]}, "a label twice"),
        ({"attack": "backdoor", "size": 4}, "size = 4 covers all of an input's 4"),
        ({"attack": "backdoor", "poisoned": 1.5}, r"poisoned must lie in \[0, 1\]"),
        ({"attack": "backdoor", "boost": 0.0}, "boost must be above 0"),
    ],
)
def test_what_does_not_fit_is_refused(own: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_site(tiny(adversary={"clients": [0], **own}))
