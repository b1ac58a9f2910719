#!/usr/bin/env bash
# Train on a Cloud TPU VM, one host or every host of a pod slice. JAX finds the hosts of a slice by itself.
#   NAME=t1 ZONE=us-west4-a TYPE=v5litepod-16 REPOSITORY=https://... RUNS=/mnt/runs bash deploy/tpu_vm.sh create
#   ... bash deploy/tpu_vm.sh install
#   ... bash deploy/tpu_vm.sh train --config configs/gpt2_124m.yaml data.path=/mnt/data output_dir=/mnt/runs/gpt2
# The same command again goes on from the last checkpoint. RUNS must be one folder for all hosts (Filestore, or a bucket
# mounted with gcsfuse); with one host any folder will do. Ctrl-C here does not reach the hosts: `stop` does.
set -euo pipefail
: "${NAME:?name of the TPU}" "${ZONE:?its zone}"
tpu() { gcloud compute tpus tpu-vm "$@"; }
everywhere() { tpu ssh "$NAME" --zone="$ZONE" --worker=all --command="$1"; }

case "${1:?create, install, train, stop or delete}" in
  create) tpu create "$NAME" --zone="$ZONE" --accelerator-type="${TYPE:?for instance v5litepod-16}" \
    --version="${VERSION:-v2-alpha-tpuv5-lite}" ;;
  install) everywhere "git clone '${REPOSITORY:?where this repository is}' jaxformer; cd jaxformer && git pull &&
    python3 -m venv .venv && .venv/bin/pip install -q -e '.[tpu]'" ;;
  train) shift; everywhere "cd jaxformer && .venv/bin/python train.py $*" ;;
  stop) everywhere "pkill -TERM -f [t]rain.py" ;;
  delete) tpu delete "$NAME" --zone="$ZONE" ;;
  *) echo "expected create, install, train, stop or delete, got $1" >&2; exit 2 ;;
esac
