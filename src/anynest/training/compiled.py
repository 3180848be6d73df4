"""``torch.compile`` for a network in training, in the regions that the method allows."""

from ..multitask import compile_for_tasks
from ..nets import AnytimeNetwork


def compile_network(network: AnytimeNetwork, one_pass: bool) -> str:
    """Compile in place; says in a line what was compiled.

    With one backward pass a step the whole network is one region. With one pass per loss each node
    is one, so that a pass walks only the nodes of its loss; nodes that share a kernel stay in it,
    whose backward pass knows the stages (``nets/nested/fused.py``).
    """
    if one_pass:
        compile_for_tasks(network)
        return "compiled: the network as a whole"
    blocks = network.called_nodes()
    compile_for_tasks(network, blocks)
    nodes = sum(len(layer.nodes) for layer in network.plan.layers)
    if len(blocks) == nodes:
        return f"compiled: each of {nodes} nodes by itself"
    return f"compiled: {len(blocks)} of {nodes} nodes by themselves; others run in fused kernels"
