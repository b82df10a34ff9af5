"""The mesh, and where arrays lie on it: batches over `data` and `fsdp`, parameters as the rule table says.

Modules name the axes of their parameters (`embed`, `mlp`, `heads`, `vocab`, …); the config's table says along which mesh axis
a name is split. Activations stay with their image: only whole images are split over devices. A leaf module: everybody may use it.
"""
import contextlib
import math

import flax.linen as nn
import jax
from flax.linen.spmd import get_logical_axis_rules
from jax.sharding import AxisType, NamedSharding, PartitionSpec

AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")


def make_mesh(data=-1, fsdp=1, tensor=1, devices=None):
    """Mesh over all devices.

    Args:
      data, fsdp, tensor: devices along each axis; one of them may be −1, "what is left". Neighbouring devices share the last.
      devices: list of devices, default all.
    Raises: ValueError if the product is not the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = [data, fsdp, tensor]
    if sizes.count(-1) == 1:
        known = -math.prod(sizes)
        sizes[sizes.index(-1)] = len(devices) // known if known > 0 else 0
    if min(sizes) < 1 or math.prod(sizes) != len(devices):
        raise ValueError(f"mesh data={data} × fsdp={fsdp} × tensor={tensor}: found {len(devices)} devices, expected the product "
                         "of the axes; set config.mesh.data=-1 to take all that are left")
    return jax.make_mesh(tuple(sizes), AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices)


@contextlib.contextmanager
def use(mesh, rules):
    """Within it, modules keep activations with their images and gather the parameters that they need."""
    with jax.set_mesh(mesh), nn.logical_axis_rules(tuple(map(tuple, rules))):
        yield


def batch_size_of(mesh):
    """Devices among which a batch is split: its size must be a multiple."""
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def batch_sharding(mesh):
    """The leading axis over every device that images are split among."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def replicated(mesh):
    return NamedSharding(mesh, PartitionSpec())


def axes_of(names, shape, mesh, rules):
    """PartitionSpec of one array.

    Rules are tried in their order; one is followed if its mesh axis is not yet taken and divides the array's axis evenly.

    Args:
      names: name of each of its axes; None is never split.
      shape: its shape. mesh: anything with `.shape`, dict of axis → size.
      rules: pairs of (name, mesh axis or None).
    Raises: ValueError for a name without a rule.
    """
    unruled = set(names) - {name for name, _ in rules} - {None}
    if unruled:
        raise ValueError(f"mesh.rules: found no rule for the axes {sorted(unruled)}, expected one for each name; None leaves it whole")
    axes = [None] * len(shape)
    for name, mesh_axis in rules:
        for i, size in enumerate(shape):
            free = mesh_axis is not None and mesh_axis not in axes and mesh.shape[mesh_axis] > 1
            if names[i] == name and axes[i] is None and free and size % mesh.shape[mesh_axis] == 0:
                axes[i] = mesh_axis
    return PartitionSpec(*axes)


def parameter_shardings(tree, names, mesh, rules, min_size=2**14):
    """Shardings for a tree of parameters, or for a state that holds copies of that tree under other names.

    Args:
      tree: arrays or ShapeDtypeStructs. A leaf whose path ends in a parameter's path is split like it (moments, averages).
      names: tree of PartitionSpec, the names of every parameter's axes.
      mesh, rules: see `axes_of`.
      min_size: elements; smaller arrays stay whole.
    Returns: tree of NamedSharding.
    """
    table = {_keys(path): spec for path, spec in jax.tree_util.tree_leaves_with_path(
        names, is_leaf=lambda x: isinstance(x, PartitionSpec))}

    def one(path, leaf):
        keys = _keys(path)
        found = next((table[keys[i:]] for i in range(len(keys)) if keys[i:] in table), None)
        if found is None or leaf.size < min_size:
            return replicated(mesh)
        return NamedSharding(mesh, axes_of(found, leaf.shape, mesh, rules))
    return jax.tree_util.tree_map_with_path(one, tree)


def _keys(path):
    return tuple(str(entry.key) for entry in path if isinstance(entry, jax.tree_util.DictKey))


def gathered(parameter, names):
    """A parameter as a layer uses it: whole along the batch's axes, still split along others.

    After the cast to the compute type, inside of a rematerialised block: half the bytes travel, and no whole copy outlives its
    layer. Without it the partitioner may move activations to the weights. Does nothing outside of a mesh.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return parameter
    rules = [rule for rule in get_logical_axis_rules() if rule[1] not in BATCH_AXES]
    rules += [(name, None) for name in names]
    return jax.lax.with_sharding_constraint(parameter, axes_of(names, parameter.shape, mesh, rules))


def constrain_batch(tree):
    """Keeps activations on their image's device; without it the partitioner moves them to the weights.

    Does nothing outside of a mesh, and nothing to an array whose leading axis does not divide over the devices (the
    one prompt that all images of an evaluation share).
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return tree

    def one(x):
        if x.shape[0] % batch_size_of(mesh):
            return x
        return jax.lax.with_sharding_constraint(x, PartitionSpec(BATCH_AXES))
    return jax.tree.map(one, tree)


def map_images(function, *batched, whole=()):
    """Runs a function on every device's own images: the partitioner cannot split a kernel of our own, nor a loop over images.

    Args:
      function: of `batched` and `whole`; its results have a leading axis of images.
      batched: trees of arrays with a leading axis of images; they stay whole where it does not divide over the devices. Devices along
        `tensor` all do the same.
      whole: trees of arrays that every device gets whole.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return function(*batched, *whole)
    images = len(jax.tree.leaves(batched)[0])
    split = PartitionSpec(BATCH_AXES) if images % batch_size_of(mesh) == 0 else PartitionSpec()
    return jax.shard_map(function, in_specs=(*[split] * len(batched), *[PartitionSpec()] * len(whole)), out_specs=split,
                         check_vma=False)(*batched, *whole)


def global_batch(batch, mesh):
    """Host-local numpy batch → global arrays, every process holding its own rows."""
    sharding = batch_sharding(mesh)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)
