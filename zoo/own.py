"""A network of the user's own, named package.module:function and imported when somebody asks.

Importing runs code, so nothing here is called because a file says so: a command line or a caller
names the function, and what a run folder holds is only compared with that.
"""

import copy
import inspect
import os
import re
import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from zoo.errors import ZooError, closest, first_line

NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*", re.ASCII)
FORM = "package.module:function"
SIGNATURE = "function(*, num_classes) or function(*, num_classes, image_size)"
TRIAL_BATCH = 2  # images of the call that shows the shape of the logits


def is_own(name: str) -> bool:
    """Whether a model's name means a function of the user's; timm's names begin with "timm:"."""
    return ":" in name and not name.startswith("timm:")


def load_function(name: str) -> Callable[..., Any]:
    """Import the module of package.module:function, from the current folder too.

    Raises:
        ZooError: the name has another form, there is no such module or function, the module
            cannot be imported, or the function cannot be called with num_classes alone.
    """
    if not NAME.fullmatch(name):
        raise ZooError(f"{name!r} names no network of your own: write {FORM}")
    module_name, _, attribute = name.partition(":")
    here = os.getcwd()
    if here not in sys.path and "" not in sys.path:
        sys.path.append(here)  # for good: the function may import more when it is called
    try:
        module = import_module(module_name)
    except (Exception, SystemExit) as reason:  # whatever the user's code raises
        raise ZooError(_why_not_imported(module_name, reason)) from None
    function: Callable[..., Any] | None = getattr(module, attribute, None)
    if not callable(function):
        near = closest(attribute, [key for key, value in vars(module).items() if callable(value)])
        place = getattr(module, "__file__", None) or module_name
        raise ZooError(f"{place} has no function {attribute!r}{f': {near}' if near else ''}")
    _check_signature(name, function)
    return function


def build_own(
    name: str, *, num_classes: int, image_size: int, options: Mapping[str, object]
) -> nn.Module:
    """Call the user's function and try the network on two images; it comes in training mode.

    Raises:
        ZooError: `load_function` refuses the name, the function fails or returns no module, or the
            network does not map (B, 3, S, S) to (B, K).
    """
    function = load_function(name)
    given: dict[str, object] = {"num_classes": num_classes, **options}
    for option in options:
        if not _takes(function, option):
            raise ZooError(f"model {name!r} has no option {option!r}")
    if "image_size" in _parameters(function):  # not for **options, which rarely means this
        given["image_size"] = image_size
    try:
        network = function(**given)
    except ZooError:
        raise
    except Exception as reason:  # whatever the user's code raises
        raise ZooError(f"{name} failed: {_described(reason)}") from reason
    if not isinstance(network, nn.Module):
        raise ZooError(f"{name} returned a {type(network).__name__}, expected a torch.nn.Module")
    _check_logits(name, network.eval(), num_classes, image_size)
    return network.train()


def check_training(name: str, network: nn.Module, *, num_classes: int, image_size: int) -> None:
    """Try a copy of a network of the user's on two images, as training does.

    Raises:
        ZooError: in training mode it does not map (B, 3, S, S) to (B, K).
    """
    twin = copy.deepcopy(network).train()
    _check_logits(f"{name} in training", twin, num_classes, image_size)


def _why_not_imported(module: str, reason: BaseException) -> str:
    missing = reason.name if isinstance(reason, ModuleNotFoundError) else None
    if missing is not None and f"{module}.".startswith(f"{missing}."):
        return f"there is no module {missing!r} in {os.getcwd()}, on PYTHONPATH or installed"
    return f"the module {module!r} cannot be imported: {_described(reason)}"


def _check_signature(name: str, function: Callable[..., Any]) -> None:
    wanted = f"write it as {SIGNATURE}"
    if not _takes(function, "num_classes"):
        raise ZooError(f"{name} takes no num_classes: {wanted}")
    for key, parameter in _parameters(function).items():
        is_many = parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        if key not in ("num_classes", "image_size") and not is_many and _is_needed(parameter):
            raise ZooError(f"{name} needs {key!r} too, which nobody passes: {wanted}")


def _check_logits(name: str, network: nn.Module, num_classes: int, image_size: int) -> None:
    first = next(network.parameters(), None)
    device = None if first is None else first.device
    images = torch.zeros(TRIAL_BATCH, 3, image_size, image_size, device=device)
    expected = (TRIAL_BATCH, num_classes)
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            logits = network(images)
    except Exception as reason:  # whatever the user's code raises
        raise ZooError(
            f"the network of {name} does not run on images of shape {tuple(images.shape)}: "
            f"{_described(reason)}"
        ) from reason
    if not isinstance(logits, Tensor):
        raise ZooError(
            f"the network of {name} gives a {type(logits).__name__}, expected logits of shape "
            f"{expected}"
        )
    if tuple(logits.shape) != expected:
        raise ZooError(
            f"the network of {name} gives logits of shape {tuple(logits.shape)} for "
            f"{TRIAL_BATCH} images of {num_classes} classes, expected {expected}"
        )


def _takes(function: Callable[..., Any], key: str) -> bool:
    parameters = _parameters(function)
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return True
    named = parameters.get(key)
    return named is not None and named.kind in (named.POSITIONAL_OR_KEYWORD, named.KEYWORD_ONLY)


def _parameters(function: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(function).parameters
    except (TypeError, ValueError):  # a builtin without a signature
        return {}


def _is_needed(parameter: inspect.Parameter) -> bool:
    return parameter.default is inspect.Parameter.empty


def _described(reason: BaseException) -> str:
    kind, line = type(reason).__name__, first_line(reason)
    return line if line == kind else f"{kind}: {line}"
