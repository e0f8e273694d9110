"""Batch norms that follow a convolution become part of it."""

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

CONVOLUTIONS = (torch.ops.aten.conv2d.default, torch.ops.aten.conv2d.padding)
BATCH_NORM = torch.ops.aten.batch_norm.default


def fold_batch_norms(model: nn.Module, program: torch.export.ExportedProgram) -> nn.Module:
    """Fold each batch norm of `model` whose input is a convolution that nothing else sees.

    The graph of `program`, traced from `model`, tells which follows which; modules are changed in
    place, and only those that compute nothing besides and are called themselves: a network may
    hand the weight of one to a function of its own, with another stride or without the bias.
    """
    parameters = program.graph_signature.inputs_to_parameters
    for norm in program.graph.nodes:
        if norm.target != BATCH_NORM:
            continue
        conv = norm.args[0]
        if conv.target not in CONVOLUTIONS or len(conv.users) > 1:
            continue
        weights = (conv.args[1], norm.args[1])
        names = [parameters.get(getattr(weight, "name", "")) for weight in weights]
        if None in names or any(len(weight.users) > 1 for weight in weights):
            continue  # computed, absent, or used twice
        first, second = (str(name).rpartition(".")[0] for name in names)
        if (first, second) != (_caller(conv), _caller(norm)):
            continue
        module, batch_norm = model.get_submodule(first), model.get_submodule(second)
        if (
            type(module) is nn.Conv2d
            and type(batch_norm) is nn.BatchNorm2d
            and batch_norm.running_mean is not None  # else it takes those of the batch
        ):
            model.set_submodule(first, fuse_conv_bn_eval(module, batch_norm))
            model.set_submodule(second, nn.Identity())
    return model


def _caller(node: torch.fx.Node) -> str:
    """The path of the innermost module whose call made this node."""
    *_, (path, _) = node.meta["nn_module_stack"].values()
    return str(path)
