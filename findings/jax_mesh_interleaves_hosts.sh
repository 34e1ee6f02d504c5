#!/usr/bin/env bash
# On most TPU slices, a mesh by jax.make_mesh gives a host rows of the batch that are not adjacent.
#
# Libraries: jax 0.10.2, libtpu 0.0.42.1 (TPU topologies without TPUs).
# Expected:  along a mesh of one axis the devices of host 0 come first, then those of host 1.
# Happens:   jax.make_mesh orders devices along the links of the torus. Of these four only v5e:2x4
#            has a host's devices together. make_array_from_process_local_data gives each host's
#            rows to its devices, so that on the others the global batch is a permutation of what
#            the hosts have put end to end: row i of the array is not record i.
# Matters:   what is keyed by row number (dropout, record ids beside the array, labels made from
#            arange, the cut into micro-batches) differs from a run on one host. CPU tests with many
#            devices of one process cannot show it. A Mesh of the devices sorted by process keeps
#            blocks.
# Seen on 2026-11-28, the process of each device along the mesh:
#   v5e:2x4 00001111
#   v5e:4x4 0011110233332220
#   v6e:4x4 0011110233332220
#   v5e:4x8 00224466002244661133557711335577
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile jax==0.10.2 libtpu==0.0.42.1

JAX_PLATFORMS=cpu TPU_SKIP_MDS_QUERY=1 ALLOW_MULTIPLE_LIBTPU_LOAD=1 \
  "$work/venv/bin/python" - <<'EOF'
import jax
from jax.experimental import topologies

SEEN = {
    "v5e:2x4": "00001111",
    "v5e:4x4": "0011110233332220",
    "v6e:4x4": "0011110233332220",
    "v5e:4x8": "00224466002244661133557711335577",
}
for name, expected in SEEN.items():
    devices = topologies.get_topology_desc(platform="tpu", topology_name=name).devices
    auto = (jax.sharding.AxisType.Auto,)
    mesh = jax.make_mesh((len(devices),), ("data",), axis_types=auto, devices=devices)
    order = "".join(str(device.process_index) for device in mesh.devices.ravel())
    print(name, order)
    assert order == expected
EOF
