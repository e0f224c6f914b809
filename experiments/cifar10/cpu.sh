#!/bin/sh
# UDP and EUDP against training from scratch on photographs of two classes, three seeds, on a CPU:
#   experiments/cifar10/cpu.sh data.root=DIR
# Resumable: the same command again goes on where it stopped.
set -eu
"${PYTHON:-python}" -m udpbench -m experiment=cifar10_cpu "$@"
