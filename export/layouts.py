"""How others' checkpoints name a ResNet and the heads that were trained on top of it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from mixsiam_hub.errors import ArgumentError, ModelError
from mixsiam_hub.untrusted import one_line


@dataclass(frozen=True)
class Layout:
    """The names of one source, without what wraps its network.

    Attributes:
        prefix: Stands before the backbone's own names.
        heads: Matches the whole name of a head's layer, as in `fc` for `fc.weight`.
    """

    prefix: str
    heads: re.Pattern[str]


LAYOUTS = {
    # The authors' code: the projector takes the place of fc.
    "simsiam": Layout("encoder.", re.compile(r"encoder\.fc\.[013467]|predictor\.[013]")),
    # The names of its tutorials and, for the classifier, of its benchmarks.
    "lightly": Layout(
        "backbone.",
        re.compile(r"(projection_head|prediction_head)\.layers\.\d+|online_classifier\.classification_head"),
    ),
    "solo-learn": Layout("backbone.", re.compile(r"(projector|predictor)\.\d+|classifier")),
    "torchvision": Layout("", re.compile("fc")),
    "timm": Layout("", re.compile("fc")),
}

_CHILDREN = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}
"""What nn.Sequential(*resnet.children()) makes of the names; the other children hold no tensors."""

_LINEAR = frozenset({"weight"})
_STATISTICS = frozenset({"running_mean", "running_var", "num_batches_tracked"})
_WHOLE_LAYERS = {_LINEAR, _LINEAR | {"bias"}, _STATISTICS, _STATISTICS | {"weight", "bias"}}
"""The tensors of a linear layer, and of a BatchNorm, each with and without what it may lack."""


def layout_of(source: str) -> Layout:
    """Returns the names of a source.

    Raises:
        ArgumentError: It is unknown.
    """
    if source not in LAYOUTS:
        raise ArgumentError(f"source is {source!r}; allowed are {', '.join(LAYOUTS)}")
    return LAYOUTS[source]


def split(names: Iterable[str], source: str, where: str) -> tuple[dict[str, str], list[str]]:
    """Tells a network's backbone from its heads; every name must be of one or the other.

    Args:
        names: Of all tensors, unwrapped.
        source: A key of LAYOUTS.
        where: What to call the checkpoint in errors.

    Returns:
        The backbone's own names -> the given ones, not yet compared with what such a network has; and the sorted names
        of the heads' tensors.

    Raises:
        ArgumentError: The source is unknown.
        ModelError: A name is neither, comes twice, or is of a layer that is no whole linear layer or BatchNorm.
    """
    layout = layout_of(source)
    heads: dict[str, set[str]] = {}
    backbone: dict[str, str] = {}
    unknown = []
    for name in names:
        layer, _, kind = name.rpartition(".")
        if layout.heads.fullmatch(layer):
            heads.setdefault(layer, set()).add(kind)
        elif name.startswith(layout.prefix) and (own := _own_name(name.removeprefix(layout.prefix))) not in backbone:
            backbone[own] = name
        else:
            unknown.append(name)
    unknown += [f"{layer}.{kind}" for layer, kinds in heads.items() if kinds not in _WHOLE_LAYERS for kind in kinds]
    refuse_unknown(unknown, source, where)
    return backbone, sorted(f"{layer}.{kind}" for layer, kinds in heads.items() for kind in kinds)


def refuse_unknown(names: Iterable[str], source: str, where: str) -> None:
    """Refuses tensors that are neither of the backbone nor of a known head.

    Raises:
        ModelError: There are any names.
    """
    unknown = sorted(names)
    if not unknown:
        return
    layout = LAYOUTS[source]
    raise ModelError(
        f"{where}: {_some(unknown)}: neither of a ResNet-18, 34 or 50 ({layout.prefix}conv1.weight and so on) nor of a "
        f"head that {source} is known to write ({layout.heads.pattern}); check --from, or save the checkpoint without"
    )


def refuse_missing(names: Iterable[str], source: str, where: str) -> None:
    """Refuses a backbone that lacks tensors.

    Raises:
        ModelError: There are any names.
    """
    missing = sorted(names)
    if missing:
        prefix = LAYOUTS[source].prefix
        raise ModelError(
            f"{where}: {_some([prefix + name for name in missing])}: missing from the backbone; check --from, or give "
            "the whole checkpoint"
        )


def _own_name(name: str) -> str:
    first, _, rest = name.partition(".")
    return f"{_CHILDREN.get(first, first)}.{rest}"


def _some(names: list[str]) -> str:
    shown = ", ".join(one_line(name, 80) for name in names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"
