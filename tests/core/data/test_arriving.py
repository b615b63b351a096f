"""Clients whose data arrive: what they learn at which place, what they know, what is refused."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedcl.assembly import build_site
from fedcl.core.batch import run_batched
from fedcl.core.block import Batching
from fedcl.core.client import Model
from fedcl.core.data.arriving import Arriving
from fedcl.core.errors import AbsentError, ConfigError, ResumeError
from fedcl.core.local import Local, cross_entropy
from fedcl.core.request import Position, Request
from fedcl.core.site import Site
from tests.arriving_data import arrival, arrive, deliver, house, live
from tests.tiny import first_parameters, same


def site_of(root: Path, keep: Path, changes: dict[str, Any] | None = None) -> Site:
    return build_site(live(root, changes), keep)


def people(site: Site) -> Arriving:
    assert isinstance(site.population, Arriving)
    return site.population


def rows(site: Site, client: int, stage: int, round: int = 0) -> Any:
    found = people(site).at(round).client(client, stage, site.model, None, 1)
    return found.data, found.task


def training(site: Site, params: Any, stage: int = 0, round: int = 0) -> Request:
    return Request(Position(stage, round, 0), Local(cross_entropy), Model(params))


def test_the_server_knows_members_and_labels_but_no_rows(tmp_path: Path) -> None:
    stream = people(site_of(house(tmp_path / "house"), tmp_path)).stream
    assert stream.elsewhere and (stream.stages, stream.clients) == (3, 5)
    for stage in range(3):
        info = stream.info(stage)
        assert list(stream.members(stage)) == list(range(5))
        assert (info.classes, info.seen, info.border) == ((0, 1, 2, 3), (0, 1, 2, 3), True)
        assert stream.head(0, stage).all() and info.public is None
        assert not len(stream.held_out(stage, "test")) and not len(stream.rows(0, stage))


def test_a_client_learns_one_arrival_a_stage_whatever_the_round(tmp_path: Path) -> None:
    site = site_of(house(tmp_path / "house"), tmp_path / "keep")
    for stage in range(3):
        for round in (-1, 0, 1, 2):
            data, task = rows(site, 3, stage, round)
            table = people(site).source.load(3, f"{stage:03}.npz").train
            assert same(data.x, torch.from_numpy(table.rows(np.arange(len(table.labels)))))
            assert data.y.tolist() == table.labels.tolist()
            assert (int(task.index), int(task.task)) == (stage, stage)


def test_without_borders_it_learns_the_next_one_at_the_next_round(tmp_path: Path) -> None:
    house(tmp_path / "house", arrivals=2)
    site = site_of(tmp_path / "house", tmp_path / "keep", {"stream.borders": False})
    found = [rows(site, 1, *place)[1] for place in ((0, 0), (0, 1), (1, 0))]
    assert [(int(task.index), int(task.task)) for task in found] == [(0, 0), (1, 0), (1, 0)]
    deliver(tmp_path / "house", 1, 2)
    found = [rows(site, 1, *place)[1] for place in ((1, 0), (1, 1), (0, 0))]
    assert [(int(task.index), int(task.task)) for task in found] == [(1, 0), (2, 1), (0, 0)]


def test_masks_are_of_what_the_client_itself_has_met(tmp_path: Path) -> None:
    for number, classes in enumerate(([1, 1, 2], [0, 0, 1])):
        data = {"x": np.zeros((3, 1, 4, 4)), "y": np.array(classes)}
        arrive(tmp_path / "own", f"{number}.npz", **data)
    site = site_of(tmp_path / "own", tmp_path / "keep", {"stream.scenario": "class"})
    first, second = rows(site, 0, 0)[1], rows(site, 0, 1)[1]
    assert (first.present.tolist(), first.seen.tolist()) == ([False, True, True, False],) * 2
    assert second.present.tolist() == [True, True, False, False]
    assert second.seen.tolist() == [True, True, True, False]
    assert first.head.all() and second.head.all()  # the label space is public and fixed


def test_asked_again_it_answers_to_the_same_bits(tmp_path: Path) -> None:
    root = tmp_path / "house"
    for client in range(5):
        deliver(root, client, 1)
    site = site_of(root, tmp_path / "keep")
    params = first_parameters(live(root))
    asked = [training(site, params, stage, round) for stage, round in ((0, 0), (0, 1), (1, 0))]
    before = [site.loop(request, range(5), {}).total for request in asked]
    for client in range(5):
        deliver(root, client, 0)  # sorts before what was taken, and comes after it
        deliver(root, client, 2)
    later = site.loop(training(site, params, 2), range(5), {}).total
    again = site_of(root, tmp_path / "keep")  # another process
    assert same([again.loop(request, range(5), {}).total for request in asked], before)
    assert not same(later, before[-1])
    assert int(rows(again, 0, 2)[1].index) == 1


def test_who_has_nothing_is_absent_and_the_others_answer(tmp_path: Path) -> None:
    root = house(tmp_path / "house", arrivals=0)
    for client in (0, 3):
        deliver(root, client, 0)
    site = site_of(root, tmp_path / "keep", {"training.fold": 16})
    request = training(site, first_parameters(live(root)))
    loop = site.loop(request, range(5), {})
    assert loop.ids == (0, 3) and loop.total is not None and loop.total.count == 2
    assert loop.failures == {id: "no data have arrived that it could learn" for id in (1, 2, 4)}
    for path in ("loop", "fused"):
        batch = run_batched(site, request, range(5), {}, Batching(path, 4))
        assert (batch.ids, batch.failures) == (loop.ids, loop.failures)
    none = run_batched(site, request, (1, 2), {}, Batching("fused", 4))
    assert none.ids == () and set(none.failures) == {1, 2}
    with pytest.raises(AbsentError, match="client 1: no data have arrived"):
        rows(site, 1, 0)


def test_a_block_holds_what_single_clients_hold(tmp_path: Path) -> None:
    site = site_of(house(tmp_path / "house"), tmp_path / "keep")
    block = people(site).at(0).block((0, 2, 4), 1, site.model, [None, 7, None], [1, 2, 3])
    for k, id in enumerate((0, 2, 4)):
        data, task = rows(site, id, 1)
        assert same(block.client(k).data, data) and same(block.client(k).task, task)
    assert (block.ids, block.states, block.seeds) == ((0, 2, 4), (None, 7, None), (1, 2, 3))
    sizes = people(site).at(0).sizes((0, 1, 2, 4), 1)
    assert sizes.tolist() == [block.sizes[0], 0, block.sizes[1], block.sizes[2]]


def test_a_client_knows_its_own_stream(tmp_path: Path) -> None:
    root = house(tmp_path / "house", arrivals=2)
    site = site_of(root, tmp_path / "keep")
    for stage in range(3):
        rows(site, 4, stage)
    own = people(site).stream_of(4, 2)
    assert own.history(4, 2) == (0, 1, 1)  # nothing new came for stage 2
    for task in (0, 1):
        found = people(site).source.load(4, f"{task:03}.npz")
        test = own.held_out(task, "test")
        assert test.y.tolist() == found.test.labels.tolist() and len(test) > 0
        assert same(test.x, torch.from_numpy(found.test.rows(np.arange(len(test)))))
        owners = own.owners(task, "test")
        assert owners is not None and owners.tolist() == [4] * len(test)
        counts = np.bincount(found.train.labels, minlength=4)
        assert own.label_counts(4, task).tolist() == counts.tolist()
    assert len(own.held_out(2, "test")) == 0
    assert own.head(0, 2).all()
    assert list(own.members(2)) == [4] and not own.elsewhere
    assert people(site).stream_of(4, 0).history(4, 2) == (0, 0, 0)
    assert people(site).stream_of(1, 2).history(1, 2) == ()  # it was never asked


def test_a_task_without_borders_is_all_that_came_in_its_stage(tmp_path: Path) -> None:
    root = house(tmp_path / "house", arrivals=3)
    site = site_of(root, tmp_path / "keep", {"stream.borders": False})
    for place in ((0, 0), (0, 1), (1, 0)):
        rows(site, 2, *place)
    tests = [len(people(site).source.load(2, f"{k:03}.npz").test.labels) for k in range(3)]
    own = people(site)
    assert len(own.at(0).stream_of(2, 0).held_out(0, "test")) == tests[0]
    assert len(own.stream_of(2, 0).held_out(0, "test")) == tests[0] + tests[1]
    assert len(own.stream_of(2, 1).held_out(1, "test")) == tests[2]


def test_learnt_data_that_are_gone_or_changed_are_missed(tmp_path: Path) -> None:
    root = house(tmp_path / "house", arrivals=1)
    site = site_of(root, tmp_path / "keep")
    rows(site, 0, 0)
    kept = (root / "0" / "000.npz").read_bytes()
    arrive(root / "0", "000.npz", **arrival(0, 9))
    with pytest.raises(ResumeError, match=r"client 0 has learnt arrival '000.npz', which is ano"):
        rows(site, 0, 0)
    (root / "0" / "000.npz").unlink()
    with pytest.raises(ResumeError, match=r"which cannot be read any more .*put it back"):
        people(site).stream_of(0, 0)
    (root / "0" / "000.npz").write_bytes(kept)
    rows(site, 0, 0)


def test_ready_are_those_with_new_data_and_those_that_have_begun(tmp_path: Path) -> None:
    root = house(tmp_path / "house", arrivals=0)
    own = people(site_of(root, tmp_path / "keep"))
    assert not own.ready(0, 0)
    deliver(root, 0, 0)
    assert own.ready(0, 0)
    own.client(0, 0, torch.nn.Linear(1, 1), None, 1)
    assert own.ready(0, 0) and not own.ready(0, 1)
    deliver(root, 0, 1)
    assert own.ready(0, 1)
    (root / "1" / "000.npz").write_bytes(b"PK damaged")
    assert own.ready(1, 0)  # nobody has looked into it yet
    assert own.absent((1,), 0) and not own.ready(1, 0)


def test_a_population_that_travels_reads_for_itself(tmp_path: Path) -> None:
    site = site_of(house(tmp_path / "house"), tmp_path / "keep")
    data, _ = rows(site, 1, 0)
    for other in (copy.deepcopy(site), pickle.loads(pickle.dumps(site))):
        assert same(rows(other, 1, 0)[0], data)


def test_without_a_folder_nobody_can_be_asked(tmp_path: Path) -> None:
    site = build_site(live(house(tmp_path / "house")))
    with pytest.raises(ConfigError, match="must keep a diary"):
        site.population.absent((0,), 0)
