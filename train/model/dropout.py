"""Dropout, which is off unless asked for: it would make the policy differ from its own reference at the first step."""

from torch import nn

__all__ = ["disable_dropout"]


def disable_dropout(model: nn.Module) -> None:
    """Sets every dropout rate of the modules (not of the saved config) to 0.

    Attention dropout is a plain float attribute in transformers, so modules' attributes are searched by name.
    """
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in list(vars(module).items()):
            if "dropout" in name and isinstance(value, float):
                setattr(module, name, 0.0)
