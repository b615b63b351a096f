"""Images that the server reconstructs from clients' gradients, to judge models by (GLFC).

Dong et al., Federated class-incremental learning, CVPR 2022. A client sends, for each class that it
has, the gradient of one example in a random network; see `fedcl.core.attacks.inversion`. So the
server has, but for the error of its search, one example of each class of each client.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fedcl.core.attacks.inversion import Encoder, invert, labels_of, own_gradients
from fedcl.core.client import Reply
from fedcl.core.errors import ConfigError
from fedcl.core.features.analytic import Regressors
from fedcl.core.local import masked_logits
from fedcl.core.losses.distillation import answers
from fedcl.core.model import Net
from fedcl.core.replay.selection import herd
from fedcl.core.seeds import torch_generator
from fedcl.core.task import Examples, TaskInfo, class_mask


def prototypes(net: Net, data: Examples) -> Tensor:
    """Returns the row of each class's prototype, by class ascending.

    It is the example whose feature, of length 1, is nearest to the mean of those of its class.

    Args:
        net: The model with the parameters that give the features.
        data: A client's examples.
    """
    chosen = [torch.zeros(0, dtype=torch.int64, device=data.y.device)]
    features = Regressors(constant=False)(net, data.x) if len(data) else data.x
    for label in data.y.unique().tolist():
        own = (data.y == label).nonzero().flatten()
        chosen.append(own[herd(features[own], 1)])
    return torch.cat(chosen)


def prototype_gradients(
    net: Net, data: Examples, classes: int, seed: int, rows: int
) -> dict[str, Tensor]:
    """Returns the gradients that a client sends, and the shape of an image that they are of.

    Args:
        net: The model with the parameters that give the features.
        data: The client's examples.
        classes: All classes.
        seed: Of the random network.
        rows: Rows to send; zeros fill up what there is no class for.

    Returns:
        `gradients/<weight>` (rows, ...) and `shape/image` int64; the latter alone where the
        examples are no images, for the server to refuse.
    """
    shape = tuple(data.x.shape[1:])
    said = {"shape/image": torch.tensor(shape, dtype=torch.int64, device=data.y.device)}
    if len(shape) != 3:
        return said
    chosen = prototypes(net, data)[:rows]
    encoder, x = Encoder(shape, classes, seed), data.x[chosen]
    found = own_gradients(encoder, encoder.params(data.x), x, data.y[chosen])
    for name, value in found.items():
        padding = value.new_zeros((rows - len(chosen), *value.shape[1:]))
        said[f"gradients/{name}"] = torch.cat([value, padding])
    return said


def reconstruct(
    replies: Sequence[Reply], classes: int, seed: int, most: int, iterations: int
) -> Examples | None:
    """Returns the labels and images that clients' gradients give away; None without any.

    Args:
        replies: What clients sent, each by `prototype_gradients`.
        classes: All classes.
        seed: Of the random network, and of the draw of some gradients where there are more.
        most: Images to look for.
        iterations: Of the search.

    Raises:
        ConfigError: The clients' examples are no images.
    """
    if not replies:
        return None
    shape = tuple(replies[0].tensors["shape/image"].tolist())
    if len(shape) != 3:
        raise ConfigError(
            f"glfc reconstructs images (channels, height, width), not examples of shape {shape}: "
            "set method.select = false"
        )
    encoder = Encoder(shape, classes, seed)
    sent = {
        name: torch.cat([reply.tensors[f"gradients/{name}"] for reply in replies])
        for name in encoder.sizes
    }
    labels = labels_of(sent["head.bias"])
    rows = (labels >= 0).nonzero().flatten()
    order = torch.randperm(len(rows), generator=torch_generator(seed, "some"))[:most].sort().values
    rows = rows[order.to(rows.device)]
    wanted = {name: value[rows] for name, value in sent.items()}
    start = wanted["head.bias"].new_zeros((len(rows), *shape))
    params = encoder.params(start)
    images, _ = invert(encoder, params, wanted, labels[rows], start, iterations)
    return Examples(images, labels[rows]) if len(rows) else None


def right(net: Net, data: Examples, allowed: Tensor) -> float:
    """Returns the share of examples that a model classifies rightly.

    Args:
        net: The model.
        data: Examples, one at least.
        allowed: (classes,) bool, what it chooses from.
    """
    found = masked_logits(answers(net, data.x), allowed.to(data.y.device)).argmax(1)
    return float((found == data.y).double().mean())


def allowed_now(task: TaskInfo, classes: int) -> Tensor:
    """Returns the (classes,) bool mask of what a model chooses from at a stage.

    Args:
        task: The stage.
        classes: All classes.
    """
    every = tuple(range(classes))
    chosen = {"task": task.classes, "class": task.seen, "domain": every}
    return class_mask(chosen[task.scenario], classes)
