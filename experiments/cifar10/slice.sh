#!/bin/sh
# UDP's first experiment at CIFAR-10's size, for a GPU that can be had for minutes at a time:
#   experiments/cifar10/slice.sh data.root=DIR runtime.device=cuda
# works for at most $SLICE seconds (590) and ends with status 75 while there is more to do; the same command again goes
# on from the last checkpoint. Status 0: the table is whole.
set -u
timeout --signal=INT --kill-after=30 "${SLICE:-590}" "${PYTHON:-python}" -m udpbench -m experiment=cifar10 "$@"
status=$?
if [ "$status" = 124 ]; then
    echo "slice over; the same command goes on"
    exit 75
fi
exit "$status"
