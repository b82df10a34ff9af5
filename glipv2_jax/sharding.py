"""The mesh, and where arrays lie on it: batches over all axes, parameters and optimizer state over `fsdp`.

A leaf module: everybody may use it.
"""
import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

AXES = ("data", "fsdp")


def make_mesh(data=-1, fsdp=1, devices=None):
    """Mesh over all devices.

    Args:
      data, fsdp: devices along each axis; one of them may be −1, "what is left".
      devices: list of devices, default all.
    Raises: ValueError if the product is not the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = [data, fsdp]
    if sizes.count(-1) == 1:
        known = -int(np.prod(sizes))
        sizes[sizes.index(-1)] = len(devices) // known if known > 0 else 0
    if min(sizes) < 1 or np.prod(sizes) != len(devices):
        raise ValueError(f"mesh data={data} × fsdp={fsdp}: found {len(devices)} devices, expected the product of the axes")
    return jax.make_mesh(tuple(sizes), AXES, axis_types=(AxisType.Auto,) * 2, devices=devices)


def batch_sharding(mesh):
    """The leading axis over every device."""
    return NamedSharding(mesh, PartitionSpec(AXES))


def replicated(mesh):
    return NamedSharding(mesh, PartitionSpec())


def fsdp_sharding(tree, mesh, min_size=2**14):
    """Shardings for a tree of parameters or of optimizer state.

    An array goes over `fsdp` along its largest axis that divides evenly; one of fewer than `min_size` elements, or
    without such an axis, stays whole on every device.

    Args:
      tree: arrays or ShapeDtypeStructs.
      min_size: elements.
    Returns: tree of NamedSharding.
    """
    count = mesh.shape["fsdp"]

    def one(leaf):
        fits = [axis for axis, size in enumerate(leaf.shape) if size % count == 0]
        if count == 1 or leaf.size < min_size or not fits:
            return replicated(mesh)
        axis = max(fits, key=lambda a: leaf.shape[a])
        return NamedSharding(mesh, PartitionSpec(*[None] * axis, "fsdp"))
    return jax.tree.map(one, tree)


def constrain_batch(tree):
    """Keeps activations on their image's device; without it the partitioner moves them to the weights.

    Does nothing outside of a mesh, and nothing to an array whose leading axis does not divide over the devices (the
    one prompt that all images of an evaluation share).
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return tree

    def one(x):
        if x.shape[0] % mesh.size:
            return x
        return jax.lax.with_sharding_constraint(x, PartitionSpec(AXES))
    return jax.tree.map(one, tree)


def global_batch(batch, mesh):
    """Host-local numpy batch → global arrays, every process holding its own rows."""
    sharding = batch_sharding(mesh)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)
