#!/usr/bin/env bash
#SBATCH --job-name=aloftrag
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --gpus-per-node=8
#SBATCH --mem=0
#SBATCH --no-kill
#SBATCH --time=3-00:00:00
#SBATCH --open-mode=append
# A Ray cluster over the nodes of a Slurm job, and a job file on it:
#
#   sbatch cluster/slurm.sh handbook.yaml --runs /shared/runs
#
# takes the arguments of `aloftrag run`. When the time is over, the same command goes on. Change the lines above; activate the
# environment with aloftrag before, or say where it is in ALOFTRAG_BIN. Of a first node with several networks, ALOFTRAG_HEAD_ADDRESS
# chooses one.
set -euo pipefail

[ $# -gt 0 ] || { echo "usage: sbatch $0 JOB.yaml [arguments of aloftrag run]" >&2; exit 2; }
[ -n "${ALOFTRAG_BIN:-}" ] && PATH="$ALOFTRAG_BIN:$PATH"

# A token for this cluster alone. srun hands it on with the environment, which only this user can read.
RAY_AUTH_TOKEN=$(head -c 32 /dev/urandom | base64)
export RAY_AUTH_TOKEN RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0 HF_HUB_OFFLINE=1

head_node=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed -n 1p)  # not head: it would break the pipe
address=${ALOFTRAG_HEAD_ADDRESS:-$(srun --nodes=1 --ntasks=1 --nodelist="$head_node" hostname --all-ip-addresses |
  tr ' ' '\n' | awk '/\./ && !found++')}
[ -n "$address" ] || { echo "$head_node has no address of IPv4: say which one in ALOFTRAG_HEAD_ADDRESS" >&2; exit 1; }
port=$((20000 + SLURM_JOB_ID % 10000))

# Ray's own folder, with its logs and what it spills: on each node, for this user alone, and gone with the cluster.
folder="/tmp/aloftrag-job-$SLURM_JOB_ID"
on_each_node=(srun --nodes="$SLURM_JOB_NUM_NODES" --ntasks="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 --overlap)
"${on_each_node[@]}" bash -c "mkdir -m 700 $folder || [ -O $folder ]"

# Whatever ends this script ends the cluster.
trap 'kill $(jobs -p) 2> /dev/null || true; wait; "${on_each_node[@]}" rm -rf "$folder" || true' EXIT

srun --nodes=1 --ntasks=1 --nodelist="$head_node" --overlap \
  ray start --head --node-ip-address="$address" --port="$port" --temp-dir="$folder" --include-dashboard=false --block &
others=$((SLURM_JOB_NUM_NODES - 1))
if [ "$others" -gt 0 ]; then
  srun --nodes="$others" --ntasks="$others" --ntasks-per-node=1 --exclude="$head_node" --overlap --no-kill \
    bash -c "until ray health-check --address $address:$port; do sleep 2; done; exec ray start --address $address:$port --block" &
fi

export RAY_ADDRESS="$address:$port"
python - "$SLURM_JOB_NUM_NODES" << 'PYTHON'
import sys, time
import ray

wanted, deadline = int(sys.argv[1]), time.monotonic() + 600
while True:
    try:
        ray.init(logging_level="ERROR", log_to_driver=False)
        there = sum(node["Alive"] for node in ray.nodes())
        ray.shutdown()
    except ConnectionError:
        there = 0
    if there == wanted:
        break
    if time.monotonic() > deadline:
        sys.exit(f"only {there} of {wanted} nodes have joined the Ray cluster in ten minutes")
    time.sleep(2)
PYTHON

aloftrag run "$@"
