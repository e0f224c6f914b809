#!/bin/sh
# UDP's first experiment at CIFAR-10's size, for a GPU that can be had for minutes at a time:
#   experiments/cifar10/slice.sh data.root=DIR runtime.device=cuda
# works for $SLICE seconds (560), takes at most thirty more to stop, and ends with status 75 while there is more to do;
# the same command again goes on from the last checkpoint. Status 0: the table is whole.
set -u
slice="${SLICE:-560}"
start=$(date +%s)
timeout --signal=INT --kill-after=30 "$slice" "${PYTHON:-python}" -m udpbench -m experiment=cifar10 "$@"
status=$?
# 137: it did not stop by itself in those thirty seconds, or, before the slice was over, something else killed it.
if [ "$status" = 124 ] || { [ "$status" = 137 ] && [ "$(($(date +%s) - start))" -ge "$slice" ]; }; then
    echo "slice over; the same command goes on"
    exit 75
fi
exit "$status"
