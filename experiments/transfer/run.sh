#!/bin/sh
# Does protection made on one model hold against a thief with another? Resumable: the same command again goes on.
# Further words go to every part, e.g. runtime.device=cuda.
set -euf
study() { "${PYTHON:-python}" -m udpbench -m experiment=transfer "$@"; }

study protect=none seed=1,2 'arms=[pretrained,upper_bound,clean]' "$@"                     # the seed SD
study protect=photoguard model@surrogate=micro,micro_b,micro_c "$@"
study protect=eudp protect.times=sqrt_alpha_bar model@surrogate=micro,micro_b,micro_c "$@" # EUDP's preset at the time
