"""The generator, and the losses that train it without data, against numbers worked out slowly."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fedcl.core.client import Client, Model
from fedcl.core.errors import ConfigError
from fedcl.core.generative.datafree import (
    INPUT,
    ChannelMoments,
    Training,
    look,
    means,
    mixed,
    moments_of,
    spread_of,
)
from fedcl.core.generative.generator import EMBEDDING, Generator, balanced
from fedcl.core.generative.known import Known
from fedcl.core.generative.objective import (
    Objective,
    Weights,
    allowed_of,
    disagreement,
    label_loss,
    moments_distance,
    roughness,
    sameness,
)
from fedcl.core.generative.pictures import Pictures, Rehearsed, Shipment, beside, pictures
from fedcl.core.generative.synthesis import Recipe, synthesise
from fedcl.core.losses.anchors import Anchors, beyond
from fedcl.core.losses.distillation import Taught
from fedcl.core.losses.prototypes import ClassVectors
from fedcl.core.model import Net
from fedcl.core.statistic import Statistic
from fedcl.core.task import Examples
from fedcl.models.cnn import Cnn
from fedcl.models.mlp import Mlp
from tests.core import toys
from tests.tiny import same

SHAPE = (2, 5, 7)
SMALL = Generator(SHAPE, 3, noise=4, width=4)
ONE_HEAD = torch.ones(1, 3, dtype=torch.bool)


def start(generator: Generator = SMALL, seed: int = 0) -> dict[str, Tensor]:
    mean = torch.full(generator.shape, 0.5, dtype=torch.float64)
    return generator.init(seed, mean, torch.full_like(mean, 2.0))


# --- The generator. ---


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (1, 8, 8), (1, 4, 4), (2, 5, 7)])
def test_it_makes_images_of_any_size_and_counts_its_numbers(shape: tuple[int, int, int]) -> None:
    generator = Generator(shape, 10)
    params = generator.init(3, torch.zeros(()), torch.ones(()))
    images = generator.draw(params, torch.arange(10), 1)
    assert images.shape == (10, *shape) and images.dtype == torch.float32
    assert sum(v.numel() for v in params.values()) == generator.size
    assert float(images.std()) > 0.1


def test_each_image_depends_on_its_own_noise_and_label_alone() -> None:
    params, labels = start(), torch.tensor([0, 1, 2, 2])
    noise = torch.randn(4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    together = SMALL(params, noise, labels)
    for row in range(4):
        alone = SMALL(params, noise[row : row + 1], labels[row : row + 1])
        assert torch.allclose(alone[0], together[row], rtol=0, atol=1e-12)
    assert not torch.allclose(SMALL(params, noise, torch.zeros_like(labels)), together)


def test_pixels_keep_within_reach_spreads_of_their_mean_and_without_spread_they_stay() -> None:
    mean = torch.arange(70, dtype=torch.float64).reshape(SHAPE)
    spread = (mean % 3) / 10
    params = SMALL.init(0, mean, spread)
    wild = {k: v if k in SMALL.fixed else 50 * v for k, v in params.items()}
    away = (SMALL.draw(wild, torch.tensor([0, 1, 2]), 5) - mean).abs()
    assert bool((away <= SMALL.reach * spread + 1e-12).all())
    assert float(away.max()) > 0.9 * SMALL.reach * 0.2
    assert float(away[:, spread == 0].max()) == 0.0


def test_draws_are_functions_of_their_position() -> None:
    assert same(start(seed=1), start(seed=1)) and not same(start(seed=1), start(seed=2))
    first = SMALL.sample(start(), (0, 2), 7, 11)
    torch.manual_seed(0)
    assert same(SMALL.sample(start(), (0, 2), 7, 11), first)
    assert not torch.equal(SMALL.sample(start(), (0, 2), 7, 12).x, first.x)


def test_labels_are_balanced() -> None:
    counts = torch.bincount(balanced((1, 3, 4), 10, 0, "labels"), minlength=5).tolist()
    assert (counts[0], counts[2]) == (0, 0) and sorted(counts[k] for k in (1, 3, 4)) == [3, 3, 4]
    assert len(balanced((1,), 0, 0)) == 0
    with pytest.raises(ValueError, match="no class"):
        balanced((), 3, 0)


def test_refuses_what_is_no_image() -> None:
    with pytest.raises(ValueError, match=r"\(16,\)"):
        Generator((16,), 3)  # type: ignore[arg-type]


# --- Statistics. ---


def test_channel_moments_are_those_of_hooks_by_hand() -> None:
    """A network of one convolution and two linear layers, each layer's input worked out."""
    model = Cnn(channels=(4,), hidden=5, groups=2).build(SHAPE, 3).double()
    client = toys.client(model, 9, SHAPE)
    params, x = toys.parameters(model), client.data.x
    net = Net(model, params)
    with torch.no_grad():
        seen = look(net, x)
        logits, sums = seen.logits, seen.sums
        maps = F.conv2d(x, params["conv1.weight"], params["conv1.bias"], padding=1)
        maps = F.relu(F.group_norm(maps, 2, params["norm1.weight"], params["norm1.bias"]))
        flat = F.max_pool2d(maps, 2).flatten(1)
        hidden = F.relu(flat @ params["fc.weight"].T + params["fc.bias"])
    assert torch.equal(logits, net(x))
    expected = {INPUT: x, "moments/fc.weight": flat, "moments/head.weight": hidden}
    assert set(sums) == set(expected)  # the first layer's input is the network's
    for name, value in expected.items():
        both = torch.stack([value.sum(0), value.square().sum(0)])
        assert torch.allclose(sums[name], both, rtol=0, atol=1e-12), name
    deep = Cnn(channels=(4, 2), hidden=0, groups=2).build((1, 8, 8), 3).double()
    images = toys.client(deep, 6, (1, 8, 8)).data.x
    inputs: list[Tensor] = []
    deep.get_submodule("conv2").register_forward_pre_hook(lambda _, given: inputs.append(given[0]))
    found = look(Net(deep, toys.parameters(deep)), images).sums
    places = [inputs[0].mean((2, 3)).sum(0), inputs[0].square().mean((2, 3)).sum(0)]
    assert torch.allclose(found["moments/conv2.weight"], torch.stack(places), rtol=0, atol=1e-12)


def test_what_clients_send_sums_to_the_moments_of_all_their_data() -> None:
    model = Mlp(hidden=(6,)).build(SHAPE, 3).double()
    params, ask = toys.parameters(model), Statistic(ChannelMoments(), exact=("count",), rows=4)
    clients = [toys.client(model, n, SHAPE, id=n) for n in (3, 10)]
    replies = [ask(client, Model(params)).tensors for client in clients]
    found = means({k: replies[0][k] + replies[1][k] for k in replies[0]})
    union = torch.cat([client.data.x for client in clients])
    assert toys.distance(found, moments_of(Net(model, params), union)) < 1e-12
    own = [(float(len(c.data)), moments_of(Net(model, params), c.data.x)) for c in clients]
    assert toys.distance(mixed(own), found) < 1e-12
    assert torch.allclose(spread_of(found[INPUT]), union.std(0, unbiased=False), atol=1e-12)
    assert sum(v.numel() for v in replies[0].values()) == 2 * 70 + 2 * 6 + 1


def test_the_distance_is_zero_for_the_same_statistics_and_by_hand_else() -> None:
    wanted = {"moments/a": torch.tensor([[1.0, 2.0], [2.0, 13.0]], dtype=torch.float64)}
    assert float(moments_distance(wanted, wanted)) == 0.0
    # Variances 1 and 9, their mean 5; the first mean is off by 2, the second deviation by 1.
    other = {"moments/a": torch.tensor([[3.0, 2.0], [10.0, 20.0]], dtype=torch.float64)}
    edge = 1e-3 * 5
    by_hand = (4 + (math.sqrt(16 + edge) - math.sqrt(9 + edge)) ** 2) / 2 / 5
    assert float(moments_distance(other, wanted)) == pytest.approx(by_hand, abs=1e-14)
    scaled = [
        {k: torch.stack([7 * v[0], 49 * v[1]]) for k, v in given.items()}
        for given in (other, wanted)
    ]
    assert float(moments_distance(*scaled)) == pytest.approx(by_hand, abs=1e-12)


def test_disagreement_counts_rows_of_which_teacher_and_student_say_different_classes() -> None:
    teacher = torch.tensor([[math.log(3), 0.0], [math.log(3), 0.0]], dtype=torch.float64)
    student = torch.tensor([[0.0, math.log(3)], [1.0, 0.0]], dtype=torch.float64)
    allowed = torch.ones(2, 2, dtype=torch.bool)
    by_hand = 0.75 * math.log(3) - 0.25 * math.log(3)  # the second row agrees: 0
    assert float(disagreement(teacher, student, allowed)) == pytest.approx(by_hand / 2, abs=1e-14)
    assert float(disagreement(teacher, teacher, allowed)) == 0.0


def test_labels_are_compared_over_their_own_head() -> None:
    heads = torch.tensor([[True, True, False], [False, False, True]])
    allowed = allowed_of(heads, torch.tensor([2, 0]))
    assert allowed.tolist() == [[False, False, True], [True, True, False]]
    loss = label_loss(torch.zeros(2, 3, dtype=torch.float64), torch.tensor([2, 0]), allowed)
    assert float(loss) == pytest.approx(math.log(2) / 2, abs=1e-14)


def test_answers_to_a_batch_shall_be_of_all_classes() -> None:
    sure = 50.0 * torch.eye(3, dtype=torch.float64)
    every = torch.tensor([[True, True, False]]).expand(4, 3)
    assert float(sameness(sure[[0, 0, 0, 0]], every)) == pytest.approx(1.0, abs=1e-9)
    assert float(sameness(sure[[0, 1, 0, 1]], every)) == pytest.approx(0.0, abs=1e-12)
    quarter = 1 - (0.75 * math.log(4 / 3) + 0.25 * math.log(4)) / math.log(2)
    assert float(sameness(sure[[0, 1, 0, 0]], every)) == pytest.approx(quarter, abs=1e-9)
    alone = torch.tensor([[False, True, False]]).expand(4, 3)
    assert float(sameness(sure[[0, 1, 0, 0]], alone)) == 0.0


def test_a_point_is_rough_and_a_plain_image_is_not() -> None:
    point = torch.zeros(1, 2, 5, 5, dtype=torch.float64)
    point[0, 1, 2, 2] = 1.0
    side = math.exp(-0.5) / (1 + 2 * math.exp(-0.5))
    middle = 1 - 2 * side
    blurred = torch.tensor([side, middle, side], dtype=torch.float64)
    away = torch.outer(blurred, blurred)
    away[1, 1] -= 1.0
    expected = float(away.square().sum()) / 50
    assert float(roughness(point)) == pytest.approx(expected, abs=1e-8)
    assert float(roughness(torch.full((2, 3, 4, 4), 7.0).double())) < 1e-12


def test_features_are_free_within_the_radius_of_their_anchor() -> None:
    features = torch.tensor([[1.0, 1.0], [0.0, 2.0]], dtype=torch.float64, requires_grad=True)
    away = beyond(features, torch.tensor([[1.0, 1.2], [1.0, 0.0]]).double(), 0.5)
    assert away.tolist() == [0.0, 2.0]  # mean squares 0.02 and 2.5
    (gradient,) = torch.autograd.grad(away.sum(), features)
    assert gradient.tolist() == [[0.0, 0.0], [-1.0, 2.0]]


def test_anchors_are_no_negative_numbers_and_have_the_size_asked_for() -> None:
    rows = Anchors(size=0.5)(3, 40)
    assert float(rows.min()) == 0.0
    assert torch.allclose(rows.square().mean(1), torch.full((3,), 0.25).double(), atol=1e-12)
    frame = ClassVectors()(3, 40)
    kept = frame > 0
    assert bool(((rows > 0) == kept).all())
    for row, own, mask in zip(rows, frame, kept, strict=True):
        assert float((row[mask] / own[mask]).std()) < 1e-12


def test_an_objective_is_the_sum_of_its_weighted_losses() -> None:
    teacher, known, x = world()
    images, labels = x[:12], torch.arange(12) % 3
    anchors = Anchors()(3, 8)
    seen = look(teacher, images)
    found = {k: v / 12 for k, v in seen.sums.items()}
    allowed = ONE_HEAD.expand(12, 3)
    pupil = teacher.at({k: v.roll(1, 0) for k, v in (teacher.params or {}).items()})
    expected = (
        0.5 * label_loss(seen.logits, labels, allowed)
        + 2.0 * moments_distance(found, {k: v + 1.0 for k, v in known.moments.items()})
        - 3.0 * disagreement(seen.logits, pupil(images), allowed)
        + 4.0 * sameness(seen.logits, allowed)
        + 5.0 * roughness(images)
        + 6.0 * beyond(seen.features, anchors[labels], 0.1).mean()
    )
    wanted = {k: v + 1.0 for k, v in known.moments.items()}
    weights = Weights(0.5, 2.0, 3.0, 4.0, 5.0, 6.0)
    objective = Objective(teacher, ONE_HEAD, wanted, weights, anchors, 0.1)
    assert float(objective(images, labels, pupil)) == pytest.approx(float(expected), abs=1e-12)
    assert float(disagreement(seen.logits, pupil(images), allowed)) > 0.01


# --- Training. ---


def world() -> tuple[Net, Known, Tensor]:
    """A teacher that tells three bright corners apart, and what is known of its data."""
    model = Mlp(hidden=(8,)).build((1, 4, 4), 3).double()
    params = toys.parameters(model)
    generator = torch.Generator().manual_seed(2)
    y = torch.arange(90) % 3
    x = 0.3 * torch.randn(90, 1, 4, 4, generator=generator, dtype=torch.float64)
    for label, (row, column) in enumerate(((0, 0), (0, 2), (2, 0))):
        x[y == label, 0, row : row + 2, column : column + 2] += 1.0
    leaves = {k: v.clone().requires_grad_() for k, v in params.items()}
    descent = torch.optim.Adam(leaves.values(), lr=0.05)
    for _ in range(60):
        descent.zero_grad()
        F.cross_entropy(Net(model, leaves)(x), y).backward()
        descent.step()
    teacher = Net(model, {k: v.detach() for k, v in leaves.items()})
    return teacher, Known(ONE_HEAD, (0, 1, 2), moments_of(teacher, x), 90.0), x


RECIPE = Recipe(images=60, rounds=3, steps=60, batch=32, student_steps=10)


def test_images_are_of_the_classes_asked_for_and_have_the_data_s_statistics() -> None:
    teacher, known, x = world()
    generator = known.generator(3, 8)
    student = {k: torch.zeros_like(v) for k, v in (teacher.params or {}).items()}
    rows, params = synthesise(teacher, student, known, generator, RECIPE, 5)
    assert len(rows) == 60 and torch.bincount(rows.y).tolist() == [20, 20, 20]
    assert float((teacher(rows.x).argmax(1) == rows.y).double().mean()) > 0.95
    own = moments_distance(moments_of(teacher, rows.x), known.moments)
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    other = moments_distance(moments_of(teacher, noise), known.moments)
    assert float(own) < 0.2 * float(other)
    # The labels' bright corners, of which the server was told nothing but the union's moments.
    for label, (row, column) in enumerate(((0, 0), (0, 2), (2, 0))):
        corner = rows.x[rows.y == label, 0, row : row + 2, column : column + 2].mean()
        rest = rows.x[rows.y != label, 0, row : row + 2, column : column + 2].mean()
        assert float(corner) > float(rest) + 0.3
    again, also = synthesise(teacher, student, known, generator, RECIPE, 5)
    assert same(again, rows) and same(dict(also), dict(params))
    assert not any(value.requires_grad for value in params.values())


def test_without_an_adversary_the_student_does_not_matter_and_with_one_it_does() -> None:
    teacher, known, _ = world()
    zeros = {k: torch.zeros_like(v) for k, v in (teacher.params or {}).items()}
    ones = {k: v - 0.5 for k, v in (teacher.params or {}).items()}

    def made(student: dict[str, Tensor], adversarial: float) -> Tensor:
        weights = Weights(adversarial=adversarial)
        recipe = replace(RECIPE, weights=weights, steps=10, first=1)
        return synthesise(teacher, student, known, known.generator(3, 4), recipe, 5)[0].x

    assert torch.equal(made(zeros, 0.0), made(ones, 0.0))
    assert not torch.equal(made(zeros, 1.0), made(ones, 1.0))
    assert torch.equal(made(zeros, 1.0)[:30], made(ones, 0.0)[:30])  # none in the first kept round


def test_anchored_images_lie_nearer_to_their_anchors_and_embeddings_stay() -> None:
    teacher, known, _ = world()
    student, anchors = dict(teacher.params or {}), Anchors()
    rows = {}
    for weight in (0.0, 20.0):
        weights = Weights(anchors=weight)
        recipe = Recipe(images=60, rounds=2, steps=60, batch=32, weights=weights, anchors=anchors)
        made, params = synthesise(teacher, student, known, known.generator(3, 8), recipe, 5)
        rows[weight] = beyond(look(teacher, made.x).features, anchors(3, 8)[made.y], 0.0).mean()
        directions = anchors.vectors(3, 64) * 8.0
        assert torch.equal(params[EMBEDDING], directions)
    assert float(rows[20.0]) < 0.8 * float(rows[0.0])


def test_training_leaves_the_range_as_it_is_and_descends_the_same_in_pieces() -> None:
    def mean(images: Tensor, labels: Tensor) -> Tensor:
        return images.mean()

    whole, pieces = (Training(SMALL, start(), (0, 2), 8, 0.01, 4) for _ in range(2))
    whole.descend(6, mean)
    pieces.descend(2, mean)
    pieces.descend(4, mean)
    assert same(dict(whole.params), dict(pieces.params))
    for name in SMALL.fixed:
        assert torch.equal(whole.params[name], start()[name])
    assert toys.distance(whole.params, start()) > 0.01
    assert float(whole.sample(50).x.mean()) < float(
        Training(SMALL, start(), (0, 2), 8, 0.01, 4).sample(50).x.mean()
    )


def test_a_student_that_diverges_is_an_error_and_no_image() -> None:
    teacher, known, _ = world()
    recipe = replace(RECIPE, steps=2, student_lr=1e300, student_steps=50)
    far = {k: v - 0.5 for k, v in (teacher.params or {}).items()}
    with pytest.raises(ConfigError, match="student's learning rate"):
        synthesise(teacher, far, known, known.generator(3, 4), recipe, 5)


# --- What travels, and how it is rehearsed. ---


def bank(n: int = 5) -> tuple[Net, Examples, Pictures]:
    model = Mlp(hidden=()).build((1, 2, 2), 3).double()
    net = Net(model, toys.parameters(model))
    given = toys.client(model, n, (1, 2, 2)).data
    return net, given, pictures(net, given)


def test_pictures_take_a_byte_a_number_and_are_within_half_a_step() -> None:
    net, given, found = bank()
    assert found.codes.dtype == torch.uint8 and found.codes.shape == given.x.shape
    assert float((found.images - given.x).abs().max()) <= float(found.step) / 2 * (1 + 1e-9)
    assert (int(found.codes.min()), int(found.codes.max())) == (0, 255)
    assert torch.equal(found.logits, net(found.images).detach())
    flat = pictures(net, Examples(torch.full((2, 1, 2, 2), 3.0).double(), torch.zeros(2).long()))
    assert bool((flat.images == 3.0).all())


@pytest.mark.parametrize(("ratio", "count"), [(1.0, 4), (0.5, 2), (3.0, 12)])
def test_weights_make_a_mean_over_rows_the_sum_of_two_means(ratio: float, count: int) -> None:
    net, _, found = bank()
    heads = torch.tensor([[True, True, False]])
    client = toys.client(net.model, 4, (1, 2, 2), head=(2,), state=Shipment(found, heads))
    rows = beside(client, heads, ratio)
    assert len(rows) == 4 + count and torch.equal(rows.x[:4], client.data.x)
    chosen = [int((found.images == x).flatten(1).all(1).nonzero()) for x in rows.x[4:]]
    assert max(chosen.count(k) for k in chosen) == math.ceil(count / 5)
    message = Taught(net.params or {}, heads)
    loss = Rehearsed(True, 0.7, 2.0)(
        net.at({k: v + 0.1 * v for k, v in (net.params or {}).items()}), rows, client.task, message
    )
    student = net.at({k: 1.1 * v for k, v in (net.params or {}).items()})
    images = found.take(torch.tensor(chosen))
    p = (images.logits[:, :2] / 2).log_softmax(1)
    q = (student(images.images)[:, :2] / 2).log_softmax(1)
    held = 4 * (p.exp() * (p - q)).sum(1).mean()  # one present class: its cross-entropy is 0
    assert float(loss.mean()) == pytest.approx(0.7 * float(held), abs=1e-12)
    other: Client = replace(client, seed=client.seed + 1)
    assert ratio == 3.0 or not torch.equal(beside(other, heads, ratio).x, rows.x)


def test_without_images_or_with_old_ones_a_client_has_its_own_examples() -> None:
    net, _, found = bank()
    heads = torch.tensor([[True, True, False]])
    for state in (None, Shipment(found, torch.tensor([[True, False, False]]))):
        client = toys.client(net.model, 4, (1, 2, 2), state=state)
        rows = beside(client, heads, 1.0)
        assert torch.equal(rows.x, client.data.x)
        assert rows.extra["own"].tolist() == [1.0] * 4 and rows.extra["old"].tolist() == [0.0] * 4


@pytest.mark.parametrize(
    "options",
    [{"rounds": 1}, {"images": 3}, {"batch": 0}, {"lr": 0.0}, {"steps": -1}],
)
def test_refuses_recipes(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must be"):
        Recipe(**options)  # type: ignore[arg-type]
