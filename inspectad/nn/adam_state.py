"""A step of Adam, and its state as named tensors, so that a training can be stopped and go on as if it had not been."""

import torch
from torch import Tensor


def adam_tensors(adam: torch.optim.Adam, prefix: str) -> dict[str, Tensor]:
    """What it remembers of each parameter, by the parameter's position; nothing before its first step."""
    state = adam.state_dict()["state"]
    return {f"{prefix}{position}.{key}": value for position, kept in state.items() for key, value in kept.items()}


def restore_adam(adam: torch.optim.Adam, tensors: dict[str, Tensor], prefix: str) -> None:
    """Put back what `adam_tensors` gave, into an optimiser of parameters of the same shapes."""
    parameters = [parameter for group in adam.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith(prefix):
            position, _, key = name.removeprefix(prefix).partition(".")
            state.setdefault(int(position), {})[key] = _laid_out(value, parameters[int(position)])
    adam.load_state_dict({"state": state, "param_groups": adam.state_dict()["param_groups"]})


def _laid_out(value: Tensor, parameter: Tensor) -> Tensor:
    """In memory as the parameter is: a fused step goes through both in their order there."""
    if value.shape != parameter.shape:
        return value.clone()  # the number of steps
    return torch.empty_like(parameter, dtype=value.dtype).copy_(value).detach()


def descend(adam: torch.optim.Adam, loss: Tensor) -> None:
    """One step down the gradient of a loss, and of nothing before it."""
    adam.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    adam.step()
