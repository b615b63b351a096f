"""Which names may stand in messages, replies, memories, states and checkpoints."""

from __future__ import annotations

import inspect
from dataclasses import is_dataclass
from types import FunctionType, ModuleType
from typing import Any

from fedcl.core import client, local, optimizer, statistic, task
from fedcl.core.consolidation import importance, kronecker
from fedcl.core.features import analytic, moments
from fedcl.core.generative import carried, datafree, generator, known, pictures, synthesis
from fedcl.core.losses import anchors, compensation, distillation, prototypes, tempered
from fedcl.core.replay import globalsample, informative, memory
from fedcl.core.wire import Vocabulary, name_of


def vocabulary(method: Any = None, *modules: ModuleType) -> Vocabulary:
    """Returns the vocabulary of core, of a method (its module too) and of further modules."""
    places = [
        task,
        client,
        analytic,
        anchors,
        carried,
        compensation,
        datafree,
        distillation,
        generator,
        globalsample,
        informative,
        local,
        memory,
        moments,
        known,
        kronecker,
        importance,
        optimizer,
        pictures,
        prototypes,
        statistic,
        synthesis,
        tempered,
        *modules,
    ]
    if method is not None:
        places.append(inspect.getmodule(type(method)) or local)
    classes: dict[str, type] = {}
    functions: dict[str, FunctionType] = {}
    for place in places:
        for name, value in vars(place).items():
            if (
                inspect.isclass(value)
                and is_dataclass(value)
                and value.__dataclass_params__.frozen  # type: ignore[attr-defined]
                and value.__module__ == place.__name__
            ):
                classes[name_of(value)] = value
            elif inspect.isfunction(value) and not name.startswith("_") and place is local:
                functions[name_of(value)] = value
    return Vocabulary(classes, functions, method)
