"""The state of Adam as named tensors, so that a training can be stopped and go on as if it had not been."""

import torch
from torch import Tensor


def adam_tensors(adam: torch.optim.Adam, prefix: str) -> dict[str, Tensor]:
    """What it remembers of each parameter, by the parameter's position; nothing before its first step."""
    state = adam.state_dict()["state"]
    return {f"{prefix}{position}.{key}": value for position, kept in state.items() for key, value in kept.items()}


def restore_adam(adam: torch.optim.Adam, tensors: dict[str, Tensor], prefix: str) -> None:
    """Put back what `adam_tensors` gave, into an optimiser of parameters of the same shapes."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith(prefix):
            position, _, key = name.removeprefix(prefix).partition(".")
            state.setdefault(int(position), {})[key] = value.clone()
    adam.load_state_dict({"state": state, "param_groups": adam.state_dict()["param_groups"]})
