"""What the next step depends on: copied to the CPU, and put back where it was."""

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor, nn


def parameters_of(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    """All that it changes, in its order."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def remembered(optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, Tensor]]:
    """What an optimiser has made of each parameter: `optimizer.INDEX.KEY`, and the tensor."""
    for index, parameter in enumerate(parameters_of(optimizer)):
        for key, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, Tensor):
                yield f"optimizer.{index}.{key}", value


def copied(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same on the CPU."""
    return {name: value.detach().to("cpu", copy=True) for name, value in tensors.items()}


def put_back(
    state: Mapping[str, Tensor],
    optimizer: torch.optim.Optimizer,
    tensors: Callable[[], Mapping[str, Tensor]],
) -> None:
    """Fill `tensors`, those of the optimiser among them, with what a state holds, in place.

    What the optimiser has made since, and the state does not know, is zeroed: so it begins.

    Raises:
        KeyError, ValueError, RuntimeError: the state is of another network or recipe.
    """
    known, parameters = tensors(), parameters_of(optimizer)
    for name, value in state.items():
        kind, _, rest = name.partition(".")
        if kind == "optimizer" and name not in known:
            index, _, key = rest.partition(".")
            parameter = parameters[int(index)]
            # As the parameter lies, for fused optimisers walk both; filled below.
            like = parameter if value.shape == parameter.shape else value
            room = torch.empty_like(like, dtype=value.dtype, device=parameter.device)
            optimizer.state[parameter][key] = room
    with torch.no_grad():
        for name, tensor in tensors().items():
            if name in state:
                if tensor.shape != state[name].shape:
                    raise ValueError(f"{name} has shape {tuple(state[name].shape)}")
                tensor.copy_(state[name])
            elif name.startswith("optimizer."):
                tensor.zero_()
            else:
                raise KeyError(name)


def scale_of(scaler: torch.amp.GradScaler) -> Tensor:
    """What a loss scaler has found so far; of one that is not used, zeros."""
    found = scaler.state_dict()
    return torch.tensor([found.get("scale", 0.0), found.get("_growth_tracker", 0)]).double()


def put_scale_back(scaler: torch.amp.GradScaler, stored: Tensor) -> None:
    """Let a scaler that is used go on from there."""
    if scaler.is_enabled():
        scale, tracker = stored.tolist()
        known = {"scale": scale, "_growth_tracker": int(tracker)}
        scaler.load_state_dict(scaler.state_dict() | known)


def generator_state(device: torch.device) -> Tensor:
    """Where the random numbers of a device are."""
    if device.type == "cuda":
        return torch.cuda.get_rng_state(device)
    return torch.get_rng_state()


def renew_generator(device: torch.device) -> None:
    """Let random numbers of a GPU go on where they are after a capture that failed.

    In torch 2.10 and others before 2.14 its generator else counts as captured, and draws no more.
    """
    index = torch.cuda.current_device() if device.index is None else device.index
    generator = torch.cuda.default_generators[index]
    generator.graphsafe_set_state(generator.clone_state())


def set_generator_state(device: torch.device, state: Tensor, *, otherwise: int) -> None:
    """Go on from there; from the seed `otherwise` where it is that of another kind of device."""
    if state.shape != generator_state(device).shape:
        torch.manual_seed(otherwise)
    elif device.type == "cuda":
        torch.cuda.set_rng_state(state, device)
    else:
        torch.set_rng_state(state)
