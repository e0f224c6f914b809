#!/bin/sh
# UDP's first experiment at CIFAR-10's size, for a GPU that can be had for minutes at a time:
#   experiments/cifar10/slice.sh data.root=DIR runtime.device=cuda
# works for $SLICE seconds (560), takes at most thirty more to write a checkpoint and stop, and ends with status 75 while
# there is more to do; the same command again goes on. Status 0: the table is whole. Status 76: the slice left nothing
# to go on from (no stage, checkpoint or picture), so the next one would do the same work again: give a longer SLICE.
set -u
slice="${SLICE:-560}"
out=outputs store=
for word; do
    case "$word" in
        runtime.out=*) out="${word#*=}" ;;
        runtime.store=*) store="${word#*=}" ;;
    esac
done
before=$(mktemp) || exit 1
trap 'rm -f "$before"' EXIT
start=$(date +%s)
timeout --signal=TERM --kill-after=30 "$slice" "${PYTHON:-python}" -m udpbench -m experiment=cifar10 "$@"
status=$?
# 137: it did not stop by itself in those thirty seconds, or, before the slice was over, something else killed it.
if [ "$status" = 124 ] || { [ "$status" = 137 ] && [ "$(($(date +%s) - start))" -ge "$slice" ]; }; then
    store="${store:-$out/store}"
    if [ -d "$store" ] && [ -z "$(find "$store" -newer "$before" \( -name _stage.json -o -name '*.pt' -o -name '*.ckpt' -o -name '*.png' \))" ]; then
        echo "the slice left nothing to go on from; give more than SLICE=$slice" >&2
        exit 76
    fi
    echo "slice over; the same command goes on"
    exit 75
fi
exit "$status"
